"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stripes import Recorder, make_data
from helpers.tiny_run import FINISHED, QUIET
from PIL import Image
from torch import nn

from ltdd import pipeline
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine import turns
from ltdd.engine.runtime import Runtime

# The tests' tensors are tiny: on a busy machine threads spend twelve times longer waiting for each
# other than computing. Programs that tests start inherit the setting.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Autograd counts devices in the first backward pass of a process, and starts a thread for each;
# from then on a fork may not compute gradients. A fake GPU counts too, so a pass comes before it.
torch.ones((), requires_grad=True).backward()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images of tests, and of programs that they start, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTDD_DATA", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LTDD_STORE", "none")  # a test computes what it looks at
        yield


FolderBuilder = Callable[..., Path]


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """Folder with train/<class>/*.png and test/<class>/*.png of CIFAR-10; skips without it."""
    checkout = Path(__file__).resolve().parents[1]
    root = Path(os.environ.get("LTDD_CIFAR10") or checkout.parent / "shared/data/cifar10")
    if not (root / "train").is_dir():
        pytest.skip("needs the CIFAR-10 images; set LTDD_CIFAR10 to their folder")
    return root


@pytest.fixture
def class_folder(tmp_path: Path) -> FolderBuilder:
    """Write tmp_path/<part>/<class>/NNNN.png from {class: count}; pixels differ between files."""

    def build(part: str, counts: dict[str, int], size: int = 8, mode: str = "RGB") -> Path:
        generator = np.random.default_rng(sum(map(ord, part)))
        root = tmp_path / part
        for name, count in counts.items():
            folder = root / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (size, size) if mode == "L" else (size, size, 3)
                pixels = generator.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04}.png")
        return root

    return build


@pytest.fixture
def log() -> Recorder:
    return Recorder()


@pytest.fixture
def runtime(log: Recorder) -> Runtime:
    return Runtime(torch.device("cpu"), backend="reference", seed=3, log=log, quiet=True)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let so many trainings take turns on a CPU."""
    return lambda count: monkeypatch.setitem(turns.AT_ONCE, "cpu", count)


@pytest.fixture(scope="session")
def data() -> LongTailedData:
    """Three classes of 24, 8 and 2 images of 8x8 pixels."""
    return make_data((24, 8, 2))


@pytest.fixture(scope="session")
def balanced() -> LongTailedData:
    """Three classes of 6 images each."""
    return make_data((6, 6, 6))


@pytest.fixture
def observer() -> nn.Module:
    """A frozen-looking network with two batch-norm layers and a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, as it is left behind."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.distill(FINISHED, out, options=QUIET)
    return out


@pytest.fixture(scope="session")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the set alone."""
    out = tmp_path_factory.mktemp("published")
    for name in ("data.safetensors", "fkd.safetensors", "manifest.json", "results.json"):
        shutil.copy(run / name, out)
    return out
