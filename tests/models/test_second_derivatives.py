"""Second derivatives of every network, as matching gradients or trajectories needs them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import SMALLEST, WITH_BATCH_NORM
from torch import Tensor, nn

from ltdd.models import ARCHITECTURES, build_model

# Fifty batch norms in a row, each over a handful of numbers, amplify every difference.
VERY_DEEP = ("resnet50", "resnext50", "mobilenet_v2")


def network(name: str, training: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network in float64, small images and their labels.

    Parameters are moved off their initial values, at which some derivatives vanish; batch norms
    have the statistics of other images.
    """
    torch.manual_seed(0)
    size = 16 if name in VERY_DEEP and training else SMALLEST.get(name, 8)
    net = build_model(name, 3, size, 3).double()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(norms) == (name in WITH_BATCH_NORM)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for norm in norms:
            norm.momentum = None
        net(torch.randn(16, 3, size, size, dtype=torch.float64))
        for norm in norms:
            norm.momentum = 0.1
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    return net.train(training), images, torch.tensor([0, 2, 1, 0])


def matching(net: nn.Module, images: Tensor, labels: Tensor, **keep: bool) -> list[Tensor]:
    """Return the gradients of the cross entropy by all parameters."""
    loss = F.cross_entropy(net(images), labels)
    return list(torch.autograd.grad(loss, list(net.parameters()), **keep))


def second_order(
    net: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the squared length of the gradient, and its derivatives by images and parameters."""
    images = images.detach().clone().requires_grad_()
    length = sum(g.square().sum() for g in matching(net, images, labels, create_graph=True))
    by_images, *by_parameters = torch.autograd.grad(
        length, [images, *net.parameters()], materialize_grads=True
    )
    return length.detach(), by_images, by_parameters


def along(gradients: Sequence[Tensor], slope: float) -> list[Tensor]:
    """Return a direction with that slope: half gradient, so that it is not lost, half random."""
    generator = torch.Generator().manual_seed(1)
    size = sum(float(g.square().sum()) for g in gradients) ** 0.5
    count = sum(g.numel() for g in gradients) ** 0.5
    ways = [
        g / size + torch.randn(g.shape, generator=generator, dtype=torch.float64) / count
        for g in gradients
    ]
    scale = slope / sum(float((g * way).sum()) for g, way in zip(gradients, ways, strict=True))
    return [scale * way for way in ways]


def relative_gap(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    difference = sum(
        float((a.double() - b).square().sum()) for a, b in zip(got, wanted, strict=True)
    )
    return (difference / sum(float(b.square().sum()) for b in wanted)) ** 0.5


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(name, True, marks=pytest.mark.slow if name in VERY_DEEP else ())
        for name in ARCHITECTURES
    ]
    + [(name, False) for name in sorted(WITH_BATCH_NORM)],
)
def test_gradient_matching_has_the_slope_of_finite_differences(name: str, training: bool) -> None:
    """Images and parameters move together, and either contributes half of the slope."""
    net, images, labels = network(name, training)
    length, by_images, by_parameters = second_order(copy.deepcopy(net), images, labels)
    unit = float(by_images.norm())
    (way,) = along([by_images], unit)
    ways = along(by_parameters, unit)

    def moved(step: float) -> float:
        other = copy.deepcopy(net)  # with the running statistics of before
        with torch.no_grad():
            for parameter, toward in zip(other.parameters(), ways, strict=True):
                parameter.add_(toward, alpha=step)
        return sum(float(g.square().sum()) for g in matching(other, images + step * way, labels))

    step = 1e-9  # passes no kink of a ReLU
    ahead, behind = moved(step), moved(-step)
    assert (ahead + behind) / 2 == pytest.approx(float(length), rel=1e-8)
    assert (ahead - behind) / (2 * step) == pytest.approx(2 * unit, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, torch.contiguous_format) for name in ARCHITECTURES]
    + [(name, torch.channels_last) for name in ("convnet3", "convnet3_bn", "resnet18_in")],
    ids=str,
)
def test_float32_agrees_with_float64(name: str, layout: torch.memory_format) -> None:
    """Up to a value near zero, which may pass a ReLU in one of them only."""
    net, images, labels = network(name, training=name not in VERY_DEEP)
    wanted = second_order(copy.deepcopy(net), images, labels)
    net = net.float().to(memory_format=layout)
    got = second_order(net, images.float().contiguous(memory_format=layout), labels)
    assert float(got[0]) == pytest.approx(float(wanted[0]), rel=2e-3)
    assert relative_gap([got[1]], [wanted[1]]) <= 1e-2
    assert relative_gap(got[2], wanted[2]) <= 1e-2
