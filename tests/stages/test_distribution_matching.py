"""Distribution matching: its pool of networks, its distances, and classes of a few images."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.stripes import Recorder, make_data
from torch import Tensor

from ltdd.config import DistillConfig, DistributionMatching
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.preflight import estimated_bytes
from ltdd.stages.recovery import distribution
from ltdd.stages.recovery.distribution import match_distributions
from ltdd.stages.recovery.matching_networks import RealImages
from ltdd.stages.recovery.network_pool import Member, NetworkPool
from ltdd.stages.run import InitialImages

IDM = DistributionMatching(
    network="convnet3_w32",
    iterations=4,
    pool=3,
    pool_start=2,
    pool_period=2,
    trained_networks=2,
    network_steps=2,
    network_batch=8,
    augmentation=("color", "crop", "cutout", "flip", "scale", "rotate"),
)
CSDM = dataclasses.replace(
    IDM, distance="characteristic", frequencies=64, augmentation=(), trained_networks=0
)


def start_of(data: LongTailedData, ipc: int, *, real: bool) -> InitialImages:
    rows = [data.members(label) for label in range(data.num_classes)]
    chosen = torch.cat([members[torch.arange(ipc) % len(members)] for members in rows])
    labels = torch.arange(data.num_classes).repeat_interleave(ipc)
    images = data.train_images[chosen] / 255
    if not real:
        images = torch.rand(images.shape, generator=torch.Generator().manual_seed(5))
    return InitialImages(images, labels, chosen)


def matched(
    data: LongTailedData, start: InitialImages, config: DistributionMatching, runtime: Runtime
) -> Tensor:
    return match_distributions(start, data, data.spec(flip=True), config, runtime)


@pytest.mark.parametrize("config", [IDM, CSDM, dataclasses.replace(CSDM, distance="mean")])
def test_images_that_are_the_real_batch_stay(
    config: DistributionMatching, balanced: LongTailedData, runtime: Runtime, log: Recorder
) -> None:
    """Equal sets have equal features, whichever way both are augmented."""
    config = dataclasses.replace(config, ce_weight=0.0)
    start = start_of(balanced, 6, real=True)
    same = matched(balanced, start, config, runtime)
    assert all(event["loss"] <= 1e-6 for event in log.of("recover"))
    torch.testing.assert_close(same, start.images, atol=1e-5, rtol=0)
    matched(balanced, start_of(balanced, 6, real=False), config, runtime)
    assert log.of("recover")[-1]["loss"] > 1e-3


def test_the_distance_falls(data: LongTailedData, runtime: Runtime, log: Recorder) -> None:
    start = start_of(data, 2, real=False)
    for config in (
        dataclasses.replace(IDM, augmentation=(), ce_weight=0.0, image_learning_rate=2.0),
        dataclasses.replace(CSDM, ce_weight=0.0, image_learning_rate=20.0),
    ):
        config = dataclasses.replace(
            config, iterations=30, pool=1, pool_start=1, pool_period=0, trained_networks=0
        )
        matched(data, start, config, runtime)
        losses = [event["loss"] for event in log.of("recover")[-4:]]
        assert losses[-1] < 0.7 * losses[0]


def test_the_pool_never_outgrows_its_size_and_the_oldest_goes(
    data: LongTailedData, runtime: Runtime
) -> None:
    pool = NetworkPool(RealImages(data, runtime), IDM, runtime)
    for born in range(1, 8):
        pool.admit()
        ages = [member.number for member in pool.members]
        assert ages == list(range(max(0, born - IDM.pool), born))


def test_the_checkpoint_of_a_pool_needs_room_on_the_disk(data: LongTailedData) -> None:
    needed = [
        estimated_bytes(DistillConfig(recovery=DistributionMatching(pool=size)), data)
        for size in (60, 100)
    ]
    network = build_model("convnet3", 3, 8, 3)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    # Each network with its momentum, and the file once more while it is replaced.
    assert needed[1] - needed[0] == 40 * 2 * 2 * weights


def test_a_fresh_network_enters_after_every_period(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[int]] = []
    draw = NetworkPool.draw

    def watch(self: NetworkPool, generator: torch.Generator) -> Member:
        there.append([member.number for member in self.members])
        return draw(self, generator)

    monkeypatch.setattr(NetworkPool, "draw", watch)
    matched(data, start_of(data, 1, real=False), dataclasses.replace(IDM, iterations=7), runtime)
    assert there == [[0, 1], [0, 1], [0, 1, 2], [0, 1, 2], [1, 2, 3], [1, 2, 3], [2, 3, 4]]


def test_a_pool_has_room_for_its_first_networks() -> None:
    with pytest.raises(UserError, match=r"recovery\.pool_start of at most recovery\.pool 2, got 3"):
        DistributionMatching(pool=2)
    with pytest.raises(UserError, match=r"expected recovery\.pool between 1 and 100, got 101"):
        DistributionMatching(pool=101)


def test_a_network_knows_its_accuracy_and_forgets_what_it_saw(
    data: LongTailedData, runtime: Runtime
) -> None:
    config = dataclasses.replace(IDM, entry_steps=3, network_batch=1000)
    pool = NetworkPool(RealImages(data, runtime), config, runtime)
    pool.admit()
    (member,) = pool.members
    assert member.steps == 3
    first = member.accuracy
    assert 0 <= first <= 1
    member.reality = []
    for iteration in range(20):
        pool.train(iteration, runtime.stream("test", iteration))
    assert member.steps == 43
    assert member.accuracy > max(first, 0.6)  # of all images, most of them in the largest class
    assert member.reality is None


def test_cross_entropy_weighs_as_much_as_the_network_knows(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that has seen nothing adds no cross-entropy; one of 50 % adds 50 w CE."""
    config = dataclasses.replace(IDM, iterations=1, augmentation=(), trained_networks=0)
    start = start_of(data, 1, real=False)
    plain = matched(data, start, dataclasses.replace(config, ce_weight=0.0), runtime)
    assert torch.equal(matched(data, start, config, runtime), plain)
    draw = NetworkPool.draw

    def half(self: NetworkPool, generator: torch.Generator) -> Member:
        member = draw(self, generator)
        member.accuracy = 0.5
        return member

    monkeypatch.setattr(NetworkPool, "draw", half)
    small = dataclasses.replace(config, image_learning_rate=1e-3)
    ways = [
        matched(data, start, dataclasses.replace(small, ce_weight=weight), runtime) - start.images
        for weight in (0.0, 0.01, 0.02)
    ]
    torch.testing.assert_close(ways[2] - ways[0], 2 * (ways[1] - ways[0]), atol=2e-6, rtol=0.02)
    assert not torch.equal(ways[0], ways[1])


