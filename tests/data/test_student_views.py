"""The schedule of views: replay from seeds, coverage, and labels that match the pixels."""

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ltdd.config import EvaluationConfig
from ltdd.data.augmentation import student_views
from ltdd.data.augmentation.student_views import View, ViewSchedule, mix, mix_labels, render
from ltdd.engine.tensor_trees import leaves
from ltdd.errors import UserError

MEAN, STD = torch.zeros(3), torch.ones(3)


def schedule(
    flip: bool = True, size: int = 8, images: int = 23, **settings: object
) -> ViewSchedule:
    config = dataclasses.replace(EvaluationConfig(batch_size=5, epochs=4), **settings)
    return ViewSchedule(7, images, size, size, flip, config)


def pixels(images: int = 23, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, channels, 8, 8), generator=generator, dtype=torch.uint8)


def rendered(
    plan: ViewSchedule, epoch: int, images: Tensor, mean: Tensor, std: Tensor
) -> Iterator[tuple[View, Tensor]]:
    pictures = next(plan.pictures(images, epoch))
    for view in plan.epoch(epoch):
        yield view, render(view, pictures[view.indices], mean, std)


def same(first: View, second: View) -> bool:
    return all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def test_every_epoch_shows_every_image_once() -> None:
    orders = []
    for epoch in range(3):
        views = list(schedule().epoch(epoch))
        shown = torch.cat([view.indices for view in views])
        assert shown.sort().values.tolist() == list(range(23))
        assert max(len(view.indices) for view in views) == 5
        orders.append(tuple(shown.tolist()))
    assert len(set(orders)) == 3


def test_views_are_addressed_not_advanced() -> None:
    late = list(schedule().epoch(3))
    asked_before = schedule()
    for epoch in (0, 2):
        list(asked_before.epoch(epoch))
    for first, second in zip(late, asked_before.epoch(3), strict=True):
        assert same(first, second)


def test_seed_and_epoch_change_the_views() -> None:
    base = next(schedule().epoch(0))
    assert not same(base, next(schedule().epoch(1)))
    assert not same(base, next(dataclasses.replace(schedule(), seed=8).epoch(0)))


OTHERS = (
    {"augmentation": "padded", "cutmix": False, "mixup": 0.8},
    {"augmentation": "dsa", "cutmix": False},
    {"augmentation": "idc", "cutmix_probability": 0.5},
)
"""Settings of views beside the usual ones."""


