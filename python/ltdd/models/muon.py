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


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return about ``U V^T`` of every matrix ``U S V^T``: singular values of 0.7 to 1.2.

    Five Newton-Schulz steps ``X <- p(X X^T) X`` with ``p(A) = a I + b A + c A^2`` (K. Jordan's
    coefficients). All ``p`` commute with the first ``A``, so the steps are taken of the small
    ``A <- p(A) A p(A)`` alone, and X is multiplied once, by the product of all ``p``.

    Args:
        matrices: (N, R, C), floating point; all zeros stay zeros.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    lengths = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    matrices = matrices / lengths.clamp(min=torch.finfo(matrices.dtype).tiny)
    linear, cubic, quintic = POLYNOMIAL
    gram = matrices @ matrices.mT
    product: Tensor | None = None
    for step in range(STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        factor.diagonal(dim1=1, dim2=2).add_(linear)
        product = factor if product is None else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ matrices


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
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for kernel in (p for p in given if p.ndim == 4):
                alike.setdefault(kernel.shape, []).append(kernel)
            for kernels in alike.values():
                self._orthogonal_step(kernels, group["lr"], group["weight_decay"])
            self._adamw_step([p for p in given if p.ndim != 4], group["lr"], group["weight_decay"])

    def _orthogonal_step(
        self, kernels: list[nn.Parameter], lr: float | Tensor, decay: float
    ) -> None:
        """Move kernels of one shape together: their matrices are too small to fill a call each."""
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
        own = list[Tensor](kernels)
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        momenta: list[Tensor] = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        # Columns in the order of channels_last memory: it changes nothing but their order.
        stacked = torch.stack([one.permute(0, 2, 3, 1) for one in ahead])
        steps = orthogonalize(stacked.flatten(2))
        steps = steps.mul_(lr * 0.2 * max(steps.shape[1:]) ** 0.5).reshape(stacked.shape)
        torch._foreach_mul_(own, 1 - lr * decay)
        torch._foreach_sub_(own, list(steps.permute(0, 1, 4, 2, 3).unbind()))

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
