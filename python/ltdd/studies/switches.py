"""The parts of the method that `ltdd ablate` can take away or exchange, and the runs that follow.

A value of a switch is a set of configuration fields. The base configuration is a value of every
switch by itself, so values that change nothing about it are left out of a plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltdd.config import DistillConfig, override
from ltdd.errors import UserError

Change = Any | Callable[[Any], Any]
"""A field's new value, or a function of its old one."""

_DOMINANCE = 1e4  # class-wise alone: the global part keeps a ten-thousandth of its weight


@dataclass(frozen=True)
class Switch:
    """A part of the method with what it can be exchanged for.

    Attributes:
        summary: one line about it.
        values: name of a value -> changes of configuration fields, by dotted name.
    """

    summary: str
    values: Mapping[str, Mapping[str, Change]]


def _choices(field: str, *names: str) -> dict[str, Mapping[str, Change]]:
    return {name: {field: name} for name in names}


def _nearly_nothing(weight: float) -> float:
    return weight / _DOMINANCE


SWITCHES: Mapping[str, Switch] = {
    "debias": Switch(
        "experts without resampling and class weights, trained plainly, without mixing too, or by "
        "UniMix",
        {
            "off": {"experts.debias_power": 0.0, "experts.resampling_power": 0.0},
            "plain": {"experts.loss": "ce"},
            "unimix": {"experts.loss": "unimix"},
        },
    ),
    "averaging": Switch(
        "experts whose weights are averages", _choices("experts.averaging", "none", "ema")
    ),
    "statistics": Switch(
        "variance that whole batches are aligned with",
        _choices("statistics.global_target", "mixture", "paper", "edc", "running"),
    ),
    "class-target": Switch(
        "variance that the images of a class are aligned with",
        _choices("statistics.class_target", "finite", "full", "edc"),
    ),
    "initialization": Switch(
        "where the images start",
        _choices(
            "initialization.method", "scored_crops", "clustered_crops", "random_real", "noise"
        ),
    ),
    "recovery": Switch("no optimisation of the images", {"off": {"recovery.method": "none"}}),
    "alignment": Switch(
        "statistics of whole batches, of classes, or both",
        {
            "global": {"recovery.class_alignment_weight": 0.0},
            "class-wise": {
                "recovery.alignment_weight": _nearly_nothing,
                "recovery.class_alignment_weight": _DOMINANCE,
            },
            "both": {"recovery.class_alignment_weight": 1.0},
        },
    ),
    "labels": Switch(
        "what students learn from", _choices("relabeling.labels", "static", "fkd", "online", "hard")
    ),
    "calibration": Switch(
        "post-hoc calibration of the labels", _choices("relabeling.calibration", "none", "adsa")
    ),
    "backend": Switch(
        "compiled operators of statistics and recovery, or their reference",
        _choices("backend", "compiled", "reference"),
    ),
}
"""Name -> switch."""


@dataclass(frozen=True)
class Variant:
    """One run of an ablation.

    Attributes:
        settings: switch -> value; empty for the base.
        config: the configuration.
    """

    settings: Mapping[str, str]
    config: DistillConfig

    @property
    def name(self) -> str:
        """Settings in words, ``base`` for none."""
        return ", ".join(f"{k}={v}" for k, v in self.settings.items()) or "base"

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return "+".join(f"{k}-{v}" for k, v in self.settings.items()) or "base"


def chosen_values(words: Sequence[str]) -> dict[str, list[str]]:
    """Read what a command line asks for: ``labels``, or ``labels=static,hard`` for some values.

    Returns:
        Switch -> values.

    Raises:
        UserError: an unknown switch or value.
    """
    chosen: dict[str, list[str]] = {}
    for word in words:
        name, _, listed = word.partition("=")
        if name not in SWITCHES:
            raise UserError(f"expected a switch among {', '.join(SWITCHES)}; got {name!r}")
        known = list(SWITCHES[name].values)
        values = listed.split(",") if listed else known
        unknown = [value for value in values if value not in known]
        if unknown:
            raise UserError(
                f"expected values of {name} among {', '.join(known)}; got {unknown[0]!r}"
            )
        chosen[name] = values
    return chosen


def plan(base: DistillConfig, chosen: Mapping[str, Sequence[str]], grid: bool) -> list[Variant]:
    """Return the runs of an ablation, the base first and no configuration twice.

    Args:
        base: what is varied.
        chosen: switch -> values.
        grid: every combination instead of one switch at a time.
    """
    if grid:
        options = [[None, *values] for values in chosen.values()]
        combinations = [
            {switch: value for switch, value in zip(chosen, row, strict=True) if value is not None}
            for row in itertools.product(*options)
        ]
    else:
        single = [{switch: value} for switch, values in chosen.items() for value in values]
        combinations = [{}, *single]
    variants: dict[DistillConfig, Variant] = {}
    for settings in combinations:
        config = base
        for number, (switch, value) in enumerate(settings.items()):
            changes = SWITCHES[switch].values[value]
            # One value may take away what another one changes: without recovery, no alignment.
            if number and not applies(config, changes):
                break
            config = changed(config, changes)
        else:
            variants.setdefault(config, Variant(settings, config))
    return list(variants.values())


def all_values(base: DistillConfig) -> dict[str, list[str]]:
    """Return every switch with the values that mean something in a configuration."""
    values = {
        name: [v for v, changes in switch.values.items() if applies(base, changes)]
        for name, switch in SWITCHES.items()
    }
    return {name: meaningful for name, meaningful in values.items() if meaningful}


def applies(config: DistillConfig, changes: Mapping[str, Change]) -> bool:
    """Return whether the forms of a configuration have the fields that a switch changes."""
    for dotted in changes:
        stage, _, field = dotted.rpartition(".")
        settings = getattr(config, stage) if stage else config
        if not hasattr(settings, field):
            return False
    return True


def changed(config: DistillConfig, changes: Mapping[str, Change]) -> DistillConfig:
    """Return a configuration with other values of some fields, given by dotted name.

    Raises:
        UserError: a field is one of a form that the configuration does not have.
    """
    values: dict[str, Any] = {}
    for dotted, change in changes.items():
        stage, _, field = dotted.rpartition(".")
        scope, settings = values, config
        if stage:
            scope, settings = values.setdefault(stage, {}), getattr(config, stage)
        old = getattr(settings, field, None)
        scope[field] = change(old) if callable(change) and old is not None else change
    return DistillConfig.from_dict(override(config.to_dict(), values))
