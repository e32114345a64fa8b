"""Full, read-only and failing disks: one sentence, status 2, and the last good state."""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import QUIET, TINY, Forked, Outcome, distill, open_to_others, smaller

from ltdd import pipeline, preflight
from ltdd.cli import main, options
from ltdd.cli.commands import distill as distill_command
from ltdd.data.long_tailed_data import load_data
from ltdd.engine.storage import files
from ltdd.engine.storage.files import read_sealed_tensors, write_sealed_tensors
from ltdd.errors import UserError
from ltdd.results.verify import verify


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount memory of a size in KiB as a disk; skips where mounting is not allowed."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        disk = tmp_path / f"disk{len(mounted)}"
        disk.mkdir()
        call = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(call, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def command(out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run ``ltdd distill`` with the tiny configuration."""
    request = options.Request(TINY, out, dataclasses.replace(QUIET, checkpoint_seconds=0.05))
    monkeypatch.setattr(distill_command, "parse_distill", lambda argv: request)
    return main.main(["distill"])


def test_too_small_a_disk_is_found_before_the_start(
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = small_disk(2000)
    assert command(disk / "run", monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("ltdd: error: out: expected about ")
    assert said.count("\n") == 1
    assert list(disk.iterdir()) == []


# The tiny run's files: the first expert is 1.2 MB, its checkpoint 3.
@pytest.mark.parametrize("kib", [400, 2500, 6000])
def test_a_disk_that_fills_up_keeps_the_last_good_state(
    kib: int,
    small_disk: Callable[[int], Path],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipeline, "check_disk_space", lambda *_: 0)
    disk = small_disk(kib)
    assert command(disk / "run", monkeypatch) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert said.count("\n") == 1
    assert [found for found in verify(disk / "run") if found.problem] == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert Forked(lambda: distill(disk / "run")).wait() == 0
    assert Outcome(disk / "run") == Outcome(finished)


def test_the_estimate_covers_what_a_run_writes(finished: Path) -> None:
    written = sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    needed = preflight.estimated_bytes(TINY, load_data(TINY.data, TINY.imbalance_factor))
    assert written < needed < 20 * written


def test_a_read_only_disk(
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = small_disk(64_000)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert command(disk / "run", monkeypatch) == 2
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_system_call_keeps_the_old_file(
    code: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    write_sealed_tensors(path, {"x": torch.ones(3)}, {})

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(UserError, match=f"cannot write .*{os.strerror(code)}"):
        write_sealed_tensors(path, {"x": torch.zeros(3)}, {})
    monkeypatch.undo()
    assert torch.equal(read_sealed_tensors(path)[0]["x"], torch.ones(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)

    def as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(UserError, match="Permission denied"):
            write_sealed_tensors(folder / "x.safetensors", {"x": torch.ones(1)}, {})

    open_to_others(tmp_path)
    assert Forked(as_nobody).wait() == 0


class Unmapped:
    """A disk that answers as some FUSE file systems do: no file of it can be mapped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0

        def refuse(*_: object, **__: object) -> None:
            self.asked += 1
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        monkeypatch.setattr(mmap, "mmap", refuse)
        monkeypatch.setattr(files.safetensors, "safe_open", refuse)


def test_tensors_are_read_where_nothing_can_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "a": torch.arange(6).reshape(2, 3),
        "b": torch.tensor(2.5, dtype=torch.bfloat16),
        "c": torch.zeros(0, 4),
    }
    path = tmp_path / "x.safetensors"
    write_sealed_tensors(path, given, {"about": "Überhund"})
    disk = Unmapped(monkeypatch)
    tensors, metadata = read_sealed_tensors(path)
    assert disk.asked
    assert metadata == {"about": "Überhund"}
    assert set(tensors) == set(given)
    for name, tensor in given.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    content = path.read_bytes()
    for damaged in (b"", content[:9], content[:-3], b"\xff" * 40, bytes(8) + b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"expected a safetensors file|SHA-256"):
            read_sealed_tensors(path)


def test_safetensors_alone_may_be_refused_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    write_sealed_tensors(path, {"x": torch.ones(3)}, {})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(files.safetensors, "safe_open", refuse)
    assert torch.equal(read_sealed_tensors(path)[0]["x"], torch.ones(3))


def test_a_run_where_nothing_can_be_mapped(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    config = smaller(tmp_path / "digits")
    wanted = load_data(config.data)
    disk = Unmapped(monkeypatch)
    assert [found for found in verify(finished) if found.problem] == []
    for _ in range(2):  # made, and found
        data = load_data(config.data)
        assert data.content_sha256 == wanted.content_sha256
        (note,) = data.notes
        assert "read into memory, because the disk of" in note
        assert "cannot map files" in note
        for path in (tmp_path / "cache").rglob("test.npy"):
            os.utime(path)
    distill(tmp_path / "run", config=config)
    assert [found for found in verify(tmp_path / "run") if found.problem] == []
    assert disk.asked > 10
