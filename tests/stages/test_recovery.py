"""Recovery: batches, what the alignment measures, optimisation, backends, bad numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ltdd_ext
from ltdd.config import DistillConfig, NoRecovery, RecoveryConfig, StatisticsConfig
from ltdd.data.augmentation.crops import normalize
from ltdd.data.image_spec import to_uint8
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.distributed.ranks import Ranks, among
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.observer import Observer
from ltdd.stages.alignment_targets import LayerStatistics, batch_targets
from ltdd.stages.recovery import recover_images
from ltdd.stages.recovery.alignment import (
    SHARES,
    SMALLEST_SHARE,
    Observed,
    _part,
    _shares,
    align_images,
)
from ltdd.stages.recovery.batches import plan_batches
from ltdd.stages.run import InitialImages, Run
from ltdd.stages.statistics import class_statistics


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 60))
def test_batches_are_stratified_and_cover_the_set(classes: int, ipc: int, limit: int) -> None:
    batches = plan_batches(classes, ipc, limit)
    positions = torch.cat(batches)
    assert positions.sort().values.tolist() == list(range(classes * ipc))
    for batch in batches:
        assert 0 < len(batch) <= limit
        per_class = torch.bincount(batch // ipc, minlength=classes)
        if classes <= limit:
            assert int(per_class.min()) == int(per_class.max()) >= 1
        else:
            assert int(per_class.max()) == 1


def test_a_set_that_fits_is_one_batch() -> None:
    assert [len(batch) for batch in plan_batches(10, 10, 1000)] == [100]


def test_batches_do_not_grow_with_images_per_class() -> None:
    largest = [max(map(len, plan_batches(10, ipc, 100))) for ipc in (10, 50, 500)]
    assert largest == [100, 100, 100]


def calibrated(
    observer: nn.Module, data: LongTailedData, runtime: Runtime
) -> list[LayerStatistics]:
    return class_statistics(observer, data, StatisticsConfig(), runtime)


def alignment(
    images: Tensor,
    labels: Tensor,
    observer: nn.Module,
    data: LongTailedData,
    runtime: Runtime,
    **names: Any,
) -> float:
    """The alignment of un-augmented images, class-wise part included."""
    targets = batch_targets(calibrated(observer, data, runtime), labels, StatisticsConfig(**names))
    normal = normalize(images, torch.tensor(data.mean), torch.tensor(data.std))
    with torch.no_grad():
        _, moments = Observer(observer, ltdd_ext.reference)(normal)
    return float(
        ltdd_ext.reference.align_loss(
            [m.mean for m in moments],
            [m.m2 for m in moments],
            [m.spatial_size for m in moments],
            labels,
            [t.mean for t in targets],
            [t.var for t in targets],
            [t.class_mean for t in targets],
            [t.class_var for t in targets],
            [10.0, 1.0],
            1.0,
        )
    )


def test_the_whole_balanced_set_is_aligned_with_itself(
    observer: nn.Module, balanced: LongTailedData, runtime: Runtime
) -> None:
    given_images = (balanced.train_images, balanced.train_labels, observer, balanced, runtime)
    assert alignment(*given_images, class_target="full") < 1e-4
    for wrong in ({"global_target": "paper"}, {"global_target": "edc"}, {"class_target": "edc"}):
        assert alignment(*given_images, **({"class_target": "full"} | wrong)) > 5e-3


def test_real_images_are_far_better_aligned_than_noise(
    observer: nn.Module, data: LongTailedData, runtime: Runtime
) -> None:
    picked = torch.cat([torch.nonzero(data.train_labels == c).flatten()[:2] for c in range(3)])
    labels = data.train_labels[picked]
    noise = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    real = alignment(data.train_images[picked], labels, observer, data, runtime)
    random = alignment(noise, labels, observer, data, runtime)
    assert real < 0.35 * random


def test_observer_returns_differentiable_moments(observer: nn.Module, data: LongTailedData) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    recorder = Observer(observer, ltdd_ext.reference)
    logits, moments = recorder(images)
    assert logits.shape == (2, 3)
    assert [tuple(m.mean.shape) for m in moments] == [(2, 6), (2, 8)]
    assert [m.spatial_size for m in moments] == [64, 16]
    moments[1].m2.sum().backward()
    assert float(images.grad.abs().sum()) > 0
    # No hook is left behind on the network.
    assert not any(m._forward_pre_hooks for m in observer.modules())


def started(images: Tensor, labels: Tensor) -> InitialImages:
    return InitialImages(images, labels, torch.full_like(labels, -1))


@pytest.fixture
def problem(data: LongTailedData, observer: nn.Module, runtime: Runtime) -> dict[str, Any]:
    """Arguments of `align_images` for 4 noise images of every class."""
    labels = torch.arange(3).repeat_interleave(4)
    generator = torch.Generator().manual_seed(0)
    return {
        "start": started(torch.rand(12, 3, 8, 8, generator=generator), labels),
        "observers": [Observed(observer, calibrated(observer, data, runtime))],
        "spec": data.spec(flip=True),
        "config": RecoveryConfig(iterations=40, alignment_weight=1.0, crop_min_scale=0.5),
        "targets": StatisticsConfig(),
        "runtime": runtime,
    }


def changed(problem: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return problem | {"config": dataclasses.replace(problem["config"], **settings)}


def test_recovery_lowers_the_loss_and_keeps_pixels_in_range(
    problem: dict[str, Any], data: LongTailedData, runtime: Runtime, log: Any
) -> None:
    before = problem["start"].images.clone()
    result = align_images(**problem)
    assert result.shape == before.shape
    assert result.dtype == torch.float32
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    assert torch.equal(problem["start"].images, before)
    events = log.of("recover")
    assert [event["iteration"] for event in events] == [0, 10, 20, 30, 39]
    assert events[-1]["loss"] < 0.8 * events[0]["loss"]
    assert events[-1]["alignment"] < 0.8 * events[0]["alignment"]
    shared = (problem["start"].labels, problem["observers"][0][0], data, runtime)
    assert alignment(result, *shared) < 0.8 * alignment(before, *shared)


def test_pixels_stay_in_range_at_every_step(
    problem: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, std = (v[:, None, None] for v in problem["spec"].normalization.tensors())
    seen: list[tuple[Tensor, Tensor]] = []
    observe = Observer.__call__

    def look(self: Observer, images: Tensor) -> Any:
        seen.append((images * std + mean).detach().aminmax())
        return observe(self, images)

    monkeypatch.setattr(Observer, "__call__", look)
    # Steps long enough to leave the range many times.
    align_images(**changed(problem, iterations=5, learning_rate=1.0))
    assert len(seen) == 5
    assert min(float(low) for low, _ in seen) > -1e-4
    assert max(float(high) for _, high in seen) < 1 + 1e-4


def test_without_alignment_the_cross_entropy_falls(problem: dict[str, Any], log: Any) -> None:
    align_images(**changed(problem, alignment_weight=0.0))
    events = log.of("recover")
    assert events[-1]["cross_entropy"] < events[0]["cross_entropy"]
    assert events[0]["loss"] == pytest.approx(events[0]["cross_entropy"])


def test_the_loss_is_the_weighted_sum(problem: dict[str, Any], log: Any) -> None:
    align_images(**changed(problem, iterations=1, alignment_weight=0.3, classification_weight=2))
    (event,) = log.of("recover")
    expected = 2 * event["cross_entropy"] + 0.3 * event["alignment"]
    assert event["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_first_layer_and_the_class_part_have_their_weights(
    problem: dict[str, Any], log: Any
) -> None:
    values = []
    for first, per_class in ((1.0, 0.0), (11.0, 0.0), (21.0, 0.0), (1.0, 1.0), (1.0, 2.0)):
        settings = {"first_layer_weight": first, "class_alignment_weight": per_class}
        align_images(**changed(problem, iterations=1, **settings))
        values.append(log.events[-1]["alignment"])
    assert values[1] - values[0] == pytest.approx(values[2] - values[1], rel=1e-4)
    assert values[4] - values[3] == pytest.approx(values[3] - values[0], rel=1e-4)
    assert values[1] > values[0]
    assert values[3] > values[0]


def test_no_recovery_leaves_the_start(data: LongTailedData, tmp_path: Path) -> None:
    config = DistillConfig(ipc=2, horizontal_flip=False, recovery=NoRecovery(), device="cpu")
    count = 2 * data.num_classes
    start = torch.rand(count, data.channels, data.image_size, data.image_size)
    initial = InitialImages(start, torch.arange(count) // 2, torch.zeros(count, dtype=torch.int64))
    run = Run.create(config, data, tmp_path, RunOptions(quiet=True, store=None))
    images, labels = recover_images(run, [], [], Stored(initial, "start")).images.value
    assert torch.equal(images, to_uint8(start))
    assert torch.equal(labels, initial.labels)


def test_the_observer_is_left_alone(problem: dict[str, Any]) -> None:
    ((observer, _),) = problem["observers"]
    before = {k: v.clone() for k, v in observer.state_dict().items()}
    align_images(**changed(problem, iterations=3))
    for name, tensor in observer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in observer.parameters())


def test_the_seed_decides(problem: dict[str, Any], runtime: Runtime) -> None:
    short = changed(problem, iterations=3)
    first = align_images(**short)
    assert torch.equal(align_images(**short), first)
    other = align_images(**(short | {"runtime": dataclasses.replace(runtime, seed=4)}))
    assert not torch.equal(other, first)


def test_batches_are_recovered_independently(problem: dict[str, Any], log: Any) -> None:
    small = changed(problem, iterations=3, max_batch=6)
    result = align_images(**small)
    assert {event["batch"] for event in log.of("recover")} == {0, 1}
    # Images of the second slice do not change what becomes of the first.
    images = problem["start"].images.clone().view(3, 4, 3, 8, 8)
    images[:, 2:] = 0.5
    other = align_images(
        **(small | {"start": problem["start"]._replace(images=images.view(12, 3, 8, 8))})
    )
    slices, others = result.view(3, 4, -1), other.view(3, 4, -1)
    assert torch.equal(slices[:, :2], others[:, :2])
    assert not torch.equal(slices[:, 2:], others[:, 2:])


def test_more_classes_than_fit_a_batch(problem: dict[str, Any]) -> None:
    result = align_images(**changed(problem, iterations=2, max_batch=2))
    assert torch.isfinite(result).all()
    assert (result != problem["start"].images).flatten(1).any(dim=1).all()


def test_observers_take_turns(
    problem: dict[str, Any], data: LongTailedData, runtime: Runtime, log: Any
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = build_model("resnet32_w16", 3, 8, 3)
    (first,) = problem["observers"]
    second = Observed(other, calibrated(other, data, runtime))

    def losses(*observers: Any, iterations: int) -> list[float]:
        log.events.clear()
        align_images(**changed(problem | {"observers": observers}, iterations=iterations))
        return [event["loss"] for event in log.of("recover")]

    # The log has the first and the last of two iterations: the second one sees the other observer,
    # on pixels that the first has moved.
    both = losses(first, second, iterations=2)
    assert both[0] == losses(first, iterations=1)[0]
    assert both[1] != losses(first, iterations=2)[1]
    assert losses(second, first, iterations=1) == losses(second, iterations=1)
    # One observer twice is one observer.
    assert losses(first, first, iterations=4) == losses(first, iterations=4)


def test_both_backends_recover_the_same_images(problem: dict[str, Any], runtime: Runtime) -> None:
    twenty = changed(problem, iterations=20)
    compiled = twenty | {"runtime": dataclasses.replace(runtime, backend="compiled")}
    torch.testing.assert_close(align_images(**compiled), align_images(**twenty), rtol=0, atol=1e-3)


def test_numbers_that_are_not_finite_stop_the_stage(problem: dict[str, Any]) -> None:
    problem["start"].images[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="recovery: expected a finite loss at step 0, got nan"):
        align_images(**problem)


@given(count=st.integers(1, 300), world=st.integers(1, 9))
def test_images_are_in_the_same_company_on_any_number_of_ranks(count: int, world: int) -> None:
    def divided(world: int, device: str) -> list[range]:
        with among(Ranks(0, world)):
            return _shares(count, torch.device(device))

    alone, shares = divided(1, "cpu"), divided(world, "cpu")
    assert [image for share in shares for image in share] == list(range(count))
    assert all(len(share) >= min(count, SMALLEST_SHARE) for share in shares)
    if world <= SHARES:
        assert shares == alone
    of_ranks = [_part(shares, rank, world) for rank in range(world)]
    assert [share for part in of_ranks for share in part] == shares
    # Nobody has two shares more than another.
    assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1
    # A GPU alone takes the batch at once.
    assert divided(1, "cuda") == [range(count)]
