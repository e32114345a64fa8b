"""Distances that matching makes small: between gradients, and between sets of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

_TINY = 1e-6  # DC: added to the lengths of rows


def rows_cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the sum of ``1 - cos`` over the rows of all tensors (arXiv:2006.05929, Eq. 9).

    Args:
        first, second: gradients of the same weights, (R, ...) each; a row is what belongs to an
            output channel or an output unit.
    """
    total = first[0].new_zeros(())
    for a, b in zip(first, second, strict=True):
        a, b = a.flatten(1), b.flatten(1)
        lengths = a.norm(dim=1) * b.norm(dim=1)
        total = total + (1 - (a * b).sum(1) / (lengths + _TINY)).sum()
    return total


def squared(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the sum of squared differences of all tensors (arXiv:2205.14959, section 3.3)."""
    total = first[0].new_zeros(())
    for a, b in zip(first, second, strict=True):
        total = total + (a - b).square().sum()
    return total


class Spectrum(NamedTuple):
    """An empirical characteristic function ``mean_n exp(i <t, f_n>)`` at T frequencies t.

    Attributes:
        real, imaginary: (T,).
    """

    real: Tensor
    imaginary: Tensor

    @classmethod
    def of(cls, features: Tensor, frequencies: Tensor) -> Spectrum:
        """Measure features (N, D) at frequencies (T, D)."""
        phase = features @ frequencies.T
        return cls(phase.cos().mean(0), phase.sin().mean(0))

    @property
    def amplitude(self) -> Tensor:
        """Absolute values (T,); their derivative is finite at 0 too."""
        return (self.real.square() + self.imaginary.square() + _TINY**2).sqrt()


def characteristic(first: Spectrum, second: Spectrum, amplitude_weight: float) -> Tensor:
    """Return the distance of two characteristic functions (arXiv:2603.01698).

    ``mean_t a (|P| - |Q|)^2 + (1 - a) 2 |P| |Q| (1 - cos(arg P - arg Q))``. With a = 1/2 it is half
    of ``mean_t |P - Q|^2``, so for t ~ N(0, s^2) half the squared maximum mean discrepancy of the
    kernel ``exp(-s^2 |x - y|^2 / 2)``.

    Args:
        first, second: P and Q at the same frequencies.
        amplitude_weight: a in [0, 1].
    """
    p, q = first.amplitude, second.amplitude
    aligned = first.real * second.real + first.imaginary * second.imaginary
    apart = amplitude_weight * (p - q).square() + 2 * (1 - amplitude_weight) * (p * q - aligned)
    return apart.mean()
