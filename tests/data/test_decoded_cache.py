"""The cache of decoded images: found again, rebuilt when damaged, safe with many processes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_run import Forked
from PIL import Image

from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.data.reading import decoded_cache
from ltdd.data.reading import image_source as images_module
from ltdd.data.reading.decoder import Form
from ltdd.errors import UserError


@pytest.fixture
def root(
    class_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of images, and a cache that is empty."""
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    class_folder("train", {"cat": 9, "dog": 3}, size=16)
    class_folder("test", {"cat": 2, "dog": 2}, size=16)
    return tmp_path


def load(root: Path, factor: float | None = None, size: int | None = None) -> LongTailedData:
    return load_data(f"imagefolder:{root}", factor, size)


def folders(root: Path) -> list[Path]:
    """Return the folders of the cache; nothing else but locks may be there."""
    entries = sorted((root / "cache/decoded").iterdir())
    assert all(p.is_dir() or p.suffix == ".lock" for p in entries)
    assert not any(p.suffix == ".tmp" for p in entries)
    return [p for p in entries if p.is_dir()]


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how many images are decoded."""
    count = [0]
    decode = images_module.pixels_of

    def counted(image: Image.Image, form: Form) -> np.ndarray:
        count[0] += 1
        return decode(image, form)

    monkeypatch.setattr(images_module, "pixels_of", counted)
    return count


def test_the_second_run_decodes_nothing(root: Path, decodings: list[int]) -> None:
    first = load(root)
    assert decodings == [16]
    second = load(root)
    assert decodings == [16]
    for name in (f.name for f in dataclasses.fields(first)):
        one, other = getattr(first, name), getattr(second, name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name
    assert first.content_sha256 == second.content_sha256
    # What is known beforehand is what the pixels say.
    copy = dataclasses.replace(second, source="copy")
    assert "content_sha256" not in vars(copy)
    assert copy.content_sha256 == second.content_sha256
    assert dataclasses.replace(second, test_images=255 - copy.test_images).content_sha256 != (
        copy.content_sha256
    )


def test_images_are_mapped_not_read(root: Path) -> None:
    data = load(root)
    (folder,) = folders(root)
    stored = np.load(folder / "train.npy", mmap_mode="r+")
    assert torch.equal(torch.from_numpy(stored), data.train_images)
    stored[0] = 7
    stored.flush()
    assert bool((data.train_images[0] == 7).all())


def test_everything_that_decides_the_pixels_is_in_the_key(root: Path, decodings: list[int]) -> None:
    load(root)
    for number, change in enumerate(
        [
            lambda: load(root, 3),
            lambda: load(root, None, 9),
            lambda: load_data(f"imagefolder:{root}", fit="pad"),
            lambda: (os.utime(root / "train/cat/0000.png", (1, 1)), load(root)),
            lambda: (shutil.move(root / "test/dog/0000.png", root / "test/dog/9.png"), load(root)),
            lambda: (os.remove(root / "train/cat/0008.png"), load(root)),
        ],
        2,
    ):
        before = decodings[0]
        change()
        assert decodings[0] > before
        assert len(folders(root)) == number


def damages() -> dict[str, Callable[[Path], object]]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def replace(path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return {
        "a truncated file": lambda f: os.truncate(f / "train.npy", 1000),
        "an empty file": lambda f: os.truncate(f / "test.npy", 0),
        "a missing file": lambda f: os.remove(f / "train.npy"),
        "a flipped bit": lambda f: flip(f / "train.npy"),
        "a flipped bit of the test images": lambda f: flip(f / "test.npy"),
        "a missing summary": lambda f: os.remove(f / "content.json"),
        "half a summary": lambda f: os.truncate(f / "content.json", 60),
        "a summary without a hash": lambda f: replace(
            f / "content.json", '"content_sha256"', '"content"'
        ),
        "a summary of something else": lambda f: (f / "content.json").write_text("[]"),
        "another array": lambda f: np.save(f / "train.npy", np.zeros(3)),
        "an array of objects": lambda f: np.save(
            f / "train.npy", np.array([{}] * 12), allow_pickle=True
        ),
        "files swapped": lambda f: (
            os.rename(f / "train.npy", f / "x"),
            os.rename(f / "test.npy", f / "train.npy"),
            os.rename(f / "x", f / "test.npy"),
        ),
        "an empty folder": lambda f: (shutil.rmtree(f), f.mkdir()),
    }


@pytest.mark.parametrize("what", damages())
def test_damaged_caches_are_rebuilt(root: Path, what: str) -> None:
    clean = load(root)
    wanted = clean.train_images.clone(), clean.content_sha256
    (folder,) = folders(root)
    damages()[what](folder)
    again = load(root)
    assert again.notes == (
        f"the decoded images in {folder} were damaged and have been decoded again",
    )
    assert torch.equal(again.train_images, wanted[0])
    assert again.content_sha256 == wanted[1]
    assert load(root).notes == ()


def test_a_cache_that_was_copied_is_used(root: Path, decodings: list[int]) -> None:
    load(root)
    (folder,) = folders(root)
    for name in ("train.npy", "test.npy"):
        os.utime(folder / name, (1, 1))
    assert load(root).notes == ()
    assert decodings == [16]


def test_a_killed_writer_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = load(root, None, 12).train_images.clone()
    shutil.rmtree(root / "cache")
    decode, seen = images_module.pixels_of, [0]

    def killed(image: Image.Image, form: Form) -> np.ndarray:
        seen[0] += 1
        if seen[0] > 13:  # the training images are written
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(image, form)

    with monkeypatch.context() as patch:
        patch.setattr(images_module, "pixels_of", killed)
        assert Forked(lambda: load(root, None, 12)).wait() == -signal.SIGKILL
    assert [p.suffix for p in (root / "cache/decoded").iterdir() if p.is_dir()] == [".tmp"]
    data = load(root, None, 12)
    assert torch.equal(data.train_images, wanted)
    assert data.notes == ()
    assert len(folders(root)) == 1


def test_many_processes_decode_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = root / "decoded_cache.log"
    write = decoded_cache._write

    def logged(*given: object) -> None:
        with log.open("a") as file:
            file.write("x")
        time.sleep(0.3)  # the others arrive meanwhile
        write(*given)

    monkeypatch.setattr(decoded_cache, "_write", logged)

    def work() -> None:
        data = load(root)
        (root / f"{os.getpid()}.sha").write_text(data.content_sha256)

    assert [process.wait() for process in [Forked(work) for _ in range(6)]] == [0] * 6
    assert log.read_text() == "x"
    assert len({path.read_text() for path in root.glob("*.sha")}) == 1
    assert len(list(root.glob("*.sha"))) == 6


def test_without_a_cache_folder_images_stay_in_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = load(root)
    with monkeypatch.context() as patch:  # what is there already needs no right to write
        patch.setattr(decoded_cache.filelock, "FileLock", None)
        assert load(root).notes == ()
    (root / "file").write_text("")
    monkeypatch.setenv("LTDD_DATA", str(root / "file" / "below"))
    data = load(root)
    assert data.notes[0].startswith("decoded images are kept in memory, because they cannot be")
    assert "Not a directory" in data.notes[0]
    assert torch.equal(data.train_images, cached.train_images)
    assert (data.content_sha256, data.mean) == (cached.content_sha256, cached.mean)


def test_too_little_space_is_found_before_decoding(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1 << 10})
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"expected 0 MiB free in .* got 0 MiB; .*LTDD_DATA"):
        load(root)
    assert folders(root) == []


def test_a_full_disk_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(decoded_cache.os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot keep decoded images in .*: No space left"):
            load(root)
    assert folders(root) == []
    assert load(root).notes == ()


def test_blocks_are_small_and_together_everything(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(root)
    monkeypatch.setattr(images_module, "BLOCK_BYTES", 5 * 3 * 16 * 16)
    monkeypatch.setenv("LTDD_DATA", str(root / "other"))
    largest = [0]
    stack = np.stack

    def watched(arrays: list[np.ndarray]) -> np.ndarray:
        largest[0] = max(largest[0], len(arrays))
        return stack(arrays)

    monkeypatch.setattr(images_module.np, "stack", watched)
    pieces = load(root)
    assert largest == [5]
    assert pieces.content_sha256 == whole.content_sha256
    assert pieces.mean == whole.mean