def test_the_real_side_is_computed_once_for_a_network(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    reality = distribution._Distributions._reality

    def watch(self: Any, member: Member) -> Any:
        looks.append(member.number)
        return reality(self, member)

    monkeypatch.setattr(distribution._Distributions, "_reality", watch)
    config = dataclasses.replace(CSDM, iterations=20, pool_period=0)
    matched(data, start_of(data, 1, real=False), config, runtime)
    assert sorted(looks) == [0, 1]


@pytest.mark.parametrize("counts", [(5, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(IDM, formation=2),
        dataclasses.replace(IDM, network_data="balanced"),
        dataclasses.replace(CSDM, amplitude_head=0.7, amplitude_tail=0.3),
        dataclasses.replace(CSDM, entry_steps=2, trained_networks=1),
    ],
)
def test_classes_of_one_two_and_five_images(
    counts: tuple[int, ...], config: DistributionMatching, runtime: Runtime
) -> None:
    data = make_data(counts)
    start = start_of(data, 2, real=False)
    images = matched(data, start, config, runtime)
    assert images.shape == start.images.shape
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    for own, begun in zip(images, start.images, strict=True):
        assert not torch.equal(own, begun)


def test_a_balanced_batch_has_as_many_of_every_class(runtime: Runtime) -> None:
    data = make_data((200, 20, 1))
    real, generator = RealImages(data, runtime), runtime.stream("test")
    drawn = data.train_labels[real.of_all(60, True, generator)]
    assert drawn.bincount().tolist() == [20, 20, 20]
    plain = data.train_labels[real.of_all(60, False, generator)]
    assert plain.bincount(minlength=3)[0] > 45
    assert len(real.of_all(1000, False, generator)) == 221


def test_a_network_that_diverges_is_named(data: LongTailedData, runtime: Runtime) -> None:
    config = dataclasses.replace(IDM, network_learning_rate=1e30, iterations=20)
    with pytest.raises(UserError, match=r"recovery: expected a finite (cross-entropy|distance)"):
        matched(data, start_of(data, 1, real=False), config, runtime)


def test_bare_images_are_what_a_stored_real_side_is_of() -> None:
    with pytest.raises(UserError, match=r"recovery\.augmentation \[\] with recovery\.distance ch"):
        DistributionMatching(distance="characteristic", augmentation=("crop",))