@pytest.mark.parametrize("settings", [{}, {"randaugment": True}, *OTHERS])
@pytest.mark.parametrize("channels", [1, 3])
def test_rendering_replays_bit_for_bit(settings: dict[str, object], channels: int) -> None:
    images, plan = pixels(channels=channels), schedule(**settings)
    mean, std = MEAN[:channels], STD[:channels]
    before = torch.random.get_rng_state()
    shown = [batch for _, batch in rendered(plan, 1, images, mean, std)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again = [batch for _, batch in rendered(plan, 1, images, mean, std)]
    for first, second in zip(shown, again, strict=True):
        assert torch.equal(first, second)
        assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("epochs", [1, 3, 16])
def test_changed_pictures_do_not_depend_on_where_training_starts(
    monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    images, plan = pixels(), schedule(randaugment=True, epochs=8)
    alone = list(plan.pictures(images))
    assert len(alone) == 8
    assert len({tuple(shown.flatten().tolist()) for shown in alone}) == 8
    monkeypatch.setitem(student_views.AUGMENTED_BYTES, "cpu", epochs * images.nbytes)
    for first in (0, 5, 7):
        shown = list(plan.pictures(images, first))
        assert len(shown) == 8 - first
        for one, other in zip(shown, alone[first:], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("device", "images", "together"),
    [("cpu", 10, 16), ("cpu", 1000, 1), ("cuda", 10, 64), ("cuda", 500, 43), ("cuda", 100_000, 1)],
)
def test_randaugment_changes_many_epochs_at_once_within_bounds(
    monkeypatch: pytest.MonkeyPatch, device: str, images: int, together: int
) -> None:
    plan, made = schedule(randaugment=True, images=images, epochs=150), []

    def note(own: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        made.append(len(generators))
        return own.new_empty(len(generators), *own.shape)

    monkeypatch.setattr(student_views, "rand_augment", note)
    with FakeTensorMode():  # stands in for a GPU
        own = torch.empty(images, 3, 32, 32, dtype=torch.uint8, device=device)
        assert len(list(plan.pictures(own))) == 150
        assert all(block.start % together == 0 for block in plan.blocks(own))
    whole, rest = divmod(150, together)
    assert made == [together] * whole + [rest] * (rest > 0)
    limit = student_views.AUGMENTED_BYTES[device]
    assert together == 1 or together * own.nbytes <= limit


def test_randaugment_draws_for_every_image() -> None:
    images = pixels(1).expand(40, -1, -1, -1)
    settings = {"crop_min_scale": 1.0, "cutmix": False, "batch_size": 40}
    plain = schedule(False, images=40, randaugment=False, **settings)
    augmented = schedule(False, images=40, randaugment=True, **settings)
    different = [
        len(next(rendered(plan, 0, images, MEAN, STD))[1].unique(dim=0))
        for plan in (plain, augmented)
    ]
    assert different[0] == 1
    assert different[1] > 5


def test_views_that_change_nothing_show_the_normalised_images() -> None:
    images = pixels()
    plan = schedule(False, crop_min_scale=1.0, cutmix=False)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.4, 0.3])
    for view, batch in rendered(plan, 0, images, mean, std):
        assert view.partner is None
        expected = (images[view.indices] / 255 - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(batch, expected, rtol=1e-4, atol=1e-4)


def test_flips_follow_the_setting() -> None:
    assert not any(view.change.mirrored.any() for view in schedule(False).epoch(0))
    assert any(view.change.mirrored.any() for view in schedule(True).epoch(0))


@pytest.mark.parametrize(
    "settings", [{}, {"cutmix": False, "mixup": 0.8}, {"cutmix_probability": 0.5}]
)
def test_mixed_labels_are_the_share_of_the_pixels(settings: dict[str, object]) -> None:
    # Image i is constant; so the mean of a view says how much of which image it shows.
    values = torch.arange(23) * 10
    images = values.to(torch.uint8)[:, None, None, None].expand(23, 3, 8, 8)
    plan, mixes = schedule(**settings), 0
    for epoch in range(4):
        for view, batch in rendered(plan, epoch, images, MEAN, STD):
            shown = batch.mean(dim=(1, 2, 3)) * 255
            labels = mix_labels(view, torch.arange(23), 23)
            torch.testing.assert_close(labels.sum(1), torch.ones(len(view.indices)))
            torch.testing.assert_close(shown, labels @ values.float(), rtol=1e-4, atol=1e-2)
            logits = mix(view, values[view.indices][:, None].float())
            torch.testing.assert_close(logits[:, 0], shown, rtol=1e-4, atol=1e-2)
            mixes += int((labels.max(dim=1).values < 1).sum())
    assert mixes > 30


def test_cutmix_changes_its_share_of_the_batches() -> None:
    plan = schedule(cutmix_probability=0.25)
    mixed = [view.mixing is not None for epoch in range(80) for view in plan.epoch(epoch)]
    assert 0.25 * 400 - 40 < sum(mixed) < 0.25 * 400 + 40
    never = schedule(cutmix_probability=0.0)
    assert all(view.mixing is None for view in never.epoch(0))


def test_mixup_draws_one_share_of_its_distribution_a_batch() -> None:
    plan = schedule(cutmix=False, mixup=0.8)
    shares = [float(view.mixing.kept) for epoch in range(80) for view in plan.epoch(epoch)]
    values = torch.tensor(shares)
    assert len(values.unique()) == 400
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    assert float(values.mean()) == pytest.approx(0.5, abs=0.06)
    assert float(values.var()) == pytest.approx(1 / (4 * 2.6), rel=0.15)


def test_mixup_and_cutmix_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"expected evaluation.cutmix false with evaluation.mixup"):
        schedule(mixup=0.8)


def test_padded_views_move_by_an_eighth_of_the_side_and_show_black_beyond() -> None:
    images, mean, std = pixels(), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.4, 0.3])
    plan, moved = schedule(False, augmentation="padded", cutmix=False), set()
    for view, batch in rendered(plan, 0, images, mean, std):
        shown = (batch * std[:, None, None] + mean[:, None, None]) * 255
        for index, picture in zip(view.indices, shown, strict=True):
            padded = torch.nn.functional.pad(images[index].float(), (1, 1, 1, 1))
            places = [(y, x) for y in range(3) for x in range(3)]
            found = [
                (y, x)
                for y, x in places
                if torch.allclose(picture, padded[:, y : y + 8, x : x + 8], atol=1e-2)
            ]
            assert len(found) == 1
            moved.add(found[0])
    assert len(moved) > 5


@pytest.mark.parametrize("augmentation", ["dsa", "idc"])
def test_dsa_views_are_drawn_from_the_operations_and_never_mirrored_without_flip(
    augmentation: str,
) -> None:
    images = pixels()
    settings = {"augmentation": augmentation, "cutmix": False}
    for flip, operations, expected in (
        (True, ("flip",), {"mirrored"}),
        (False, ("flip", "crop"), {"shift"}),
        (False, ("flip",), set()),
    ):
        plan = schedule(flip, dsa_operations=operations, **settings)
        for view, batch in rendered(plan, 0, images, MEAN, STD):
            drawn = {name for name, value in view.change._asdict().items() if value is not None}
            assert drawn == expected
            plain = images[view.indices] / 255
            if expected != {"shift"}:
                mirrored = view.change.mirrored
                flipped = (
                    torch.zeros(len(plain), dtype=torch.bool) if mirrored is None else mirrored
                )
                plain = torch.where(flipped[:, None, None, None], plain.flip(3), plain)
                torch.testing.assert_close(batch, plain)


def test_unknown_operations_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation.dsa_operations among flip, .*got 'shear'"):
        schedule(dsa_operations=("shear",))


def test_without_cutmix_labels_are_hard() -> None:
    labels = torch.arange(23) % 4
    for view in schedule(cutmix=False).epoch(0):
        expected = torch.nn.functional.one_hot(labels[view.indices], 4).float()
        assert torch.equal(mix_labels(view, labels, 4), expected)


def test_no_batch_of_a_single_image() -> None:
    # Batch norm cannot train on one image whose last maps are one pixel.
    assert min(len(view.indices) for view in schedule(images=21).epoch(0)) > 1
