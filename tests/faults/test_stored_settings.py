"""Stored settings and folders of runs that were changed or damaged, and settings at their edge."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusal import command_refused
from helpers.tiny_run import TINY, smaller

from ltdd.config import DistillConfig
from ltdd.data.long_tailed_data import load_data
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.files import fingerprint, write_json
from ltdd.engine.turns import finished
from ltdd.errors import UserError
from ltdd.stages.experts.training import train_expert

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
    path = next((out / "stages").glob("experts-*.safetensors"))
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
    command_refused(capsys, "evaluate", out, "--quiet")


@pytest.mark.parametrize("epochs", [1, 2, 4, 5])
def test_one_cycle_of_few_steps(epochs: int, tmp_path: Path) -> None:
    data = load_data(smaller(tmp_path).data)
    config = dataclasses.replace(TINY.experts, epochs=epochs, batch_size=len(data.train_labels))
    runtime = Runtime(torch.device("cpu"), quiet=True)
    finished(train_expert("observer", "convnet3_bn", data, config, False, runtime))
