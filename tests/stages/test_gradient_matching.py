"""Gradient matching: what it leaves alone, what it moves, and classes of a few images."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.stripes import Recorder, make_data
from torch import Tensor

from ltdd.config import (
    DistillConfig,
    DistributionMatching,
    EvaluationConfig,
    GradientMatching,
    Tiled,
)
from ltdd.data.image_spec import ImageSpec
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.preflight import check_networks
from ltdd.stages.recovery import gradient
from ltdd.stages.recovery.gradient import match_gradients
from ltdd.stages.recovery.matching_networks import RealImages, fresh_network
from ltdd.stages.run import InitialImages

NETWORK = "convnet3_w32"
DC = GradientMatching(network=NETWORK, outer=1, inner=1)
IDC = GradientMatching(
    network=NETWORK,
    outer=1,
    inner=2,
    distance="squared",
    parameters="convolutions",
    pixels="unit",
    clamp=True,
    augmentation=("flip", "color", "crop", "cutout"),
    augmentation_mode="idc",
    image_learning_rate=5e-3,
    network_data="long_tailed",
    network_epochs=1,
    network_images=20,
    network_batch=8,
    network_augmentation=("flip", "color", "crop"),
    network_cutmix=0.5,
)


def images_of(data: LongTailedData, ipc: int) -> InitialImages:
    """Return the first images of every class, over again where there are fewer."""
    rows = [data.members(label) for label in range(data.num_classes)]
    chosen = torch.cat([members[torch.arange(ipc) % len(members)] for members in rows])
    labels = torch.arange(data.num_classes).repeat_interleave(ipc)
    return InitialImages(data.train_images[chosen] / 255, labels, chosen)


def noise(data: LongTailedData, ipc: int) -> InitialImages:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(data.num_classes).repeat_interleave(ipc)
    images = torch.rand(len(labels), *data.train_images.shape[1:], generator=generator)
    return InitialImages(images, labels, torch.full_like(labels, -1))


def matched(
    data: LongTailedData, start: InitialImages, config: GradientMatching, runtime: Runtime
) -> Tensor:
    return match_gradients(start, data, data.spec(flip=True), config, runtime)


@pytest.mark.parametrize("distance", ["rows_cosine", "squared"])
@pytest.mark.parametrize("augmentation", [(), ("color", "crop", "scale", "rotate", "cutout")])
def test_images_that_are_the_real_batch_stay(
    distance: Any,
    augmentation: tuple[str, ...],
    balanced: LongTailedData,
    runtime: Runtime,
    log: Recorder,
) -> None:
    """Equal sets have equal gradients, whichever way both are augmented."""
    config = dataclasses.replace(DC, distance=distance, augmentation=augmentation)
    start = images_of(balanced, 6)
    same = matched(balanced, start, config, runtime)
    other = matched(balanced, noise(balanced, 6), config, runtime)
    near, far = (event["loss"] for event in log.of("recover"))
    assert near <= 1e-2 * far  # lengths of rows have 1e-6 added
    moved = float((other - noise(balanced, 6).images).abs().mean())
    share = 0.1 if distance == "rows_cosine" else 1e-3
    assert float((same - start.images).abs().mean()) <= share * moved


def test_a_small_step_makes_the_distance_smaller(
    data: LongTailedData, runtime: Runtime, log: Recorder
) -> None:
    """The same network and the same real images look twice, before and after the step."""
    start = noise(data, 2)
    small = dataclasses.replace(DC, image_learning_rate=1e-3)
    after = start._replace(images=matched(data, start, small, runtime))
    matched(data, after, small, runtime)
    before, then = (event["loss"] for event in log.of("recover"))
    assert then < before


@pytest.mark.parametrize("distance", ["rows_cosine", "squared"])
def test_a_step_goes_down_the_gradient_as_it_is_written(
    distance: Any, data: LongTailedData, runtime: Runtime
) -> None:
    """Written out for each class in float64: all its real images against its synthetic ones."""
    config = dataclasses.replace(DC, image_learning_rate=1e-3, distance=distance)
    start = noise(data, 2)
    start = start._replace(images=0.25 + start.images / 2)
    mean, std = (v.view(-1, 1, 1) for v in data.normalization.tensors())
    moved = (start.images - matched(data, start, config, runtime)) / std / 1e-3
    network = fresh_network(0, data, NETWORK, runtime).double()
    weights = [p for p in network.parameters() if p.ndim > 1]

    def taught(images: Tensor, label: int) -> tuple[Tensor, ...]:
        chances = network((images - mean) / std).log_softmax(1)
        return torch.autograd.grad(-chances[:, label].mean(), weights, create_graph=True)

    for label in range(data.num_classes):
        real = data.train_images[data.members(label)].double() / 255
        own = start.images[start.labels == label].double().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for a, b in zip(taught(own, label), taught(real, label), strict=True):
            if distance == "squared":
                total = total + ((a - b) ** 2).sum()
            else:
                a, b = a.flatten(1), b.flatten(1)
                cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
                total = total + (1 - cosine).sum()
        (gradient_,) = torch.autograd.grad(total, own)
        wanted = gradient_ * std  # by normalised pixels
        got = moved[start.labels == label].double()
        assert float((got - wanted).norm()) <= 0.02 * float(wanted.norm())


@pytest.mark.parametrize("counts", [(5, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize(
    "config",
    [
        DC,
        dataclasses.replace(IDC, formation=2, synthetic_batch=6),
        dataclasses.replace(IDC, formation=3, network_data="balanced"),
        dataclasses.replace(IDC, representatives="clusters", interval=1),
        dataclasses.replace(DC, inner=2, network_epochs=2, network_batch=4),
    ],
)
def test_classes_of_one_two_and_five_images(
    counts: tuple[int, ...], config: GradientMatching, runtime: Runtime
) -> None:
    data = make_data(counts)
    start = noise(data, 2)
    images = matched(data, start, config, runtime)
    assert images.shape == start.images.shape
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    for own, begun in zip(images, start.images, strict=True):
        assert not torch.equal(own, begun)


def test_a_batch_of_representatives_is_no_larger_than_its_class(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """k = min(real_batch, n_c): a class of five shows its five images, each once."""
    data, seen = make_data((140, 5, 1)), []
    shown = RealImages.shown

    def watch(self: RealImages, indices: Tensor) -> Tensor:
        seen.append(indices)
        return shown(self, indices)

    monkeypatch.setattr(RealImages, "shown", watch)
    config = GradientMatching(
        network=NETWORK, outer=1, inner=1, representatives="clusters", real_batch=128
    )
    matched(data, noise(data, 1), config, runtime)
    batches = seen[-3:]
    for label, size in enumerate((128, 5, 1)):
        assert len(set(batches[label].tolist())) == len(batches[label]) == size
        assert (data.train_labels[batches[label]] == label).all()


def test_representatives_are_chosen_anew_after_an_interval(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    choose = gradient.representatives
    monkeypatch.setattr(
        gradient, "representatives", lambda *given: calls.append(1) or choose(*given)
    )
    config = dataclasses.replace(
        DC, inner=5, representatives="clusters", interval=2, network_epochs=0
    )
    matched(data, noise(data, 1), config, runtime)
    assert len(calls) == 3 * data.num_classes  # before steps 0, 2 and 4


@pytest.mark.parametrize("ipc", [1, 20])
def test_no_graph_grows_with_images_per_class(
    ipc: int, data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: set[int] = set()
    look = gradient._Gradients._gradients

    def watch(self: Any, images: Tensor, *rest: Any, **more: Any) -> Any:
        sizes.add(len(images))
        return look(self, images, *rest, **more)

    monkeypatch.setattr(gradient._Gradients, "_gradients", watch)
    config = dataclasses.replace(IDC, formation=2, real_batch=6, synthetic_batch=7)
    matched(data, noise(data, ipc), config, runtime)
    assert max(sizes) == (6 if ipc == 1 else 7)


def test_convolutions_alone_leave_the_classifier_out(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for parameters in ("weights", "convolutions"):

        def watch(first: Any, second: Any, name: str = parameters) -> Tensor:
            sizes[name] = [gradient.ndim for gradient in first]
            total: Tensor = first[0].square().sum()
            return total

        monkeypatch.setitem(gradient.DISTANCES, "squared", watch)
        config = GradientMatching(
            network=NETWORK, outer=1, inner=1, distance="squared", parameters=parameters
        )
        matched(data, noise(data, 1), config, runtime)
    assert sizes == {"weights": [4, 4, 4, 2], "convolutions": [4, 4, 4]}


@pytest.mark.parametrize("network_data", ["synthetic", "long_tailed", "balanced"])
def test_a_network_is_trained_on_what_is_asked_for(
    network_data: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data((90, 9, 1))
    targets: list[Tensor] = []

    def watch(network: Any, optimizer: Any, images: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        targets.append(wanted.sum(0))
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(gradient, "train_step", watch)
    config = GradientMatching(
        network=NETWORK,
        outer=1,
        inner=2,
        network_data=network_data,
        network_epochs=1,
        network_images=60,
        network_batch=16,
        formation=2,
    )
    matched(data, noise(data, 3), config, runtime)
    shares = torch.stack(targets).sum(0)
    assert float(shares.sum()) == (36 if network_data == "synthetic" else 60)
    if network_data == "long_tailed":
        assert shares[0] > 45
    else:
        assert shares.tolist() == [float(shares.sum()) / 3] * 3


def test_pixels_that_diverge_stop_the_run(data: LongTailedData, runtime: Runtime) -> None:
    config = dataclasses.replace(DC, inner=3, image_learning_rate=1e30, network_epochs=0)
    with pytest.raises(UserError, match=r"recovery: expected a finite (cross-entropy|distance)"):
        matched(data, noise(data, 1), config, runtime)


def test_a_network_that_diverges_is_named(data: LongTailedData, runtime: Runtime) -> None:
    config = dataclasses.replace(DC, inner=3, network_learning_rate=1e30, network_epochs=3)
    with pytest.raises(UserError, match=r"recovery: expected a finite cross-entropy at step 1"):
        matched(data, noise(data, 1), config, runtime)


def test_the_rate_is_for_pixels_of_a_unit(data: LongTailedData, runtime: Runtime) -> None:
    """A step in normalised pixels is smaller by std^2 of the channel, counted in [0, 1]."""
    config = GradientMatching(network=NETWORK, outer=1, inner=1, distance="squared")
    start = noise(data, 1)
    start = start._replace(images=0.4 + 0.2 * start.images)
    units: tuple[Any, Any] = ("normalized", "unit")
    steps = {
        unit: start.images
        - matched(
            data,
            start,
            dataclasses.replace(config, pixels=unit, image_learning_rate=1e-4),
            runtime,
        )
        for unit in units
    }
    ratio = torch.tensor(data.std).square().view(-1, 1, 1)
    torch.testing.assert_close(steps["normalized"], steps["unit"] * ratio, atol=1e-6, rtol=1e-2)


def test_the_rate_may_grow_with_the_set(data: LongTailedData, runtime: Runtime) -> None:
    """Two images of 8 pixels: 2 / 10 and 8 / 32 squared."""
    start = noise(data, 2)
    start = start._replace(images=0.4 + 0.2 * start.images)
    plain = dataclasses.replace(DC, image_learning_rate=0.1)
    scaled = dataclasses.replace(DC, image_learning_rate=8.0, scaled_rate=True)
    torch.testing.assert_close(
        matched(data, start, plain, runtime), matched(data, start, scaled, runtime)
    )


def test_networks_with_batch_norm_are_refused(data: LongTailedData) -> None:
    config = DistillConfig(recovery=GradientMatching(network="convnet3_bn"))
    with pytest.raises(UserError, match=r"recovery\.network: expected a network without batch n"):
        check_networks(config, data)
    with pytest.raises(UserError, match=r"initialization\.network: expected an architecture"):
        check_networks(DistillConfig(initialization=Tiled(network="convnet")), data)


def test_students_read_images_as_they_were_matched() -> None:
    for form in (GradientMatching, DistributionMatching):
        config = DistillConfig(
            recovery=form(formation=2), evaluation=dataclasses.replace(EvaluationConfig(), decode=2)
        )
        with pytest.raises(
            UserError, match=r"evaluation\.decode 2 as recovery\.formation, .*got 1"
        ):
            dataclasses.replace(config, evaluation=EvaluationConfig())
        with pytest.raises(
            UserError, match=r"evaluation\.decode 1 as recovery\.formation, .*got 2"
        ):
            dataclasses.replace(config, recovery=form())


def test_unknown_operations_are_named() -> None:
    with pytest.raises(UserError, match=r"recovery\.augmentation among flip, .*got 'colour'"):
        GradientMatching(augmentation=("colour",))
    with pytest.raises(UserError, match=r"recovery\.network_augmentation among .*got 'x'"):
        GradientMatching(network_augmentation=("x",))


def test_images_are_mirrored_only_where_that_keeps_the_class(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, ...]] = []
    draw = gradient.draw_dsa

    def watch(count: int, size: int, strategy: tuple[str, ...], *rest: Any) -> Any:
        drawn.append(strategy)
        return draw(count, size, strategy, *rest)

    monkeypatch.setattr(gradient, "draw_dsa", watch)
    spec: ImageSpec = data.spec(flip=False)
    match_gradients(noise(data, 1), data, spec, IDC, runtime)
    assert drawn
    assert set(drawn) == {("color", "crop")}
