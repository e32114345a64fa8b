"""What a run will take is known before it starts: the steps that its stages then report."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_run import FINISHED, QUIET, TINY

from ltdd import pipeline
from ltdd.config import DistillConfig, ExpertsConfig, GradientMatching
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.forecast import forecast, planned
from ltdd.stages.run import Run


@pytest.fixture(scope="module")
def digits() -> LongTailedData:
    return load_data("digits", 50.0)


def work(config: DistillConfig, data: LongTailedData) -> dict[str, Any]:
    return {f"{one.stage}: {one.what}": one for one in planned(config, data)}


def test_steps_are_those_that_stages_then_take(
    digits: LongTailedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: dict[str, int] = {}
    original = Runtime.progress

    def watch(self: Runtime, total: int, label: str, done: int = 0) -> Any:
        totals[label] = total
        return original(self, total, label, done)

    monkeypatch.setattr(Runtime, "progress", watch)
    evaluation = dataclasses.replace(
        FINISHED.evaluation, baselines=("random_real_soft", "full_long_tailed"), full_epochs=2
    )
    config = dataclasses.replace(FINISHED, evaluation=evaluation)
    pipeline.distill(config, tmp_path, options=QUIET)
    planned_work = work(config, digits)
    assert (
        planned_work["experts: steps of convnet3_bn"].steps
        == totals["experts: observer (convnet3_bn)"]
    )
    assert (
        planned_work["evaluation: steps of convnet3"].steps
        == totals["experts: full_long_tailed (convnet3)"]
    )
    assert planned_work["recovery: iterations"].steps == totals["recovery"]
    steps = totals["evaluation: student 1/1"] * 2  # of 10 of 20 images an epoch
    assert planned_work["evaluation: steps of 2 students"].steps == 2 * steps
    assert planned_work["relabeling: batches of views"].steps == 2 * steps


def test_given_weights_and_found_labels_cost_nothing(digits: LongTailedData) -> None:
    experts = dataclasses.replace(TINY.experts, observer_weights="w.pt")
    relabeling = dataclasses.replace(TINY.relabeling, labels="hard")
    evaluation = dataclasses.replace(TINY.evaluation, baselines=())
    config = dataclasses.replace(
        TINY, experts=experts, relabeling=relabeling, evaluation=evaluation
    )
    assert [one.stage for one in planned(config, digits)] == ["recovery", "evaluation"]


def test_a_share_of_the_pixels_is_a_share_of_the_cost(digits: LongTailedData) -> None:
    experts = ExpertsConfig(observer="resnet9", epochs=10, progressive_resizing=True)
    plain = dataclasses.replace(experts, progressive_resizing=False)
    grown, whole = (
        next(planned(dataclasses.replace(TINY, experts=e), load_data("digits", 50.0, 32)))
        for e in (experts, plain)
    )
    assert grown.steps == whole.steps
    assert whole.share == 1
    assert grown.share == pytest.approx(0.4 * 0.25 + 0.3 * 0.5625 + 0.3)


def test_the_table_names_every_stage(digits: LongTailedData, tmp_path: Path) -> None:
    run = Run.create(TINY, digits, tmp_path, QUIET)
    table = forecast(run)
    assert re.match(r"from nothing about [\d.]+ (s|min|h)", table)
    for stage in ("experts", "recovery", "relabeling", "evaluation"):
        assert re.search(rf"^  {stage} +[\d,]+ .* (s|h)$", table, re.MULTILINE), stage
    matching = dataclasses.replace(TINY, recovery=GradientMatching())
    table = forecast(Run.create(matching, digits, tmp_path, QUIET))
    assert "  recovery    method gradient" in table


def test_many_classes_do_not_make_a_long_training() -> None:
    evaluation = dataclasses.replace(TINY.evaluation, epochs=100, batch_size=10, max_steps=120)
    config = dataclasses.replace(TINY, ipc=10, evaluation=evaluation)
    epochs = {k: config.of_classes(k).evaluation.epochs for k in (1, 2, 10, 1000)}
    assert epochs == {1: 100, 2: 60, 10: 12, 1000: 1}
    assert config.of_classes(10).evaluation.max_steps is None
    assert dataclasses.replace(config, evaluation=TINY.evaluation).of_classes(1000).evaluation == (
        TINY.evaluation
    )
    decoded = dataclasses.replace(evaluation, decode=2)
    assert dataclasses.replace(config, evaluation=decoded).of_classes(10).evaluation.epochs == 3
    with pytest.raises(UserError, match=r"evaluation\.max_steps >= 1, got 0"):
        dataclasses.replace(evaluation, max_steps=0)


def test_a_run_of_most_steps_is_one_of_so_many_epochs(tmp_path: Path) -> None:
    def students(folder: str, **settings: Any) -> set[str]:
        evaluation = dataclasses.replace(FINISHED.evaluation, baselines=(), **settings)
        config = dataclasses.replace(FINISHED, evaluation=evaluation)
        results = pipeline.distill(config, tmp_path / folder, options=QUIET)
        assert results["student"]["epochs"] == 3
        return {path.name for path in (tmp_path / folder / "stages").glob("evaluation-*")}

    # 20 images are two steps of 10.
    assert students("steps", epochs=9, max_steps=7) == students("epochs", epochs=3)
