"""NaN stops with stage, step and tensor; data without variance do not make one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from faults.tiny_run import TINY, distill
from PIL import Image

from ltdd import pipeline
from ltdd.artifacts import load
from ltdd.errors import UserError
from ltdd.verify import verify


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("experts", {"learning_rate": 1e20}, r"experts: observer: expected a finite loss at step"),
        ("recovery", {"alignment_weight": 1e38, "learning_rate": 1e30}, r"recovery: expected"),
        ("evaluation", {"learning_rate": 1e25}, r"evaluation: student: expected a finite loss"),
    ],
)
def test_diverging_stages_stop_and_keep_what_is_good(
    stage: str, change: dict[str, float], said: str, tmp_path: Path
) -> None:
    settings = dataclasses.replace(getattr(TINY, stage), **change)
    with pytest.raises(UserError, match=said) as failure:
        pipeline.distill(dataclasses.replace(TINY, **{stage: settings}), tmp_path, quiet=True)
    assert "\n" not in str(failure.value)
    assert [found for found in verify(tmp_path) if found.problem] == []


def test_constant_images_and_one_image_a_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("black", "grey", "white")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (8, 8), 127 * number).save(tmp_path / part / name / "only.png")
    config = dataclasses.replace(TINY, data=f"imagefolder:{tmp_path}", imbalance_factor=None)
    results = pipeline.distill(config, tmp_path / "run", quiet=True)
    assert 0 <= results["student"]["accuracy"]["mean"] <= 1
    assert bool(torch.isfinite(load(tmp_path / "run").logits).all())


def test_all_images_alike(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / name / f"{number}.png")
    config = dataclasses.replace(TINY, data=f"imagefolder:{tmp_path}", imbalance_factor=None)
    pipeline.distill(config, tmp_path / "run", quiet=True)
    assert load(tmp_path / "run").images.shape == (4, 3, 8, 8)


def test_a_finished_run_does_nothing_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "stages").iterdir()}
    distill(finished)
    assert {path: path.stat().st_mtime_ns for path in (finished / "stages").iterdir()} == before
