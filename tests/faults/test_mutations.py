"""Damaged and hostile files: refused, or read as what they were; never executed."""

from __future__ import annotations

import io
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltdd.engine.storage.checkpoint import StageCheckpoint
from ltdd.engine.storage.files import fingerprint, read_json, read_sealed_tensors, read_tensors
from ltdd.engine.storage.stage_store import read_stage
from ltdd.errors import UserError
from ltdd.results.distilled_set import load


def mutated(content: bytes, moments: random.Random) -> bytes:
    """Return a damaged copy: flipped, cut, stretched, moved or overwritten bytes."""
    data = bytearray(content)
    # Headers are small; half of the damage goes there.
    where = moments.randrange(min(len(data), 512) if moments.random() < 0.5 else len(data))
    size = moments.choice([1, 1, 1, 4, 8, 64, 1000])
    kind = moments.randrange(7)
    if kind == 0:
        for _ in range(moments.choice([1, 2, 8])):
            data[moments.randrange(len(data))] ^= 1 << moments.randrange(8)
    elif kind == 1:
        del data[where:]
    elif kind == 2:
        data[where:where] = moments.randbytes(size)
    elif kind == 3:
        del data[where : where + size]
    elif kind == 4:
        data[where : where + size] = bytes(min(size, len(data) - where))
    elif kind == 5:
        other = moments.randrange(len(data))
        data[where : where + size] = data[other : other + size]
    else:
        data[where : where + 1] = moments.choice([b"9", b"-", b"[", b'"', b"\xff", b"\x00", b"{"])
    return bytes(data)


def content(tensors: dict[str, torch.Tensor], *others: Any) -> list[Any]:
    described = [
        (name, str(t.dtype), list(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in sorted(tensors.items())
    ]
    return [described, *others]


def stage_content(path: Path) -> list[Any]:
    stored = read_stage(path)
    return content(stored.tensors, stored.key, stored.meta)


def set_content(path: Path) -> list[Any]:
    distilled = load(path.parent)
    tensors = {n: getattr(distilled, n) for n in ("images", "labels", "logits")}
    return content(tensors, fingerprint(distilled.manifest), fingerprint(distilled.results))


def checkpoint_content(path: Path) -> list[Any]:
    return content(*read_sealed_tensors(path))


@pytest.fixture
def artifacts(finished: Path, tmp_path: Path) -> dict[Path, Callable[[Path], list[Any]]]:
    """Every kind of file that a run leaves, each with its reader."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    readers: dict[Path, Callable[[Path], list[Any]]] = {
        out / name: set_content for name in ("data.safetensors", "manifest.json", "results.json")
    }
    for stage in ("statistics", "initialization", "recovery", "relabeling"):
        for path in (out / "stages").glob(f"{stage}-*.safetensors"):
            readers[path] = stage_content
    path = out / "stages/experts-0.checkpoint"
    with StageCheckpoint(path, "key", seconds=0) as checkpoint:
        checkpoint.step(pixels=torch.rand(4, 1, 8, 8), state={0: (1, 0.5)}, iteration=3)
    readers[path] = checkpoint_content
    return readers


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_unchanged(
    count: int, artifacts: dict[Path, Callable[[Path], list[Any]]]
) -> None:
    moments = random.Random(count)
    whole = {path: (path.read_bytes(), reader(path)) for path, reader in artifacts.items()}
    paths = sorted(artifacts)
    refused = identical = 0
    for number in range(count):
        path = paths[number % len(paths)]
        original, expected = whole[path]
        path.write_bytes(mutated(original, moments))
        try:
            found = artifacts[path](path)
        except UserError:
            refused += 1
        else:
            assert found == expected, path.name
            identical += 1
        path.write_bytes(original)
    print(f"mutated files: {refused} refused, {identical} identical, of {count}")
    assert refused + identical == count
    assert refused > 0.8 * count


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def pickles(trap: Trap) -> dict[str, bytes]:
    """Return hostile files under the names of honest ones."""
    saved = io.BytesIO()
    torch.save({"images": trap}, saved)
    legacy = io.BytesIO()
    torch.save({"images": trap}, legacy, _use_new_zipfile_serialization=False)
    plain = {f"protocol {n}": pickle.dumps({"images": trap}, protocol=n) for n in range(6)}
    header = len(plain["protocol 4"]).to_bytes(8, "little")
    return plain | {
        "torch.save": saved.getvalue(),
        "torch.save, old": legacy.getvalue(),
        "behind a safetensors length": header + plain["protocol 4"],
        "text protocol": b"cos\nsystem\n(S'touch " + bytes(trap.path) + b"'\ntR.",
        "numpy object array": _numpy_pickle(trap),
        "list of traps": pickle.dumps([trap] * 3),
    }


def _numpy_pickle(trap: Trap) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array([trap], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_hostile_pickles_are_refused_without_side_effects(finished: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    hostile = pickles(Trap(sprung))
    assert len(hostile) >= 12
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (stage,) = (out / "stages").glob("recovery-*.safetensors")
    readers: list[tuple[Path, Callable[[Path], object]]] = [
        (stage, read_stage),
        (stage, read_tensors),
        (stage, read_sealed_tensors),
        (out / "data.safetensors", lambda path: load(path.parent)),
        (out / "manifest.json", lambda path: load(path.parent)),
        (out / "run.json", read_json),
    ]
    for name, content in hostile.items():
        for path, read in readers:
            original = path.read_bytes()
            path.write_bytes(content)
            with pytest.raises(UserError):
                read(path)
            path.write_bytes(original)
            assert not sprung.exists(), name
    pickle.loads(hostile["protocol 4"])  # the trap is a trap
    assert sprung.exists()
