"""Soft labels: stored labels of replayed views equal those of a teacher asked online."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from ltdd.config import EvaluationConfig, RelabelingConfig
from ltdd.data.augmentation.student_views import ViewSchedule, mix, render
from ltdd.data.image_spec import Normalization
from ltdd.data.packed_logits import PackedLogits
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.stages import relabeling
from ltdd.stages.label_sources import OnlineLabels, StaticLabels, StoredLabels
from ltdd.stages.relabeling import label_views, view_settings

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
MEAN, STD = NORMALIZATION.tensors()


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (13, 3, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_model("convnet3_bn", 4, 8, 3)
    return net.to(memory_format=torch.channels_last).train()


def schedule(**settings: object) -> ViewSchedule:
    config = dataclasses.replace(EvaluationConfig(epochs=3, batch_size=5), **settings)
    return ViewSchedule(2, 13, 8, 8, True, config)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"randaugment": True},
        {"augmentation": "padded", "cutmix": False, "mixup": 0.8},
        {"augmentation": "dsa"},
        {"augmentation": "idc", "cutmix_probability": 0.5},
    ],
)
def test_stored_labels_are_those_of_the_online_teacher(
    images: Tensor,
    teacher: nn.Module,
    runtime: Runtime,
    precision: str,
    settings: dict[str, object],
) -> None:
    """To a last digit of float16: a CPU may convolve 39 views otherwise than five."""
    runtime = dataclasses.replace(runtime, precision=precision)
    plan = schedule(**settings)
    table = label_views(images, [teacher], plan, NORMALIZATION, runtime)
    assert table.shape == (3, 13, 4)
    assert table.dtype == torch.float16
    stored, online = StoredLabels(PackedLogits(table, 4)), OnlineLabels(teacher, runtime)
    for epoch, pictures in enumerate(plan.pictures(images)):
        first = 0
        for view in plan.epoch(epoch):
            batch = render(view, pictures[view.indices], MEAN, STD)
            labels = stored.logits(view, batch, stored.rows(epoch, first, len(view.indices)))
            assert labels.dtype == torch.float32
            told = online.logits(view, batch, online.rows(epoch, 0, 5))
            digit = 2**-10 if precision == "fp32" else 2**-7
            torch.testing.assert_close(labels, told, rtol=digit, atol=1e-6)
            first += len(view.indices)
    assert len(table.flatten(0, 1).unique(dim=0)) == 39


def test_labeling_again_gives_the_same_bits(
    images: Tensor, teacher: nn.Module, runtime: Runtime
) -> None:
    first = label_views(images, [teacher], schedule(), NORMALIZATION, runtime)
    assert torch.equal(label_views(images, [teacher], schedule(), NORMALIZATION, runtime), first)


@pytest.mark.parametrize("views", [1, 2, 3, 7, 100], ids=lambda views: f"{views} views")
def test_labels_of_many_views_at_once_are_those_of_each(
    monkeypatch: pytest.MonkeyPatch,
    images: Tensor,
    teacher: nn.Module,
    runtime: Runtime,
    views: int,
) -> None:
    """Parts of an epoch, several epochs, more than there are: every row has its place."""
    plan = schedule(randaugment=True)
    monkeypatch.setattr(relabeling, "VALUES_TOGETHER", views * 5 * images[0].numel())
    table = label_views(images, [teacher], plan, NORMALIZATION, runtime)
    asked = OnlineLabels(teacher, runtime)
    for epoch, pictures in enumerate(plan.pictures(images)):
        shown = [
            (view, render(view, pictures[view.indices], MEAN, STD)) for view in plan.epoch(epoch)
        ]
        answers = [asked.logits(view, batch, torch.empty(0)) for view, batch in shown]
        torch.testing.assert_close(table[epoch].float(), torch.cat(answers), rtol=1e-3, atol=1e-3)


def test_the_teacher_is_in_evaluation_mode(
    images: Tensor, teacher: nn.Module, runtime: Runtime
) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    label_views(images, [teacher], schedule(), NORMALIZATION, runtime)
    OnlineLabels(teacher.train(), runtime)
    assert not teacher.training
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_labels_of_plain_views_are_the_static_ones(
    images: Tensor, teacher: nn.Module, runtime: Runtime
) -> None:
    plan = dataclasses.replace(schedule(cutmix=False, crop_min_scale=1.0), flip=False)
    table = label_views(images, [teacher], plan, NORMALIZATION, runtime)
    normal = (images / 255 - MEAN[:, None, None]) / STD[:, None, None]
    with torch.no_grad():
        logits = teacher.eval()(normal)
    order = torch.cat([view.indices for view in plan.epoch(1)])
    torch.testing.assert_close(table[1].float(), logits[order], rtol=2e-3, atol=2e-3)


def test_static_labels_are_mixed_like_the_images() -> None:
    logits = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    source = StaticLabels(logits, torch.device("cpu"))
    for view in schedule().epoch(0):
        labels = source.logits(view, torch.empty(0), source.rows(0, 0, 5))
        assert torch.equal(labels, mix(view, logits[view.indices]))
        kept = view.mixing.kept
        expected = kept * logits[view.indices] + (1 - kept) * logits[view.indices[view.partner]]
        torch.testing.assert_close(labels, expected)


def test_only_what_changes_views_is_in_the_key_of_their_labels() -> None:
    usual = EvaluationConfig(epochs=3, loss="kl", temperature=4.0)
    assert view_settings(usual) == {"epochs": 3}
    other = dataclasses.replace(usual, augmentation="dsa", cutmix_probability=0.5)
    assert view_settings(other) == {
        "epochs": 3,
        "augmentation": "dsa",
        "cutmix_probability": 0.5,
    }


def test_a_teacher_may_normalise_by_the_students_batch(
    images: Tensor, teacher: nn.Module, runtime: Runtime
) -> None:
    """As a teacher that was left in training mode does; its own statistics stay as they are."""
    plan = schedule()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    table = label_views(images, [teacher], plan, NORMALIZATION, runtime, "batch")
    online = OnlineLabels(teacher, runtime, mode="batch")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    training = copy.deepcopy(teacher).train()
    first = 0
    for view in plan.epoch(0):
        batch = render(view, images[view.indices], MEAN, STD)
        labels = table[0, first : first + len(view.indices)].float()
        first += len(view.indices)
        assert torch.equal(labels, online.logits(view, batch, torch.empty(0)))
        with torch.no_grad():
            torch.testing.assert_close(labels, training(batch), rtol=2e-3, atol=2e-3)
        # An image's label depends on its batch.
        alone = online.logits(view, batch[:2], torch.empty(0))
        assert not torch.allclose(alone, labels[:2], atol=0.05)


def test_a_batch_is_never_shown_in_parts_to_a_teacher_that_normalises_by_it(
    images: Tensor, teacher: nn.Module, runtime: Runtime
) -> None:
    class Small(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            if len(batch) > 2:
                raise MemoryError
            return batch.mean((2, 3))

    assert label_views(images, [Small()], schedule(), NORMALIZATION, runtime).shape == (3, 13, 3)
    with pytest.raises(UserError, match=r"memory for a whole batch.*--evaluation\.batch_size"):
        label_views(images, [Small()], schedule(), NORMALIZATION, runtime, "batch")


def test_static_labels_have_no_batch() -> None:
    with pytest.raises(UserError, match="fkd or online with teacher_mode batch, got 'static'"):
        RelabelingConfig(labels="static", teacher_mode="batch")
