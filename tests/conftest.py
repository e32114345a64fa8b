"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# The tests' tensors are tiny: on a busy machine threads spend twelve times longer waiting for each
# other than computing. Programs that tests start inherit the setting.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images of tests, and of programs that they start, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTDD_DATA", str(tmp_path_factory.mktemp("cache")))
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
