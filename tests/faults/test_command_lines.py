"""Whatever a user types or whatever a folder holds: one sentence, never a traceback."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_run import TINY, smaller

from ltdd.cli import main
from ltdd.config import DistillConfig
from ltdd.data.long_tailed_data import load_data
from ltdd.engine.files import fingerprint, write_json
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.stages.experts import train_expert


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must fail; return its one sentence."""
    assert main.main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ltdd: error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a\0b"], "cannot create"),
        (["--out", "/dev/null/run"], "cannot create"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "/proc/run"], "free in /proc"),
        (["--data", "imagefolder:a\0b"], "got nothing there"),
        (["--data", "imagefolder:/dev/zero"], "got a file"),
        (["--experts.nesterov", "true", "--experts.momentum", "0"], "momentum > 0"),
        (["--ipc", 10**12], "MiB free in"),
        (["--seed", 2**64], "seed between"),
        (["--recovery.learning_rate", "1e999"], "recovery.learning_rate"),
        (["--evaluation.baselines", "[[1]]"], "evaluation.baselines"),
        (["--config", "/"], "Is a directory"),
        (["--deterministic", "perhaps"], "true or false"),
    ],
    ids=lambda value: "",
)
def test_bad_options(
    words: list[object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in words else ["--out", tmp_path / "run"]
    options = ["--experts.observer", "convnet3_bn", "--quiet"]
    assert said in refused(capsys, "distill", *out, *options, *words)


@pytest.mark.parametrize(
    "yaml",
    [
        b"\xff\xfe\x00",
        b"- a\n",
        b"experts: 3\n",
        b"a: &a [*a]\n",
        b"experts: {epochs: null}\n",
        b"data: !!python/object/apply:os.mkdir [pwned]\n",
        b"ipc: [1, 2]\n",
        b"{" * 3000,
    ],
    ids=lambda value: "",
)
def test_bad_config_files(
    yaml: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(yaml)
    refused(capsys, "distill", "--out", tmp_path / "run", "--config", tmp_path / "bad.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


FIELDS: dict[str, Any] = {
    "experts": {"epochs": "many"},
    "recovery": {"iterations": 1.5},
    "statistics": {"batch_size": True},
    "evaluation": {"cutmix": "no", "baselines": []},
    "data": 7,
    "ipc": None,
    "horizontal_flip": 1,
    "device": ["cpu"],
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_stored_configuration_of_other_types_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"^config: expected {name}"):
        DistillConfig.from_dict(TINY.to_dict() | {name: FIELDS[name]})
    assert DistillConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def without_stages(out: Path) -> None:
    shutil.rmtree(out / "stages")


def stages_as_file(out: Path) -> None:
    shutil.rmtree(out / "stages")
    (out / "stages").write_text("")


def stage_as_folder(out: Path) -> None:
    (path,) = (out / "stages").glob("recovery-*.safetensors")
    path.unlink()
    path.mkdir()


def events_as_folder(out: Path) -> None:
    (out / "events.jsonl").unlink()
    (out / "events.jsonl").mkdir()


def other_manifest(change: dict[str, Any]) -> Callable[[Path], None]:
    """Change a manifest as somebody who knows its hash could."""

    def write(out: Path) -> None:
        manifest = json.loads((out / "manifest.json").read_text()) | change
        del manifest["manifest_sha256"]
        manifest["manifest_sha256"] = fingerprint(manifest)
        write_json(out / "manifest.json", manifest)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        without_stages,
        stages_as_file,
        stage_as_folder,
        events_as_folder,
        other_manifest({"config": {"evaluation": {"seeds": "x"}}}),
        other_manifest({"config": {"experts": 3}}),
        other_manifest({"config": []}),
        other_manifest({"split_sha256": 3}),
    ],
)
def test_evaluate_refuses_damaged_folders(
    damage: Callable[[Path], None],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    damage(out)
    refused(capsys, "evaluate", out, "--quiet")


@pytest.mark.parametrize("epochs", [1, 2, 4, 5])
def test_one_cycle_of_few_steps(epochs: int, tmp_path: Path) -> None:
    data = load_data(smaller(tmp_path).data)
    config = dataclasses.replace(TINY.experts, epochs=epochs, batch_size=len(data.train_labels))
    runtime = Runtime(torch.device("cpu"), quiet=True)
    train_expert("observer", "convnet3_bn", data, config, False, runtime)
