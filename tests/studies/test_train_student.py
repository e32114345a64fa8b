"""Networks of one's own on a distilled set: the students of the run itself, and bad requests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.saved_set import save_set
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import ltdd
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.stage_store import read_stage
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.results.distilled_set import load
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


IMAGES = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
LABELS = torch.arange(20) % 10


def test_test_images_of_any_kind_give_the_same_report(published: Path) -> None:
    """What `from_tensors` takes, and by the same rules."""
    same = [
        (IMAGES, LABELS),
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES[:, 0].float() / 255, LABELS.int()),
        [IMAGES.permute(0, 2, 3, 1).double() / 255, LABELS.tolist()],
    ]
    reports = [
        train_student(published, small(), labels="hard", test=test, quiet=True).report
        for test in same
    ]
    assert reports[0] is not None
    assert all(report == reports[0] for report in reports)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ((IMAGES.float(), LABELS), r"test images as uint8 or .* from 0 to 255, not in \[0, 1\]"),
        ((IMAGES.long(), LABELS), "test images as uint8 or .* got pixels of type int64"),
        ((IMAGES / 127.5 - 1, LABELS), "test images as uint8 or .* from -1 to 1"),
        ((IMAGES / 0.0, LABELS), "test images as uint8 or .* from nan to nan"),
        ((IMAGES.expand(-1, 3, -1, -1), LABELS), r"\(N, 1, 8, 8\)"),
        ((IMAGES[:, :, :4], LABELS), r"\(N, 1, 8, 8\)"),
        ((IMAGES > 128, LABELS), "test images as uint8 or .* got pixels of type bool"),
        (((IMAGES > 128).byte(), LABELS), "test images from 0 to 255, .* got nothing brighter"),
        ((IMAGES, LABELS + 1), "from 0 to 9, got 1 to 10"),
        ((IMAGES, LABELS[:9]), r"\(N,\), got \(20, 1, 8, 8\) and \(9,\)"),
        ((IMAGES, LABELS.float()), "test labels as whole numbers"),
        ((IMAGES, torch.eye(10)[LABELS]), r"test labels as whole numbers .* take argmax\(1\)"),
        ((IMAGES.to("meta"), LABELS), "test images as a tensor or an array with plain values"),
        (IMAGES, r"test as \(images, labels\), got a uint8 Tensor"),
        (TensorDataset(IMAGES, LABELS), "test as .images, labels., got a TensorDataset"),
        ((TensorDataset(IMAGES, LABELS), LABELS), "test images as a tensor or an array"),
    ],
)
def test_test_images_that_do_not_fit_are_refused(published: Path, test: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train_student(published, small(), test=test, quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"labels": "online"}, "expected labels as 'static', 'fkd', 'hard' or None, got 'online'"),
        ({"batch_size": 4}, "expected batch_size = 10, with which the stored labels"),
        ({"augmentation": "dsa"}, "expected augmentation = 'crops', with which the stored labels"),
        ({"epochs": 3}, "expected at most 2 epochs"),
        ({"epochs": 0}, "evaluation.epochs"),
        ({"rate": 1}, "rate"),
        ({"seeds": 3}, "expected no seeds, which only a run reads"),
        ({"student": "resnet18"}, "expected no student, which only a run reads"),
        ({"device": "tpu"}, "expected device as 'auto', 'cpu', 'cuda', got 'tpu'"),
        ({"device": torch.device("cpu")}, "expected device as 'auto', 'cpu', 'cuda', got a device"),
        ({"quiet": 1}, "expected quiet as True or False, got 1"),
    ],
)
def test_bad_requests_are_one_sentence(
    published: Path, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train_student(published, **({"model": small(), "quiet": True} | request_))
    assert "\n" not in str(caught.value)


class Answering(nn.Module):
    """A network whose answer has another form, everywhere or in training only."""

    def __init__(self, form: Callable[[Tensor], Any], only_in_training: bool = False) -> None:
        super().__init__()
        self.body, self.form, self.only_in_training = small(), form, only_in_training

    def forward(self, images: Tensor) -> Any:
        logits = self.body(images)
        return logits if self.only_in_training and not self.training else self.form(logits)


class WithAuxiliary(NamedTuple):
    """What torchvision's GoogLeNet returns in training, and Inception."""

    logits: Tensor
    aux: Tensor | None = None


