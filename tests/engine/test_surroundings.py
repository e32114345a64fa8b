"""Programs without a home, a terminal, streams or memory maps."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_run import distill, smaller

import ltdd
from ltdd.cli.main import main
from ltdd.data.reading.decoded_cache import cache_folder
from ltdd.engine.machine.surroundings import can_be_mapped, shown_on_terminal
from ltdd.engine.watching.progress import Progress
from ltdd.errors import UserError

LTDD = [sys.executable, "-m", "ltdd"]


def as_child(*words: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **{k: v for k, v in environment.items() if v is not None}}
    for name in (k for k, v in environment.items() if v is None):
        given.pop(name, None)
    return subprocess.run([*LTDD, *words], env=given, capture_output=True, text=True)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_class_names_that_a_stream_cannot_hold_are_escaped(tmp_path: Path, encoding: str) -> None:
    from PIL import Image

    for number, name in enumerate(("猫", "собака")):
        for image in range(3):
            path = tmp_path / name / f"{image}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), 50 * image + number).save(path)
    done = as_child(
        "split", "--data", f"imagefolder:{tmp_path}", PYTHONIOENCODING=encoding, PYTHONUTF8="0"
    )
    assert done.returncode == 0
    assert r"\u732b" in done.stdout
    refused = as_child("split", "--data", f"imagefolder:{tmp_path}/猫猫", PYTHONIOENCODING=encoding)
    assert refused.returncode == 2
    assert r"\u732b" in refused.stderr


def test_a_program_without_streams_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert not shown_on_terminal()
        with Progress(2, "work", quiet=False) as progress:
            progress.step()
        patch.setattr(sys, "stdout", None)
        assert main(["split", "--data", "digits"]) == 0
        assert main(["split", "--data", "nothing"]) == 2
        assert sys.stderr is not None


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    assert len(ltdd.load("~/tiny")) == 20
    assert ltdd.export("~/tiny", "imagefolder", "~/exported") == run.parent / "exported"
    monkeypatch.chdir(tmp_path)
    for words in (
        ["verify", "~/tiny"],
        ["report", "~/tiny"],
        ["export", "~/tiny", "--format=imagefolder", "--to=~/second"],
    ):
        assert main(words) == 0, words
    assert (run.parent / "second").is_dir()
    config = dataclasses.replace(smaller(run.parent / "digits"), data="imagefolder:~/digits")
    for name in ("one", "two"):
        distill(Path("~", name), config=config)
    assert main(["compare", "~/one", "~/two", "--to=~/page.html"]) == 0
    assert (run.parent / "page.html").is_file()
    assert list(tmp_path.iterdir()) == []  # no folder of the name ~
    for spec in ("imagefolder:~/no", "npz:~/no", "list:~/no"):
        assert main(["split", f"--data={spec}"]) == 2
        assert str(run.parent / "no") in capsys.readouterr().err


def test_without_a_home_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "LTDD_DATA", "LTDD_STORE", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match=r"environment variable LTDD_DATA, .* got none"):
        cache_folder()
    assert ltdd.RunOptions().store is None
    with pytest.raises(UserError, match="expected a path, got '~/pets'; ~ is nobody's home folder"):
        ltdd.data.load_data("imagefolder:~/pets")


def test_without_a_home_images_are_kept_in_memory(
    class_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltdd.data.reading import decoded_cache

    root = class_folder("pets", {"cat": 4, "dog": 4})  # type: ignore[operator]
    wanted = ltdd.data.load_data(f"imagefolder:{root}")

    def homeless() -> Path:
        raise UserError("expected LTDD_DATA, got none")

    monkeypatch.setattr(decoded_cache, "cache_folder", homeless)
    data = ltdd.data.load_data(f"imagefolder:{root}")
    assert data.content_sha256 == wanted.content_sha256
    assert "kept in memory, because they cannot be cached: expected LTDD_DATA" in data.notes[-1]


def test_files_can_usually_be_mapped(tmp_path: Path) -> None:
    for content in (b"", b"x" * 9):
        (tmp_path / "x").write_bytes(content)
        assert can_be_mapped(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        can_be_mapped(tmp_path / "y")
