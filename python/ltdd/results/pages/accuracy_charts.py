"""Accuracies of kinds of networks, as the pages show them: in words and as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltdd.results.pages import charts
from ltdd.results.pages.charts import Band, Chart, Series
from ltdd.results.tables import percent
from ltdd.stages.metrics import THIRDS

WHO = {
    "student": "distilled images",
    "random_real": "random real images",
    "full_long_tailed": "all long-tailed data",
    "teacher": "the teacher itself",
}


@dataclass(frozen=True)
class Scores:
    """Accuracies of one kind of network.

    Attributes:
        name: as the page says it.
        style: of its lines and bars.
        row: a result of `metrics.summarize`.
    """

    name: str
    style: int
    row: Mapping[str, Any]

    def percent(self, group: str) -> str:
        """Return ``61.2 ± 0.4``, the deviation only over several networks; - if empty."""
        return percent(self.row.get(group))

    def mean(self, group: str) -> float:
        """Return the mean as a fraction, NaN for an empty group."""
        score = self.row.get(group)
        return float("nan") if score is None else float(score["mean"])

    def spread(self, group: str) -> float:
        """Return the standard deviation as a fraction."""
        score = self.row.get(group)
        return 0.0 if score is None else float(score["std"])


def rows_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the rows of ``results.json`` by the keys of `WHO`, as far as they are there."""
    rows = {"student": results["student"], **results["baselines"], "teacher": results["teacher"]}
    return {who: rows[who] for who in WHO if who in rows}


def scores_of(results: Mapping[str, Any]) -> dict[str, Scores]:
    """Return the accuracies of a run by the keys of `WHO`."""
    rows = rows_of(results)
    return {
        who: Scores(name, style, rows[who])
        for style, (who, name) in enumerate(WHO.items())
        if who in rows
    }


def group_chart(scores: Sequence[Scores]) -> Chart:
    """Draw overall, head, medium and tail accuracy."""
    kinds = ("accuracy", *THIRDS)
    return charts.group_bars(
        ("overall", *THIRDS),
        [
            Series(s.name, [s.mean(g) for g in kinds], s.style, [s.spread(g) for g in kinds])
            for s in scores
        ],
    )


def class_chart(
    scores: Sequence[Scores],
    names: Sequence[str],
    order: Sequence[int],
    groups: Mapping[str, Sequence[int]],
) -> Chart:
    """Draw the accuracy of every class.

    Args:
        scores: of the networks.
        names: of the classes, in label order.
        order: labels from the largest to the smallest class.
        groups: labels of head, medium and tail.
    """
    return charts.class_lines(
        [names[c] for c in order],
        [Series(s.name, [_drawn(s.row["per_class"][c]) for c in order], s.style) for s in scores],
        _bands(groups),
    )


def _drawn(fraction: float | None) -> float:
    """Return what a chart leaves out where nothing was measured."""
    return float("nan") if fraction is None else fraction


def _bands(groups: Mapping[str, Sequence[int]]) -> list[Band]:
    """Return the bands of head, medium and tail when classes go from largest to smallest."""
    bands, start = [], 0
    for name in THIRDS:
        end = start + len(groups[name])
        if end > start:
            bands.append(Band(name, start, end))
        start = end
    return bands
