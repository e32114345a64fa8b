"""Post-hoc label calibration: take the class prior that a teacher learned out of its logits.

A teacher trained on long-tailed images favours the large classes, and its soft labels hand that on.
ADSA (arXiv:2511.17914) subtracts a multiple of the log prior and chooses the multiple so that the
teacher is equally sure of every class of the synthetic, class-balanced images. No training, no
access to test data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LARGEST_TAU = 2.0
GRID_STEP = 0.05
TOLERANCE = 1e-6
CHUNK = 1000  # images handled at once; bounds memory, does not change a result
_GOLDEN = (math.sqrt(5) - 1) / 2


def log_prior(counts: Sequence[int]) -> Tensor:
    """Return log pi, float64 (K,), of training sets with these class counts."""
    sizes = torch.tensor(counts, dtype=torch.float64)
    return (sizes / sizes.sum()).log()


def confidence_spread(logits: Tensor, labels: Tensor, prior: Tensor, tau: float) -> float:
    """Return how unequally sure the calibrated teacher is of the classes.

    ``std_i q_i`` with ``q_i = mean over images x of class i of softmax(f(x) - tau log pi)_i``.

    Args:
        logits: (M, K), f(x).
        labels: int64 (M,); every class occurs.
        prior: float64 (K,), log pi.
        tau: strength.
    """
    parts = [
        (some.double() - tau * prior).softmax(1).gather(1, classes[:, None])[:, 0]
        for some, classes in zip(logits.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    own = torch.cat(parts)
    total = torch.zeros_like(prior).index_add_(0, labels, own)
    return float((total / torch.bincount(labels, minlength=len(prior))).std(correction=0))


def calibration_strength(logits: Tensor, labels: Tensor, counts: Sequence[int]) -> float:
    """Find ``tau* = argmin_tau std_i q_i(tau)`` in [0, 2] (arXiv:2511.17914).

    A grid finds the valley and a golden-section search its bottom. Negative values, which would
    push the labels further towards the head, are left out.

    Args:
        logits: (M, K), the teacher's, of the un-augmented synthetic images.
        labels: int64 (M,); every class occurs.
        counts: real training images of every class.

    Returns:
        tau*, to about 1e-6. The smallest one where several are equally good, so 0 if nothing is
        gained.
    """
    prior = log_prior(counts)

    def spread(tau: float) -> float:
        # Rounding errors must not decide between values that are equally good.
        return round(confidence_spread(logits, labels, prior, tau), 12)

    steps = round(LARGEST_TAU / GRID_STEP)
    best = min((step * GRID_STEP for step in range(steps + 1)), key=spread)
    low, high = max(0.0, best - GRID_STEP), min(LARGEST_TAU, best + GRID_STEP)
    found = _golden_section(spread, low, high)
    return found if spread(found) < spread(best) else best


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the place of the minimum of a function with one valley between two places."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2


def label_shift(tau: float, counts: Sequence[int]) -> Tensor:
    """Return ``tau log pi``, float32 (K,): what calibration subtracts from every logit vector."""
    return (tau * log_prior(counts)).float()
