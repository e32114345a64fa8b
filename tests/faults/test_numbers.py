"""NaN stops with stage, step and tensor; data without variance do not make one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import QUIET, TINY, distill
from PIL import Image
from torch import nn

from ltdd import pipeline
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.inference import predict_logits
from ltdd.results.distilled_set import load
from ltdd.results.verify import verify
from ltdd.stages.initialization import initial_images
from ltdd.stages.recovery.alignment import Observed, align_images
from ltdd.stages.relabeling import label_views
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics


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
        pipeline.distill(dataclasses.replace(TINY, **{stage: settings}), tmp_path, options=QUIET)
    assert "\n" not in str(failure.value)
    assert [found for found in verify(tmp_path) if found.problem] == []


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    return load_data(TINY.data, TINY.imbalance_factor)


def network(data: LongTailedData, damage: float) -> nn.Module:
    """Return a network in which one number has been replaced."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("convnet3_bn", data.num_classes, data.image_size, data.channels)
    parameters = dict(model.named_parameters())
    damaged = parameters["classifier.bias" if damage == 1e6 else "body.1.0.weight"]
    damaged.data.view(-1)[0] = damage
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_frozen_networks_that_give_no_numbers_stop_every_stage(
    damage: float, data: LongTailedData
) -> None:
    good, bad = network(data, 0.5), network(data, damage)
    runtime = Runtime(torch.device("cpu"), quiet=True)
    images, labels = data.test_images[:20], torch.arange(10).repeat_interleave(2)
    views = ViewSchedule(0, 20, 8, 8, False, TINY.evaluation)
    # The damage is behind the first batch norm, in front of the second.
    with pytest.raises(UserError, match=r"^statistics: expected a finite moment of layer 1 at"):
        class_statistics(bad, data, TINY.statistics, runtime)
    with pytest.raises(UserError, match=r"^initialization: class 0: expected finite logits, got"):
        initial_images(bad, data, 2, TINY.initialization, runtime)
    statistics = class_statistics(good, data, TINY.statistics, runtime)
    start = InitialImages(images / 255, labels, torch.full_like(labels, -1))
    observed, spec = [Observed(bad, statistics)], data.spec(flip=False)
    with pytest.raises(UserError, match=r"^recovery: expected a finite loss at step 0, got"):
        align_images(start, observed, spec, TINY.recovery, TINY.statistics, runtime)
    with pytest.raises(UserError, match=r"^relabeling: epoch 0: expected finite logits, got"):
        label_views(images, [bad], views, data.normalization, runtime)
    with pytest.raises(UserError, match=r"^inference: expected finite logits, .* for image 0"):
        predict_logits(bad, images, data.normalization, runtime)


def test_logits_that_float16_cannot_hold_stop_relabeling(data: LongTailedData) -> None:
    views = ViewSchedule(0, 20, 8, 8, False, TINY.evaluation)
    runtime = Runtime(torch.device("cpu"), quiet=True)
    with pytest.raises(UserError, match=r"^relabeling: epoch 0: expected finite logits"):
        label_views(data.test_images[:20], [network(data, 1e6)], views, data.normalization, runtime)


def test_constant_images_and_one_image_a_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("black", "grey", "white")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (8, 8), 127 * number).save(tmp_path / part / name / "only.png")
    config = dataclasses.replace(TINY, data=f"imagefolder:{tmp_path}", imbalance_factor=None)
    results = pipeline.distill(config, tmp_path / "run", options=QUIET)
    assert 0 <= results["student"]["accuracy"]["mean"] <= 1
    assert bool(torch.isfinite(load(tmp_path / "run").logits).all())


def test_all_images_alike(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / name / f"{number}.png")
    config = dataclasses.replace(TINY, data=f"imagefolder:{tmp_path}", imbalance_factor=None)
    pipeline.distill(config, tmp_path / "run", options=QUIET)
    assert load(tmp_path / "run").images.shape == (4, 3, 8, 8)


def test_a_finished_run_does_nothing_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "stages").iterdir()}
    distill(finished)
    assert {path: path.stat().st_mtime_ns for path in (finished / "stages").iterdir()} == before
