"""Measure how far other statistics of the observer are from the fair, class-balanced ones.

For channel c with fair mean m_c and variance v_c, and other mean a_c and variance b_c:

* ``mean``: ``sqrt(average over c of (a_c - m_c)^2 / v_c)``, in fair standard deviations
* ``spread``: ``exp(sqrt(average over c of ln(b_c / v_c)^2))``, a factor of 1 or more by which
  variances are typically off, in either direction
* ``classes``: ``mean`` for the mean of each class, averaged (as a square) over classes too
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltdd.config import StatisticsConfig
from ltdd.stages.alignment_targets import LayerStatistics, layer_targets

_EPSILON = 1e-12  # a channel that never changes has variance 0
_MIXTURE = StatisticsConfig(global_target="mixture")


def layer_drift(
    names: Sequence[str],
    real: Sequence[LayerStatistics],
    synthetic: Mapping[str, Sequence[LayerStatistics]],
) -> list[dict[str, Any]]:
    """Compare every kind of statistics with the fair ones of every layer.

    Args:
        names: of the layers.
        real: of the long-tailed training images.
        synthetic: kind -> of synthetic images.

    Returns:
        One mapping a layer: ``layer``, ``channels``, and for each of ``running`` (the network's
        own), ``pooled`` (over all training images, so that large classes weigh more) and the kinds
        of synthetic images the distances ``mean`` and ``spread``; the latter with ``classes``.
    """
    rows = []
    for number, (name, layer) in enumerate(zip(names, real, strict=True)):
        fair = _whole(layer, torch.ones_like(layer.count))
        rows.append(
            {
                "layer": name,
                "channels": len(fair[0]),
                "running": _distance((layer.running_mean, layer.running_var), fair),
                "pooled": _distance(_whole(layer, layer.count), fair),
            }
            | {
                kind: _distance(_whole(layers[number], layers[number].count), fair)
                | {"classes": _class_distance(layers[number], layer, fair[1])}
                for kind, layers in synthetic.items()
            }
        )
    return rows


def _whole(layer: LayerStatistics, images_per_class: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C,) of all images when classes have the given weights."""
    targets = layer_targets(layer, images_per_class, _MIXTURE)
    return targets.mean.double(), targets.var.double()


def _distance(found: tuple[Tensor, Tensor], fair: tuple[Tensor, Tensor]) -> dict[str, float]:
    (mean, var), (fair_mean, fair_var) = found, fair
    shift = (mean - fair_mean).square() / (fair_var + _EPSILON)
    ratio = ((var + _EPSILON) / (fair_var + _EPSILON)).log().square()
    return {"mean": math.sqrt(float(shift.mean())), "spread": math.exp(math.sqrt(ratio.mean()))}


def _class_distance(found: LayerStatistics, real: LayerStatistics, fair_var: Tensor) -> float:
    shift = (found.mean - real.mean).square() / (fair_var + _EPSILON)
    return math.sqrt(float(shift.mean()))
