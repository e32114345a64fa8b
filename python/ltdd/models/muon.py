"""Muon: steps along the momentum of each convolution, with all its singular values made equal.

A student of a few hundred images takes a few thousand steps whatever it is trained with; these
reach further than AdamW's. ``torch.optim.Muon`` takes matrices only, and computes in bfloat16,
which processors without its instructions are thirty times slower at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTUM = 0.95
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdamW
POLYNOMIAL = 3.4445, -4.7750, 2.0315  # K. Jordan's: takes (0, 1] near 1 in five steps
STEPS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about ``U V^T`` of ``matrix = U S V^T``: singular values of 0.7 to 1.2.

    Five Newton-Schulz steps ``X <- p(X X^T) X`` with ``p(A) = a I + b A + c A^2`` (K. Jordan's
    coefficients). All ``p`` commute with the first ``A``, so the steps are taken of the small
    ``A <- p(A) A p(A)`` alone, and X is multiplied once, by the product of all ``p``.

    Args:
        matrix: (R, C), floating point; all zeros stay zeros.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T).T
    matrix = matrix / matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny)
    linear, cubic, quintic = POLYNOMIAL
    gram = matrix @ matrix.T
    product: Tensor | None = None
    for step in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic)
        factor.diagonal().add_(linear)
        product = factor if product is None else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ matrix


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels, AdamW for everything else, at one learning rate.

    For the gradient G of a kernel, seen as a matrix (out, in * height * width):
    ``M <- mu M + (1 - mu) G``, ``W <- (1 - lr * decay) W - lr * 0.2 sqrt(max(R, C)) * O`` with
    ``O = orthogonalize((1 - mu) G + mu M)`` (K. Jordan 2024). The factor gives a step the size of
    one of AdamW's (arXiv:2502.16982), so that learning rates and decays mean the same with both.

    Args:
        groups: parameter groups; each may set ``weight_decay``.
        lr: learning rate; on a GPU a scalar tensor, which a recorded step reads.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float | Tensor) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for kernel in (p for p in given if p.ndim == 4):
                self._orthogonal_step(kernel, group["lr"], group["weight_decay"])
            self._adamw_step([p for p in given if p.ndim != 4], group["lr"], group["weight_decay"])

    def _orthogonal_step(self, kernel: nn.Parameter, lr: float | Tensor, decay: float) -> None:
        state, gradient = self.state[kernel], kernel.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        matrix = gradient.lerp(state["momentum"], MOMENTUM).flatten(1)
        step = orthogonalize(matrix).view_as(kernel)
        kernel.mul_(1 - lr * decay).sub_(step.mul_(lr * 0.2 * max(matrix.shape) ** 0.5))

    def _adamw_step(self, others: list[nn.Parameter], lr: float | Tensor, decay: float) -> None:
        for parameter in others:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in others]
        adamw(
            list[Tensor](others),
            [parameter.grad for parameter in others if parameter.grad is not None],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            capturable=isinstance(lr, Tensor),
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=decay,
            eps=EPS,
            maximize=False,
        )
