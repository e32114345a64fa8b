"""Derivatives through a student's training: against autograd, at a fixed point, their memory."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ltdd.data.augmentation.dsa import draw_dsa
from ltdd.engine.runtime import Runtime
from ltdd.models import build_model
from ltdd.models.flat_network import FlatNetwork
from ltdd.stages.recovery.trajectory import student_loss
from ltdd.stages.recovery.unrolled import Loss, Step, Stretch, Synthetic, Unrolled

OPERATIONS = ("flip", "color", "crop", "scale", "rotate", "cutout")
CLASSES, COUNT, BATCH = 3, 6, 4


def flat(name: str = "convnet3_w32") -> FlatNetwork:
    torch.manual_seed(0)
    return FlatNetwork(build_model(name, CLASSES, 8, 1).double(), name)


def synthetic() -> Synthetic:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(COUNT, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randn(COUNT, CLASSES, generator=generator, dtype=torch.float64)
    return Synthetic(images, labels, torch.tensor(0.05, dtype=torch.float64))


def steps(count: int, operations: tuple[str, ...] = OPERATIONS) -> list[Step]:
    generator = torch.Generator().manual_seed(2)
    return [
        Step(
            torch.randperm(COUNT, generator=generator)[:BATCH],
            draw_dsa(BATCH, 8, operations, "single", generator),
        )
        for _ in range(count)
    ]


def stretch(network: FlatNetwork, moving: int, matched: int | None = None) -> Stretch:
    """Return a way between two random places; the first parameters are frozen."""
    theta = network.vector()
    target = theta + 0.02 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(3))
    frozen = network.size - moving
    return Stretch(theta[:frozen], theta[frozen:], target[frozen:], matched or moving)


def by_autograd(
    loss: Loss, way: Stretch, shown: Synthetic, taken: list[Step], detached: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return L and its derivatives from one graph of all steps."""
    images, labels, rate = (part.clone().requires_grad_() for part in shown)
    theta = way.start.clone().requires_grad_()
    for rows, draw in taken:
        place = theta.detach().requires_grad_() if detached else theta
        value = loss(way.frozen, place, images[rows], labels[rows], draw)
        (gradient,) = torch.autograd.grad(value, place, create_graph=True)
        theta = theta - rate * gradient
    ends = [place[: way.matched] for place in (theta, way.start, way.target)]
    distance = (ends[0] - ends[2]).square().sum() / (ends[1] - ends[2]).square().sum()
    return distance.detach(), list(torch.autograd.grad(distance, [images, labels, rate]))


def gap(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "tesla"])
@pytest.mark.parametrize("part", ["all", "backbone matched", "classifier moves"])
def test_the_adjoint_is_what_one_graph_of_all_steps_gives(
    exact: bool, part: str, runtime: Runtime
) -> None:
    network = flat()
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    loss = student_loss(network, soft=True, weights=weights if part != "all" else None)
    head = network.size - network.classifier
    way = {
        "all": stretch(network, network.size),
        "backbone matched": stretch(network, network.size, network.classifier),
        "classifier moves": stretch(network, head),
    }[part]
    shown, taken = synthetic(), steps(5)
    unrolled = Unrolled(loss, network.network, runtime, exact)
    distance, by = unrolled.gradients(way, shown, taken)
    wanted, derivatives = by_autograd(loss, way, shown, taken, detached=not exact)
    assert float(distance) == pytest.approx(float(wanted), rel=1e-12)
    assert float(unrolled.distance(way, shown, taken)) == float(distance)
    assert max(map(gap, by, derivatives)) < 1e-8
    other = by_autograd(loss, way, shown, taken, detached=exact)[1]
    assert gap(by.images, other[0]) > 1e-4, "both gradients are the same: nothing is tested"


def test_a_student_of_the_experts_own_set_has_nothing_to_learn(runtime: Runtime) -> None:
    network, shown, count = flat(), synthetic(), 4
    rows, nothing = torch.arange(COUNT), draw_dsa(COUNT, 8, (), "single", torch.Generator())
    loss = student_loss(network, soft=True)
    theta = network.vector()
    for _ in range(count):  # plain SGD on the whole set
        place = theta.requires_grad_()
        logits = network(place, shown.images)
        value = -(shown.labels.softmax(1) * F.log_softmax(logits, 1)).sum(1).mean()
        (gradient,) = torch.autograd.grad(value, place)
        theta = theta.detach() - shown.rate * gradient
    way = Stretch(theta[:0], network.vector(), theta, network.size)
    unrolled = Unrolled(loss, network.network, runtime)
    distance, by = unrolled.gradients(way, shown, [Step(rows, nothing)] * count)
    assert float(distance) < 1e-20
    assert max(float(part.abs().max()) for part in by) < 1e-9
    faster = shown._replace(rate=1.1 * shown.rate)
    distance, by = unrolled.gradients(way, faster, [Step(rows, nothing)] * count)
    assert float(distance) == pytest.approx(0.01, rel=0.2)
    assert float(by.rate) > 1


def test_the_backbones_loss_does_not_see_the_classifiers_target(runtime: Runtime) -> None:
    network, shown, taken = flat(), synthetic(), steps(3)
    unrolled = Unrolled(student_loss(network, soft=True), network.network, runtime)
    way = stretch(network, network.size, network.classifier)
    head = torch.zeros(network.size, dtype=torch.float64)
    head[network.classifier :] = 1.0
    moved = way._replace(target=way.target + head)
    plain, other = (unrolled.gradients(place, shown, taken) for place in (way, moved))
    assert torch.equal(plain[0], other[0])
    assert all(map(torch.equal, plain[1], other[1]))
    body = way._replace(target=way.target + 0.1 * (1 - head))
    assert not torch.equal(unrolled.gradients(body, shown, taken)[0], plain[0])


class Watched(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = 0, 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: Any) -> None:
        if storage not in self._known:
            self._known[storage] = None
            size = storage.nbytes()
            self.alive += size
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.alive -= size


def most_bytes(work: Callable[[], object]) -> int:
    with Watched() as watched:
        work()
    return watched.most


def test_memory_does_not_grow_with_the_steps_but_by_the_parameters(runtime: Runtime) -> None:
    network, shown = flat(), synthetic()
    loss, way = student_loss(network, soft=True), stretch(network, network.size)
    unrolled = Unrolled(loss, network.network, runtime)
    few, many = 5, 40
    taken = {count: steps(count) for count in (few, many)}
    most = {
        count: most_bytes(functools.partial(unrolled.gradients, way, shown, taken[count]))
        for count in (few, many)
    }
    stored = (many - few) * way.start.nbytes
    assert most[few] < most[many] < 1.1 * most[few] + stored
    whole = most_bytes(lambda: by_autograd(loss, way, shown, taken[few], detached=False))
    assert whole > 1.5 * most[few], "a graph of all steps is not seen to be larger"
