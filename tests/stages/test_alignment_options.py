"""What makes recovery that of SRe2L, EDC or G-VBSM: views, order, estimate, class part, terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stripes import make_data
from torch import Tensor, nn

import ltdd_ext
from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.data.augmentation.crops import Crops, Windows, normalize
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.runtime import Runtime
from ltdd.models.observer import Observer
from ltdd.stages.alignment_targets import LayerStatistics, layer_targets
from ltdd.stages.recovery.aim import Aim, RunningEstimate
from ltdd.stages.recovery.alignment import Observed, align_images
from ltdd.stages.recovery.batches import plan_batches
from ltdd.stages.recovery.eigenvalues import eigenvalue_loss
from ltdd.stages.recovery.views import Shown, draw, show
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics

EDC = StatisticsConfig(layers="batch_norm_and_conv", global_target="running", class_target="edc")
SRE2L = StatisticsConfig(global_target="running")


@pytest.fixture(scope="module")
def tail() -> LongTailedData:
    return make_data((5, 2, 1))


# Order of the images.


def test_one_image_of_every_class_is_a_batch() -> None:
    batches = plan_batches(3, 4, 1000, "one_per_class")
    assert [batch.tolist() for batch in batches] == [[k, k + 4, k + 8] for k in range(4)]
    assert max(len(batch) for batch in plan_batches(30, 2, 8, "one_per_class")) == 8


def test_class_after_class() -> None:
    batches = plan_batches(3, 4, 5, "class_major")
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


# Views.


def shown_of(count: int, roll: list[int] | None = None, windows: Windows | None = None) -> Shown:
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, 4)
    crops = Crops(whole, torch.zeros(count, dtype=torch.bool))
    return Shown(crops, windows, None if roll is None else torch.tensor(roll))


def test_views_are_rolled_and_moved() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rolled = show(images, shown_of(2, [3, 1]), 0)
    torch.testing.assert_close(rolled, images.roll((3, 1), (2, 3)))
    corners = torch.tensor([[[0], [4]], [[2], [4]]])  # top, then left, of windows 2 pixels around
    moved = show(images, shown_of(2, None, Windows(corners, torch.zeros(2, dtype=torch.bool))), 2)
    torch.testing.assert_close(moved[0, :, 2:, :], images[0, :, :6, :])
    torch.testing.assert_close(moved[1, :, :6, :6], images[1, :, 2:, 2:])
    assert float(moved[0, :, :2].abs().max()) == 0


def test_rolls_and_paddings_are_scaled_and_change_no_other_draw(tail: LongTailedData) -> None:
    spec, plain = tail.spec(flip=True), RecoveryConfig()
    rolls, tops = [], []
    for seed in range(40):
        config = dataclasses.replace(plain, jitter=32, crop_padding=8)
        drawn = draw(5, spec, config, torch.Generator().manual_seed(seed))
        same = draw(5, spec, plain, torch.Generator().manual_seed(seed))
        assert torch.equal(drawn.crops.boxes, same.crops.boxes)
        assert drawn.roll is not None
        assert drawn.windows is not None
        rolls.append(drawn.roll)
        tops.append(drawn.windows.corners.flatten())
    # 8 pixels a side are a quarter of 32: rolls by up to 8, windows up to 2 pixels off.
    assert (int(torch.stack(rolls).min()), int(torch.stack(rolls).max())) == (0, 8)
    assert (int(torch.stack(tops).min()), int(torch.stack(tops).max())) == (0, 4)
    assert (same.roll, same.windows) == (None, None)


def test_mirroring_can_be_left_out(tail: LongTailedData) -> None:
    def mirrored(**settings: Any) -> bool:
        config = RecoveryConfig(**settings)
        drawn = draw(50, tail.spec(flip=True), config, torch.Generator().manual_seed(0))
        return bool(drawn.crops.mirrored.any())

    assert mirrored()
    assert not mirrored(mirror=False)


# Terms.


def test_the_eigenvalue_term_is_numpys() -> None:
    images = 0.3 * torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    groups = [torch.tensor([0, 3, 4]), torch.tensor([1, 5]), torch.tensor([2])]
    total = 0.0
    for members in groups:
        rows = images[members].flatten(1).double().numpy()
        values = np.linalg.eigvalsh(rows @ rows.T)
        sharp, flat = (np.exp(v - v.max()) for v in (values, values / 4))
        sharp, flat = sharp / sharp.sum(), flat / flat.sum()
        total += float((flat * np.log(flat / sharp)).sum())
    assert float(eigenvalue_loss(images, groups)) == pytest.approx(total, rel=1e-9)
    assert float(eigenvalue_loss(images, groups[2:])) == 0


def test_the_gradient_of_the_eigenvalue_term_evens_them_out() -> None:
    """By an eigenvalue it is softmax(e) - softmax(e / 4): the largest falls, the smallest rises."""
    basis = torch.eye(3, 12).double()
    lengths = torch.tensor([1.0, 1.2, 1.5], dtype=torch.float64, requires_grad=True)
    images = (lengths[:, None] * basis).view(3, 3, 2, 2)  # eigenvalues are squared lengths
    (gradient,) = torch.autograd.grad(
        eigenvalue_loss(images, [torch.arange(3)]), lengths, retain_graph=True
    )
    values = lengths.detach().square()
    expected = (values.softmax(0) - (values / 4).softmax(0)) * 2 * lengths.detach()
    torch.testing.assert_close(gradient, expected)
    assert gradient[0] < 0 < gradient[2]


def test_equal_images_have_a_finite_gradient() -> None:
    images = torch.full((4, 1, 3, 3), 0.5, requires_grad=True)
    eigenvalue_loss(images, [torch.arange(4)]).backward()
    assert torch.isfinite(images.grad).all()


# Targets and the distance to them.


def seen(
    observer: nn.Module, images: Tensor, data: LongTailedData, layers: Any
) -> tuple[Observer, list[Tensor], list[Tensor], list[int]]:
    recorder = Observer(observer, ltdd_ext.reference, layers)
    with torch.no_grad():
        _, moments = recorder(normalize(images, torch.tensor(data.mean), torch.tensor(data.std)))
    return (
        recorder,
        [rows.mean for rows in moments],
        [rows.m2 for rows in moments],
        [rows.spatial_size for rows in moments],
    )


def population(means: list[Tensor], m2s: list[Tensor], sizes: list[int]) -> list[Any]:
    """Mean and variance of the batch, layer by layer."""
    pairs = []
    for mean, m2, size in zip(means, m2s, sizes, strict=True):
        whole = mean.mean(0)
        pairs.append((whole, (m2 / size + (mean - whole).square()).mean(0)))
    return pairs


def test_the_pooled_class_part_is_the_mean_over_the_labels(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    statistics = class_statistics(observer, tail, EDC, runtime)
    labels = torch.tensor([0, 0, 0, 2])
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    recorder, means, m2s, sizes = seen(observer, images, tail, EDC.layers)
    config = RecoveryConfig(class_part="pooled", patch_weight=0.5, class_alignment_weight=2.0)
    aim = Aim(recorder, statistics, None, labels, config, EDC, runtime)
    expected = 0.0
    batch = population(means, m2s, sizes)
    for entry, layer, (mean, var) in zip(recorder.watched, statistics, batch, strict=True):
        weight = (10.0 if entry.name == "0" else 1.0) * (0.5 if entry.kind == "patches" else 1.0)
        own = (
            (layer.running_mean, layer.running_var, 1.0),
            (layer.mean[labels].mean(0), layer.within[labels].mean(0), 2.0),
        )
        for to_mean, to_var, share in own:
            gap = float((mean - to_mean).norm() + (var - to_var).norm())
            expected += weight * share * gap
    actual = float(aim.alignment(means, m2s, sizes, None))
    assert actual == pytest.approx(expected, rel=1e-5)


def test_in_a_batch_of_one_class_both_class_parts_are_the_same(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    statistics = class_statistics(observer, tail, EDC, runtime)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    recorder, *rows = seen(observer, images, tail, EDC.layers)
    each: dict[int, float] = {}
    for label, part in ((0, "each"), (2, "each"), (0, "pooled"), (2, "pooled")):
        labels = torch.full((3,), label)
        config = RecoveryConfig(class_part=part, class_alignment_weight=1.0)
        value = float(
            Aim(recorder, statistics, None, labels, config, EDC, runtime).alignment(*rows, None)
        )
        if part == "each":
            each[label] = value
        else:
            assert value == pytest.approx(each[label], rel=1e-6)
    assert each[0] != pytest.approx(each[2], rel=1e-3)


def test_the_estimate_starts_with_the_first_batch_and_then_moves_by_a_fifth(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    statistics = class_statistics(observer, tail, SRE2L, runtime)
    labels = torch.tensor([0, 1, 2])
    config = RecoveryConfig(class_alignment_weight=0.0, first_layer_weight=1.0)
    estimate = RunningEstimate([6, 8], 0.8, runtime.device)
    kept: list[Any] | None = None
    for seed in range(3):
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        recorder, means, m2s, sizes = seen(observer, images / (seed + 1), tail, "batch_norm")
        batch = population(means, m2s, sizes)
        kept = (
            batch
            if kept is None
            else [
                tuple(0.8 * old + 0.2 * new for old, new in zip(*pair, strict=True))
                for pair in zip(kept, batch, strict=True)
            ]
        )
        aim = Aim(recorder, statistics, estimate, labels, config, SRE2L, runtime)
        rows = [mean.clone().requires_grad_() for mean in means]
        loss = aim.alignment(rows, m2s, sizes, None)
        aim.keep_estimate()
        expected = sum(
            float((mean - layer.running_mean).norm() + (var - layer.running_var).norm())
            for layer, (mean, var) in zip(statistics, kept, strict=True)
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        # The gradient is that of the batch's own mean, in the direction of the estimate's gap.
        (gradient,) = torch.autograd.grad(loss, rows[1])
        way = kept[1][0] - statistics[1].running_mean
        spread = kept[1][1] - statistics[1].running_var
        mean_gap = (rows[1] - rows[1].mean(0)).detach()
        wanted = (way / way.norm() + 2 * mean_gap * spread / spread.norm()) / len(labels)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_dropped_convolutions_count_nothing(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    statistics = class_statistics(observer, tail, EDC, runtime)
    labels = torch.tensor([0, 1, 2])
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    recorder, *rows = seen(observer, images, tail, EDC.layers)

    def value(hook_drop: float, kept: Callable[[Aim], Any], **settings: Any) -> float:
        config = RecoveryConfig(hook_drop=hook_drop, class_part="pooled", **settings)
        aim = Aim(recorder, statistics, None, labels, config, EDC, runtime)
        return float(aim.alignment(*rows, kept(aim)))

    stream = torch.Generator().manual_seed(0)
    every = value(0.0, lambda aim: aim.draw_kept(stream))
    norms = value(1.0, lambda aim: aim.draw_kept(stream))
    first = value(0.4, lambda _: ("0", "1", "5"))
    assert norms == pytest.approx(value(0.4, lambda _: ("1", "5")))
    assert norms < first < every
    # Four of ten are dropped, batch norms never.
    config = RecoveryConfig(hook_drop=0.4)
    aim = Aim(recorder, statistics, None, labels, config, EDC, runtime)
    drawn = [aim.draw_kept(stream) or () for _ in range(2000)]
    for name in ("0", "4"):
        assert sum(name in kept for kept in drawn) / 2000 == pytest.approx(0.6, abs=0.05)
    assert all({"1", "5"} <= set(kept) for kept in drawn)


def test_a_batch_that_is_the_data_set_is_aligned_with_its_running_statistics(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    """SRe2L: the running statistics are those of the whole set, and so is the batch."""
    batch = (tail.train_images, tail, "batch_norm")
    for _ in range(2):  # the second layer sees what the first one's statistics make of the images
        recorder, *rows = seen(observer, *batch)
        for layer, (mean, var) in zip((observer[1], observer[5]), population(*rows), strict=True):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var)
    recorder, *rows = seen(observer, *batch)
    config = RecoveryConfig(class_alignment_weight=0.0)
    statistics = class_statistics(observer, tail, SRE2L, runtime)
    aim = Aim(recorder, statistics, None, tail.train_labels, config, SRE2L, runtime)
    assert float(aim.alignment(*rows, None)) < 1e-4
    assert float(aim.alignment([mean + 0.1 for mean in rows[0]], *rows[1:], None)) > 0.1


def test_the_running_target_of_a_convolution_is_that_of_the_whole_set(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    """EDC's convolutions and patches: a batch that is the data set has distance 0 to them."""
    statistics = class_statistics(observer, tail, EDC, runtime)
    recorder, *rows = seen(observer, tail.train_images, tail, EDC.layers)
    for entry, layer, (mean, var) in zip(
        recorder.watched, statistics, population(*rows), strict=True
    ):
        if entry.kind != "batch_norm":
            torch.testing.assert_close(mean, layer.running_mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(var, layer.running_var, rtol=1e-4, atol=1e-5)
            counts = torch.tensor([5, 2, 1])
            mixture = layer_targets(layer, counts, StatisticsConfig())
            torch.testing.assert_close(mixture.var, layer.running_var.float())


# Whole recoveries, from noise, of classes of 5, 2 and 1 images.

METHODS: dict[str, tuple[StatisticsConfig, dict[str, Any]]] = {
    "sre2l": (
        SRE2L,
        {"order": "one_per_class", "class_alignment_weight": 0.0, "mirror": False, "jitter": 4,
         "crop_min_scale": 1.0, "learning_rate": 0.25},
    ),
    "edc": (
        EDC,
        {"order": "class_major", "class_part": "pooled", "momentum": 0.8, "max_batch": 5,
         "crop_min_scale": 0.5},
    ),
    "g_vbsm": (
        dataclasses.replace(EDC, class_target="finite"),
        {"order": "class_major", "class_alignment_weight": 0.0, "momentum": 0.8,
         "hook_drop": 0.4, "eigen_weight": 1.0, "jitter": 32, "crop_padding": 4,
         "crop_min_scale": 1.0},
    ),
}  # fmt: skip


@pytest.fixture(params=METHODS)
def problem(
    request: pytest.FixtureRequest, tail: LongTailedData, observer: nn.Module, runtime: Runtime
) -> dict[str, Any]:
    targets, settings = METHODS[request.param]
    statistics: list[LayerStatistics] = class_statistics(observer, tail, targets, runtime)
    labels = torch.arange(3).repeat_interleave(4)
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "start": InitialImages(images, labels, torch.full_like(labels, -1)),
        "observers": [Observed(observer, statistics)] * 2,
        "spec": tail.spec(flip=True),
        "config": RecoveryConfig(iterations=30, alignment_weight=1.0, **settings),
        "targets": targets,
        "runtime": runtime,
    }


def test_the_loss_falls_and_pixels_stay_in_range(problem: dict[str, Any], log: Any) -> None:
    result = align_images(**problem)
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    events = [event for event in log.of("recover") if event["batch"] == 0]
    assert events[-1]["loss"] < 0.9 * events[0]["loss"]
    assert not torch.equal(result, problem["start"].images)


def test_both_backends_and_all_chunks_give_the_same(
    problem: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = problem | {"config": dataclasses.replace(problem["config"], iterations=6)}
    whole = align_images(**short)
    compiled = dataclasses.replace(problem["runtime"], backend="compiled")
    torch.testing.assert_close(
        align_images(**short | {"runtime": compiled}), whole, rtol=0, atol=2e-3
    )
    fit = Chunks.fit
    monkeypatch.setattr(Chunks, "fit", lambda self, work, rows: fit(self, lambda _: work(2), rows))
    torch.testing.assert_close(align_images(**short), whole, rtol=0, atol=1e-4)
