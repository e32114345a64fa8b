"""GSAM, sharpness-aware minimisation that also closes the gap to the surrogate (arXiv:2203.08065).

Its adaptive form moves every parameter in proportion to its size (ASAM, arXiv:2102.11600), as the
experts of FTD (arXiv:2211.11004) are trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SMALLEST = 1e-12


def gsam_direction(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, radius: float, weight: float
) -> Tensor:
    """Return what a step of SGD subtracts.

    ``d = g_p - alpha (g - <g, g_p> / |g_p|^2 g_p)`` with ``g_p`` the gradient at
    ``w + rho w^2 g / | |w| g |``.

    Args:
        gradient: of the loss of one batch, with one augmentation.
        theta: w, (P,).
        radius: rho; 0 is SGD.
        weight: alpha, of the part of g that stands at right angles to g_p; 0 is SAM.
    """
    plain = gradient(theta)
    scale = radius / ((theta * plain).norm() + _SMALLEST)
    perturbed = gradient(theta + scale * theta.square() * plain)
    return perturbed - weight * perpendicular(plain, perturbed)


def perpendicular(vector: Tensor, to: Tensor) -> Tensor:
    """Return the part of a vector that stands at right angles to another."""
    return vector - torch.dot(vector, to) / (torch.dot(to, to) + _SMALLEST**2) * to
