"""Labels and a learning rate that recovery learned go through everything that reads a set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_run import QUIET, TINY, Outcome

import ltdd
from ltdd import pipeline
from ltdd.config import (
    CorrectReal,
    DistillConfig,
    EvaluationConfig,
    RelabelingConfig,
    TrajectoryRecovery,
)
from ltdd.engine.storage.files import read_json, read_tensors, write_tensors
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.results.card import write_card
from ltdd.results.exports.ddranking import write as write_ddranking
from ltdd.results.pages.report import write_report
from ltdd.results.verify import verify
from ltdd.studies.evaluate import evaluate

CONFIG = dataclasses.replace(
    TINY,
    ipc=1,
    initialization=CorrectReal(),
    recovery=TrajectoryRecovery(
        network="convnet1", trajectories=2, trajectory_epochs=3, trajectory_batch_size=64,
        start_max=1, iterations=3, steps=2, learned_labels=True, rate_learning_rate=1e-6,
        image_learning_rate=1.0,
    ),
    relabeling=RelabelingConfig(labels="learned"),
    evaluation=EvaluationConfig(
        student="convnet1", epochs=2, seeds=1, learning_rate=None, loss="soft_ce",
        hard_weight=0.0, baselines=("random_real", "distilled_bare"),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned") / "run"
    pipeline.distill(CONFIG, out, options=QUIET)
    return out


def learned(run: Path) -> dict[str, torch.Tensor]:
    (path,) = (run / "stages").glob("recovery-*.safetensors")
    return read_tensors(path)[0]


def test_the_set_and_its_manifest_hold_what_was_learned(run: Path) -> None:
    tensors, distilled = learned(run), ltdd.load(run)
    assert torch.equal(distilled.logits, tensors["logits"].half().float())
    training = distilled.manifest["student_training"]
    rate = float(tensors["learning_rate"])
    assert training["learning_rate"] == rate != 0.01
    assert training["labels"] == "learned"
    assert distilled.manifest["tensors"]["logits"]["layout"] == "M K, learned with the images"
    assert DistillConfig.from_dict(distilled.manifest["config"]) == CONFIG
    matching = (distilled.results or {})["matching"]
    assert matching["learning_rate"] == rate
    assert matching["seconds_per_iteration"] > 0
    assert matching["iterations"] == 3
    assert (distilled.results or {})["stages"]["trajectories"]["seconds"] > 0


def test_it_is_verified_and_other_logits_are_found_out(run: Path, tmp_path: Path) -> None:
    assert [f for f in verify(run) if f.problem] == []
    (path,) = (run / "stages").glob("recovery-*.safetensors")
    content, moved = path.read_bytes(), learned(run)
    moved["logits"] = moved["logits"] + 1
    try:
        write_tensors(path, moved, {})
        assert [f for f in verify(run) if f.problem]
    finally:
        path.write_bytes(content)


def test_other_students_learn_the_same(run: Path) -> None:
    (own,) = evaluate(ltdd.load(run), ["convnet1"], 1, "learned", options=QUIET).values()
    results = read_json(run / "results.json")
    assert own["student"] == results["student"]
    (hard,) = evaluate(ltdd.load(run), ["convnet1"], 1, "static", options=QUIET).values()
    assert hard["student"]["labels"] == "static"  # the teacher's
    bytes_of = [p.name for p in (run / "stages").glob("relabeling-*")]
    assert bytes_of, "the teacher has given labels of its own"


def test_a_network_of_ones_own_has_the_learned_rate(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[Any] = []
    kept = torch.optim.AdamW

    def recorded(groups: Any, lr: Any, **others: Any) -> Any:
        rates.append(float(lr))
        return kept(groups, lr=lr, **others)

    monkeypatch.setattr(torch.optim, "AdamW", recorded)
    model = build_model("convnet1", 10, 8, 1)
    ltdd.train_student(run, model, quiet=True)
    ltdd.train_student(run, model, quiet=True, learning_rate=0.5)
    assert rates == [float(learned(run)["learning_rate"]), 0.5]


def test_report_card_and_export_say_it(run: Path, tmp_path: Path) -> None:
    distilled = ltdd.load(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Recovery matched the paths of experts" in page
    card = write_card(distilled, tmp_path).read_text(encoding="utf-8")
    rate = distilled.manifest["student_training"]["learning_rate"]
    assert f"a learning rate of {rate}" in card
    write_ddranking(distilled, tmp_path / "export")
    exported = torch.load(tmp_path / "export/lr.pt", weights_only=True)
    assert float(exported) == pytest.approx(rate)


def test_a_second_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    pipeline.distill(CONFIG, tmp_path / "again", options=QUIET)
    assert Outcome(tmp_path / "again") == Outcome(run)


def test_labels_that_were_not_learned_are_refused(tmp_path: Path) -> None:
    plain = dataclasses.replace(
        CONFIG,
        recovery=dataclasses.replace(CONFIG.recovery, learned_labels=False),
        relabeling=RelabelingConfig(labels="hard"),
    )
    pipeline.distill(plain, tmp_path / "run", options=QUIET)
    distilled = ltdd.load(tmp_path / "run")
    with pytest.raises(UserError, match=r"whose labels were learned .* one with hard labels"):
        evaluate(distilled, ["convnet1"], 1, "learned", options=QUIET)
    (own,) = evaluate(distilled, ["convnet1"], 1, "hard", options=QUIET).values()
    assert own["student"] == (distilled.results or {})["student"]
