"""What decides whether a stored stage is found: keys are pinned, and new fields change none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers.tiny_run import QUIET, TINY

from ltdd.config import (
    STAGES,
    DistillConfig,
    EvaluationConfig,
    StatisticsConfig,
    deciding_settings,
)
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.stage_runner import Stored
from ltdd.recipes.presets import preset
from ltdd.stages.run import Run

UPSTREAM = Stored(None, "0" * 64)


@pytest.fixture(scope="module")
def digits() -> LongTailedData:
    return load_data("digits", 50.0)


def configuration(name: str) -> DistillConfig:
    data = "cifar10" if name == "paper" else "digits"
    return DistillConfig.from_dict(preset(name, data) | {"device": "cpu", "precision": "fp32"})


def keys(config: DistillConfig, data: LongTailedData, out: Path) -> dict[str, str]:
    run = Run.create(config, data, out, QUIET)
    return {
        stage: run.stages.key(stage, deciding_settings(getattr(run.config, stage)), [UPSTREAM])[:12]
        for stage in STAGES
    }


PINNED: dict[str, dict[str, str]] = {
    "cpu": {
        "evaluation": "01d1d3c2bb6e",
        "experts": "da9133e8657f",
        "initialization": "71ea9f7d007f",
        "recovery": "4e4e73fe1186",
        "relabeling": "9fbc3f195c98",
        "statistics": "3bee505d360d",
    },
    "demo": {
        "evaluation": "9c178d4bb415",
        "experts": "8efd91e8d03f",
        "initialization": "30383781fca8",
        "recovery": "a34ef3cd3634",
        "relabeling": "655d506eb578",
        "statistics": "08388e4b71e2",
    },
    "paper": {
        "evaluation": "3608de1da751",
        "experts": "6cfac499a773",
        "initialization": "910c35dff86e",
        "recovery": "823e556166fc",
        "relabeling": "6c4b529bd59f",
        "statistics": "3bee505d360d",
    },
}


@pytest.mark.parametrize("name", ["demo", "cpu", "paper"])
def test_keys_are_those_of_yesterday(name: str, digits: LongTailedData, tmp_path: Path) -> None:
    """A key that changes orphans stored results: raise `FORMAT`, and say so in the changelog."""
    assert keys(configuration(name), digits, tmp_path) == PINNED[name]


def test_a_new_field_with_a_default_is_in_no_key() -> None:
    @dataclasses.dataclass(frozen=True)
    class Later(EvaluationConfig):
        new_option: bool = False
        NOT_IN_KEYS: ClassVar = EvaluationConfig.NOT_IN_KEYS

    assert deciding_settings(Later(epochs=3)) == deciding_settings(EvaluationConfig(epochs=3))
    assert deciding_settings(Later(new_option=True)) == {"new_option": True}


@pytest.mark.parametrize(
    ("settings", "decides"),
    [
        (StatisticsConfig(batch_size=7), {}),
        (EvaluationConfig(seeds=9, baselines=(), full_epochs=4), {}),
        (EvaluationConfig(epochs=7, seeds=9), {"epochs": 7}),
        (dataclasses.replace(TINY.experts, observer="resnet9", class_map="x.json"), None),
    ],
)
def test_fields_that_do_not_change_the_result_are_in_no_key(
    settings: Any, decides: dict[str, Any] | None
) -> None:
    expected = deciding_settings(TINY.experts) if decides is None else decides
    assert deciding_settings(settings) == expected
