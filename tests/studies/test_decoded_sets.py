"""Sets whose images hold several training images: what is shown to students, and published."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_run import FINISHED, QUIET

import ltdd
from ltdd import pipeline
from ltdd.config import GradientMatching, Tiled
from ltdd.data.formation import decode_set
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import load_data
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.stage_store import read_stage
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.results.card import write_card
from ltdd.results.distilled_set import load
from ltdd.results.verify import verify
from ltdd.stages import evaluation
from ltdd.studies.evaluate import evaluate

DECODED = dataclasses.replace(
    FINISHED,
    initialization=Tiled(tiles=2, choice="clusters", network="convnet3_w32"),
    recovery=GradientMatching(network="convnet3_w32", outer=1, inner=1, formation=2, real_batch=8),
    evaluation=dataclasses.replace(FINISHED.evaluation, decode=2),
)


@pytest.fixture(scope="module")
def shown() -> dict[str, ImageSet]:
    """What the students of the run were trained on."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shown: dict[str, ImageSet]) -> Path:
    out = tmp_path_factory.mktemp("runs") / "decoded"
    train = evaluation.train_student

    def watch(model: Any, images: ImageSet, *rest: Any) -> Any:
        shown[rest[3].who] = images
        return train(model, images, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "train_student", watch)
        pipeline.distill(DECODED, out, options=QUIET)
    return out


def test_students_are_shown_more_images_than_are_published(
    run: Path, shown: dict[str, ImageSet]
) -> None:
    distilled = load(run)
    assert distilled.labels.bincount().tolist() == [2] * 10
    assert distilled.logits.shape == (20, 10)
    table = distilled.fkd_logits()
    assert table is not None
    assert table.shape == (2, 80, 10)
    wanted = decode_set(ImageSet(distilled.images, distilled.labels), 2)
    assert torch.equal(shown["student"].images, wanted.images)
    assert torch.equal(shown["student"].labels, wanted.labels)


def test_real_images_are_shown_whole(run: Path, shown: dict[str, ImageSet]) -> None:
    data = load_data("digits", 50.0)
    assert len(shown["random_real"].labels) == 20
    for image in shown["random_real"].images:
        assert (data.train_images == image).all(dim=(1, 2, 3)).any()


def test_the_set_is_whole_and_its_card_tells(run: Path, tmp_path: Path) -> None:
    assert [found for found in verify(run) if found.problem] == []
    card = write_card(load(run), tmp_path).read_text(encoding="utf-8")
    assert "An image holds 2 x 2 training images of its class" in card


def test_others_train_the_very_student_of_the_run(run: Path) -> None:
    data = load_data("digits", 50.0)
    runtime = Runtime(torch.device("cpu"), seed=0, quiet=True)
    with runtime.global_stream("evaluation", "student", 0):
        student = build_model("convnet3", 10, 8, 1)
    model, _ = ltdd.train_student(run, student, quiet=True)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (data.mean, data.std))
    predictions = model((data.test_images.float() / 255 - mean) / std).argmax(1)
    stored = [
        read_stage(path).tensors["predictions"]
        for path in (run / "stages").glob("evaluation-*.safetensors")
    ]
    assert any(torch.equal(predictions, table) for table in stored)
    with pytest.raises(UserError, match=r"evaluation\.decode 2 as recovery\.formation"):
        ltdd.train_student(run, student, quiet=True, decode=1)


def test_a_finished_run_is_evaluated_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    train = evaluation.train_student

    def watch(model: Any, images: ImageSet, *rest: Any) -> Any:
        seen.append(len(images.labels))
        return train(model, images, *rest)

    monkeypatch.setattr(evaluation, "train_student", watch)
    for labels in ("static", "online", "hard"):
        evaluate(load(run), ["convnet3_w32"], 1, labels, options=QUIET)  # type: ignore[arg-type]
    assert seen == [80] * 3
