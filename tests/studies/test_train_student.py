"""Networks of one's own on a distilled set: the students of the run itself, and bad requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ltdd
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.run_folder import read_stage
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.studies.train_student import train_student


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    return load_data("digits", 50.0, None, "fail")


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 64, 10),
        )  # fmt: skip


def test_it_trains_the_very_student_of_the_run(
    run: Path, published: Path, data: LongTailedData
) -> None:
    """The same initial parameters give the same predictions: one recipe, one loop."""
    runtime = Runtime(torch.device("cpu"), seed=0, quiet=True)
    with runtime.global_stream("evaluation", "student", 0):
        student = build_model("convnet3", 10, 8, 1)
    model, report = ltdd.train_student(
        published, student, test=(data.test_images, data.test_labels), quiet=True
    )
    assert model is student
    assert not model.training
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (data.mean, data.std))
    predictions = model((data.test_images.float() / 255 - mean) / std).argmax(1)
    stored = [
        read_stage(path).tensors["predictions"]
        for path in (run / "stages").glob("evaluation-*.safetensors")
    ]
    assert len(stored) == 2  # the student and the baseline of real images
    agreement = [float((predictions == rows).float().mean()) for rows in stored]
    assert max(agreement) == 1.0
    assert report is not None
    assert report["accuracy"] == pytest.approx(
        float((predictions == data.test_labels).float().mean())
    )
    assert len(report["per_class"]) == 10


@pytest.mark.parametrize("labels", ["static", "fkd", "hard"])
def test_every_kind_of_labels_trains_any_module(published: Path, labels: str) -> None:
    model, report = train_student(published, small(), labels=labels, quiet=True)
    assert report is None
    moved = [
        not torch.equal(a, b) for a, b in zip(model.parameters(), small().parameters(), strict=True)
    ]
    assert all(moved[i] for i in (0, 4, 5))


def weights(folder: Path, **other: Any) -> Tensor:
    model = train_student(folder, small(), quiet=True, **other).model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_labels_and_settings_decide_the_student(published: Path) -> None:
    default = weights(published)
    assert torch.equal(default, weights(published, labels="fkd"))  # where the folder has them
    results = [
        default,
        weights(published, labels="static"),
        weights(published, labels="hard"),
        weights(published, epochs=1),
        weights(published, labels="static", batch_size=4),
    ]
    for i, one in enumerate(results):
        assert not any(torch.equal(one, other) for other in results[i + 1 :])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"labels": "online"}, "expected labels static, fkd or hard, got 'online'"),
        ({"batch_size": 4}, "expected batch_size = 10, with which the stored labels"),
        ({"epochs": 3}, "expected at most 2 epochs"),
        ({"epochs": 0}, "expected evaluation.epochs >= 1"),
        ({"rate": 1}, "unknown field evaluation.'rate'"),
        ({"test": (torch.zeros(2, 3, 8, 8), torch.zeros(2).long())}, r"\(N, 1, 8, 8\)"),
        ({"test": (torch.zeros(2, 1, 8, 8), torch.full((2,), 10))}, "0 to 9, got 10 to 10"),
        ({"test": (torch.zeros(0, 1, 8, 8), torch.zeros(0).long())}, "0 to 9, got none"),
        ({"model": nn.Flatten()}, r"from \(2, 1, 8, 8\) to \(2, 10\), got \(2, 64\)"),
        ({"model": nn.Linear(3, 10)}, "got mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_bad_requests_are_one_sentence(
    published: Path, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_student(published, **({"model": small(), "quiet": True} | request_))


def test_views_without_stored_labels(colour: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(360, 4))
    with pytest.raises(UserError, match="got only static ones"):
        train_student(colour, model, labels="fkd", quiet=True)
