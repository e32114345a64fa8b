"""Distances between statistics, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ltdd.stages.alignment_targets import LayerStatistics
from ltdd.stages.statistics_drift import layer_drift


def statistics(
    count: list[int], mean: list[float], var: float, running: tuple[float, float] = (0.0, 1.0)
) -> LayerStatistics:
    """One channel; the variance of every class lies half within and half between images."""
    column = torch.tensor(mean, dtype=torch.float64)[:, None]
    half = torch.full_like(column, var / 2)
    pair = (torch.tensor([value], dtype=torch.float64) for value in running)
    return LayerStatistics(torch.tensor(count), column, half, half, *pair)


def test_distances_of_a_layer_of_one_channel() -> None:
    # Fair: classes at 0 and 2 with variance 1 -> mean 1, variance 1 + 1.
    real = statistics([9, 1], [0, 2], 1, running=(1 + math.sqrt(2), 8))
    fair = statistics([5, 5], [0, 2], 1)
    off = statistics([5, 5], [-2, 0], 1)
    (row,) = layer_drift(["layer"], [real], {"fair": [fair], "off": [off]})
    assert (row["layer"], row["channels"]) == ("layer", 1)
    assert row["running"] == pytest.approx({"mean": 1, "spread": 4})
    # Pooled: mean 0.2; variance 1 + 0.9 * 0.2^2 + 0.1 * 1.8^2 = 1.36, a factor below one.
    pooled = {"mean": 0.8 / math.sqrt(2), "spread": 2 / 1.36}
    assert row["pooled"] == pytest.approx(pooled, rel=1e-6)
    assert row["fair"] == pytest.approx({"mean": 0, "spread": 1, "classes": 0}, abs=1e-6)
    shifted = {"mean": 2 / math.sqrt(2), "spread": 1, "classes": 2 / math.sqrt(2)}
    assert row["off"] == pytest.approx(shifted, rel=1e-6)


def test_a_channel_that_never_changes_does_not_divide_by_zero() -> None:
    still = statistics([3, 3], [1, 1], 0, running=(1, 0))
    (row,) = layer_drift(["layer"], [still], {"same": [still]})
    assert row["running"] == row["pooled"] == {"mean": 0, "spread": 1}
