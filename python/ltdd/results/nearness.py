"""Say in the report and the card how near a distilled set is to its training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ltdd.stages.nearest_images import MEASURES, SCOPES

COLUMNS = ("median", "5 % quantile", "least")
_SUMMARY = ("median", "q05", "min")
_SCOPES = dict(zip(SCOPES, ("any class", "same class"), strict=True))


class Row(NamedTuple):
    """Distances of all images or of a class, as text; ``-`` where there are none.

    Attributes:
        name: of the distance or the class.
        distilled, training: the `COLUMNS` of distilled and of training images.
        nearer: distilled images below the 5 % quantile of training images.
        same_class: distilled images whose nearest training image is of their class.
    """

    name: str
    distilled: list[str]
    training: list[str]
    nearer: str
    same_class: str

    @property
    def cells(self) -> list[str]:
        """All but the name."""
        return [*self.distilled, *self.training, self.nearer, self.same_class]


def overall_rows(nearest: Mapping[str, Any]) -> list[Row]:
    """Return a row for each distance, of all images together."""
    return [
        _row(f"{measure_name(nearest, measure)}, {words}", nearest[measure][scope]["overall"])
        for measure in MEASURES
        for scope, words in _SCOPES.items()
    ]


def class_rows(nearest: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[Row]]:
    """Return rows of classes: distance -> one a class, in label order."""
    return {
        f"{measure_name(nearest, measure)}, {words}": [
            _row(name, row)
            for name, row in zip(names, nearest[measure][scope]["classes"], strict=True)
        ]
        for measure in MEASURES
        for scope, words in _SCOPES.items()
    }


def measure_name(nearest: Mapping[str, Any], measure: str) -> str:
    """Return what a distance is measured in: pixels, features or, without these, logits."""
    return str(nearest["features_of"]) if measure == "features" else measure


def distance_text(distance: float) -> str:
    """Return a distance with three digits; less than a millionth is rounding."""
    return f"{round(distance, 6):.3g}"


def describe_nearness(nearest: Mapping[str, Any]) -> str:
    """Return what the distances say, in two or three sentences."""
    pixels, features = (nearest[measure]["any_class"]["overall"] for measure in MEASURES)
    least, middle = (distance_text(pixels["distilled"][part]) for part in ("min", "median"))
    told = (
        f"In pixels, where 0 is a copy and 255 is black against white, the distilled image nearest "
        f"to a training image is {least} away from it, and half of them are {middle} or more away "
        f"from every one."
    )
    if pixels["training"] is None:  # a single training image
        return told
    training = distance_text(pixels["training"]["median"])
    return (
        f"{told} Half of the training images are {training} or more away from every other one. "
        f"{_percent(pixels['nearer'])} of the distilled images are nearer to a training image than "
        f"all but 5 % of training images are to each other; in the teacher's "
        f"{nearest['features_of']} it is {_percent(features['nearer'])}."
    )


def _row(name: str, row: Mapping[str, Any]) -> Row:
    distilled, training = (_cells(row[of]) for of in ("distilled", "training"))
    return Row(name, distilled, training, _percent(row["nearer"]), _percent(row.get("same_class")))


def _cells(summary: Mapping[str, float] | None) -> list[str]:
    return ["-" if summary is None else distance_text(summary[part]) for part in _SUMMARY]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.3g} %"