def refuse(logits: Tensor) -> Tensor:
    raise KeyError("no such layer")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Flatten(), r"from \(2, 1, 8, 8\) to \(2, 10\), got float32 \(2, 64\)"),
        (nn.Linear(3, 10), "got RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (nn.Linear, "expected model as an nn.Module, got the class Linear"),
        ("resnet18", "expected model as an nn.Module, got 'resnet18'; build the network first"),
        (small().double(), "got RuntimeError: .* in evaluation mode"),
        (
            small().requires_grad_(False),
            "got RuntimeError: .* not require grad .* in training",
        ),
        (Answering(lambda x: (x, x)), "got a tuple in evaluation mode"),
        (Answering(lambda x: {"out": x}), "got a dict in evaluation mode"),
        (Answering(lambda x: (x, x), True), "got a tuple in training mode"),
        (Answering(lambda x: x[:1], True), r"got float32 \(1, 10\) in training mode"),
        (Answering(lambda x: x.argmax(1), True), r"got int64 \(2,\) in training mode"),
        (Answering(refuse, True), "got KeyError: 'no such layer' in training mode"),
        (
            nn.Sequential(
                nn.Conv2d(1, 4, 8),
                nn.InstanceNorm2d(4, track_running_stats=True),
                nn.Flatten(),
                nn.Linear(4, 10),
            ),
            "got ValueError: Expected more than 1 spatial element .* in training mode",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_any_work(
    published: Path, model: Any, message: str
) -> None:
    module = isinstance(model, nn.Module)
    before = copy.deepcopy(model.state_dict()) if module else {}
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=message) as caught:
        train_student(published, model, quiet=True)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)
    if module:
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(part.training for part in model.modules())


def test_batches_of_one_image_are_tried_as_such(published: Path) -> None:
    """A batch norm behind the flattening has one value a channel then, in training only."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    train_student(published, model, quiet=True)
    with pytest.raises(UserError, match=r"Expected more than 1 value per channel .* in training"):
        train_student(published, model, labels="static", batch_size=1, quiet=True)


def test_a_trial_leaves_the_training_as_it_was(published: Path) -> None:
    """Dropout draws from torch's generator, which the trial puts back."""
    results = []
    for tried in (False, True):
        model = nn.Sequential(small(), nn.Dropout(0.5))
        torch.manual_seed(5)
        if tried:
            with pytest.raises(UserError):
                train_student(published, nn.Sequential(nn.Dropout(0.5), nn.Flatten()), quiet=True)
        train_student(published, model, quiet=True)
        results.append(model[0][4].weight)
    assert torch.equal(*results)


def test_auxiliary_heads_are_left_aside(published: Path) -> None:
    plain, auxiliary = small(), Answering(lambda x: WithAuxiliary(x, 2 * x), True)
    train_student(published, plain, quiet=True)
    result = train_student(published, auxiliary, test=(IMAGES, LABELS), quiet=True)
    assert result.model is auxiliary
    for mine, theirs in zip(plain.parameters(), auxiliary.body.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    always = Answering(WithAuxiliary)
    assert train_student(published, always, test=(IMAGES, LABELS), quiet=True).report is not None


@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: torch.device("meta"),
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
)
def test_the_settings_of_the_program_around_change_nothing(
    published: Path, surroundings: Callable[[], AbstractContextManager[Any]]
) -> None:
    expected = weights(published)
    model = small()
    with surroundings():
        train_student(published, model, quiet=True)
    got = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(got, expected)


def test_views_without_stored_labels(published: Path, tmp_path: Path) -> None:
    distilled = load(published)
    manifest = distilled.manifest
    save_set(
        tmp_path,
        ImageSet(distilled.images, distilled.labels),
        distilled.logits,
        normalization=distilled.normalization,
        **{
            name: manifest[name]
            for name in ("class_names", "counts", "split_sha256", "config", "student_training")
        },
    )
    with pytest.raises(UserError, match="got only static ones"):
        train_student(tmp_path, small(), labels="fkd", quiet=True)
