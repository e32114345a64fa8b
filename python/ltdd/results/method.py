"""Say by which method a set was made: its recipe, the form of every stage, and foreign weights."""

from __future__ import annotations

import inspect
from pathlib import PurePath
from typing import NamedTuple

from ltdd.config import DistillConfig, Stage
from ltdd.recipes import RECIPES
from ltdd.results.distilled_set import DistilledSet

_STAGES = ("experts", "initialization", "recovery")
"""Stages that have several forms."""


class Step(NamedTuple):
    """The form of a stage, in words.

    Attributes:
        stage: its name.
        form: as in the configuration (`experts.loss`, `recovery.method`, ...).
        told: what the form does, one sentence.
    """

    stage: str
    form: str
    told: str


class Method(NamedTuple):
    """How a set was made.

    Attributes:
        recipe: name of the method; empty where the configuration was not made from a recipe.
        title: what the method is, on one line.
        paper: where it is published, such as ``arXiv:2511.18858``.
        steps: one for each stage that has several forms.
        foreign: sentence about weights that other data may have trained; empty without any.
    """

    recipe: str
    title: str
    paper: str
    steps: list[Step]
    foreign: str


def method_of(distilled: DistilledSet) -> Method:
    """Return how a distilled set was made."""
    config = DistillConfig.from_dict(distilled.manifest["config"])
    name = (distilled.results or {}).get("provenance", {}).get("recipe")
    steps = [_step(getattr(config, stage)) for stage in _STAGES]
    foreign = foreign_weights(config)
    if name not in RECIPES:  # one of the user's own has no place to look it up
        return Method("", "", "", steps, foreign)
    recipe = RECIPES[name]
    return Method(recipe.name, recipe.title, recipe.paper, steps, foreign)


def foreign_weights(config: DistillConfig) -> str:
    """Return a sentence that names weights from elsewhere; an empty string if there are none.

    Files are named without their folders.
    """
    experts = config.experts
    given = {
        "the observer": experts.observer_weights,
        "the teacher": experts.teacher_weights,
        "the experts' master": experts.distil_from_weights,
    }
    parts = [f"{who} was given as `{_name(file)}`" for who, file in given.items() if file]
    if experts.init_weights:
        parts.append(f"trained experts started from `{_name(experts.init_weights)}`")
    if not parts:
        return ""
    told = ", and ".join(parts)
    return f"{told[0].upper()}{told[1:]}: they may have seen other data than this set's."


def _name(weights: str) -> str:
    return weights if weights.startswith("torchvision:") else PurePath(weights).name


def _step(settings: Stage) -> Step:
    told = (inspect.getdoc(type(settings)) or "").partition("\n")[0]
    return Step(settings.STAGE, settings.form(), told)
