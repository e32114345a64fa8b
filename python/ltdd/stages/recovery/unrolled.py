"""Gradients through many steps of a student's training, with the memory of one step.

The student starts at theta_0 and takes T steps of SGD on the synthetic set:
``theta_{t+1} = theta_t - beta g_t`` with ``g_t`` the gradient of its loss l_t. What is matched is
``L = |theta_T - theta*|^2 / |theta_0 - theta*|^2`` (MTT, arXiv:2203.11932). Its derivative by
images, labels and beta goes back through the steps with an adjoint vector, from
``lambda = 2 (theta_T - theta*) / |theta_0 - theta*|^2`` on:

    s = <g_t, lambda>;  X: -beta ds/dX;  Y: -beta ds/dY;  beta: -s;  lambda -= beta ds/dtheta

Only the vectors theta_t are kept; the graph of a step lives while its turn lasts. Without the last
assignment every g_t counts as independent of the earlier images, which is what TESLA computes
(arXiv:2211.10586); with it the derivative is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltdd.engine.cuda_graphs import RecordedSteps
from ltdd.engine.runtime import Runtime

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Any], Tensor]
"""Function of parameters that stay and that move, images (B, ...), labels (B, K) and a draw."""


class Synthetic(NamedTuple):
    """What students learn from.

    Attributes:
        images: (M, C, H, W), normalised.
        labels: (M, K).
        rate: beta, the students' learning rate, a scalar.
    """

    images: Tensor
    labels: Tensor
    rate: Tensor


class Stretch(NamedTuple):
    """Part of an expert's trajectory that a student shall walk.

    Attributes:
        frozen: parameters that stay as they are, in front of the others; (0,) for none.
        start: theta_0, the parameters that move.
        target: theta*, as long as ``start``.
        matched: how many of the parameters that move are compared, from the first one on.
    """

    frozen: Tensor
    start: Tensor
    target: Tensor
    matched: int


class Step(NamedTuple):
    """One step of a student.

    Attributes:
        rows: int64 (B,), the images of its batch.
        draw: their augmentation, tensors and None.
    """

    rows: Tensor
    draw: Any


class Unrolled:
    """Students of one loss, and the derivatives through their training.

    Args:
        loss: of a batch.
        network: what the loss calls.
        runtime: device.
        exact: whether the adjoint passes on what a step owes to the ones before it.
    """

    def __init__(
        self, loss: Loss, network: nn.Module, runtime: Runtime, exact: bool = True
    ) -> None:
        self._loss, self._exact = loss, exact
        self._forward = RecordedSteps(self._advance, network, runtime)
        self._backward = RecordedSteps(self._pull_back, network, runtime)

    def distance(self, stretch: Stretch, shown: Synthetic, steps: Sequence[Step]) -> Tensor:
        """Return L of a student that has taken the steps."""
        return _distance(stretch, self._walk(stretch, shown, steps)[-1])

    def gradients(
        self, stretch: Stretch, shown: Synthetic, steps: Sequence[Step]
    ) -> tuple[Tensor, Synthetic]:
        """Return L and its derivatives by images, labels and learning rate."""
        walked = self._walk(stretch, shown, steps)
        end, matched = walked.pop(), slice(stretch.matched)
        by = Synthetic(*(torch.zeros_like(part) for part in shown))
        adjoint = torch.zeros_like(end)
        scale = 2 / _length(stretch, stretch.start)
        adjoint[matched] = scale * (end - stretch.target)[matched]
        for step in reversed(steps):
            theta, rows = walked.pop(), step.rows
            inputs = stretch.frozen, theta, shown.images[rows], shown.labels[rows], adjoint
            pulled = self._backward(*inputs, step.draw)
            slope, images, labels, pulled_back = pulled.split(
                [1, inputs[2].numel(), inputs[3].numel(), len(theta)]
            )
            by.images.index_add_(0, rows, -shown.rate * images.view_as(inputs[2]))
            by.labels.index_add_(0, rows, -shown.rate * labels.view_as(inputs[3]))
            by.rate.sub_(slope[0])
            if self._exact:
                adjoint = adjoint - shown.rate * pulled_back
        return _distance(stretch, end), by

    def _walk(self, stretch: Stretch, shown: Synthetic, steps: Sequence[Step]) -> list[Tensor]:
        """Return theta_0 to theta_T."""
        walked = [stretch.start]
        for step in steps:
            rows = step.rows
            batch = shown.images[rows], shown.labels[rows]
            walked.append(self._forward(stretch.frozen, walked[-1], *batch, shown.rate, step.draw))
        return walked

    def _advance(
        self, frozen: Tensor, theta: Tensor, images: Tensor, labels: Tensor, rate: Tensor, draw: Any
    ) -> Tensor:
        theta = theta.detach().requires_grad_()
        loss = self._loss(frozen, theta, images, labels, draw)
        (gradient,) = torch.autograd.grad(loss, theta)
        return theta.detach() - rate * gradient

    def _pull_back(
        self,
        frozen: Tensor,
        theta: Tensor,
        images: Tensor,
        labels: Tensor,
        adjoint: Tensor,
        draw: Any,
    ) -> Tensor:
        """Return s and its derivatives by images, labels and parameters, one after another."""
        by = [part.detach().requires_grad_() for part in (images, labels, theta)]
        loss = self._loss(frozen, by[2], by[0], by[1], draw)
        (gradient,) = torch.autograd.grad(loss, by[2], create_graph=True)
        slope = torch.dot(gradient, adjoint)
        derivatives = torch.autograd.grad(slope, by, materialize_grads=True)
        return torch.cat([slope.detach()[None], *(part.flatten() for part in derivatives)])


def _distance(stretch: Stretch, end: Tensor) -> Tensor:
    return _length(stretch, end) / _length(stretch, stretch.start)


def _length(stretch: Stretch, place: Tensor) -> Tensor:
    """Return the squared distance of the compared parameters from the target."""
    return (place - stretch.target)[: stretch.matched].square().sum()
