"""The whole pipeline on scikit-learn's digits, at a budget of seconds."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import QUIET, shared

import ltdd
from ltdd import pipeline
from ltdd.cli.main import main
from ltdd.config import (
    DistillConfig,
    EvaluationConfig,
    ExpertsConfig,
    RecoveryConfig,
    form_of,
)
from ltdd.engine.storage.files import read_json
from ltdd.engine.storage.stage_store import read_stage
from ltdd.engine.watching.events import read_events
from ltdd.errors import UserError
from ltdd.results.scores import ARS_BASELINES, LRS_BASELINES
from ltdd.results.verify import verify
from ltdd.studies.evaluate import evaluate, file_stem

TINY = DistillConfig(
    data="digits",
    imbalance_factor=50.0,
    ipc=3,
    horizontal_flip=False,
    experts=ExpertsConfig(
        observer="convnet3_bn", epochs=2, batch_size=64, learning_rate=0.05, schedule="one_cycle"
    ),
    recovery=RecoveryConfig(iterations=20),
    evaluation=EvaluationConfig(epochs=3, seeds=2, full_epochs=1),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.distill(TINY, out, options=QUIET)
    return out


def _stored_images(out: Path, stage: str) -> torch.Tensor:
    (path,) = (out / "stages").glob(f"{stage}-*.safetensors")
    return read_stage(path).tensors["images"]


def test_results_name_every_accuracy_cost_and_origin(run: Path) -> None:
    results = read_json(run / "results.json")
    for who in (results["student"], *results["baselines"].values(), results["teacher"]):
        assert 0 <= who["accuracy"]["mean"] <= 1
        assert len(who["per_class"]) == 10
        assert all("mean" in who[group] for group in ("head", "medium", "tail"))
    assert results["student"]["accuracy"]["n"] == 2
    assert results["student"]["labels"] == "fkd"
    assert set(results["baselines"]) == {"random_real", "full_long_tailed"}
    assert set(results["stages"]) == {
        "experts", "statistics", "initialization", "recovery", "relabeling", "drift", "nearest",
        "evaluation",
    }  # fmt: skip
    assert all(cost["peak_bytes"] > 0 for cost in results["stages"].values())
    assert results["bytes"] == {"images": 30 * 64, "labels": 2 * 30 * 10 + 2 * 3 * 30 * 10}
    assert results["label_bytes"] == {"static": 2 * 30 * 10, "fkd": 2 * 3 * 30 * 10}
    assert results["provenance"]["torch"] == torch.__version__


def test_the_distilled_set_is_balanced_and_says_what_it_is(run: Path) -> None:
    distilled = ltdd.load(run)
    assert distilled.images.dtype == torch.uint8
    assert distilled.images.shape == (30, 1, 8, 8)
    assert torch.bincount(distilled.labels).tolist() == [3] * 10
    assert distilled.logits.shape == (30, 10)
    assert distilled.class_names == tuple("0123456789")
    assert distilled.manifest["split_sha256"] == read_json(run / "run.json")["split_sha256"]
    images, labels, logits = next(iter(distilled.loader(batch_size=7)))
    assert images.shape == (7, 1, 8, 8)
    assert len(labels) == len(logits) == 7


def test_recovery_moves_images_and_lowers_the_alignment_loss(run: Path) -> None:
    moved = (_stored_images(run, "recovery") - _stored_images(run, "initialization")).abs()
    assert moved.amax(dim=(1, 2, 3)).min() > 0  # every image
    losses = [e["alignment"] for e in read_events(run / "events.jsonl") if e["event"] == "recover"]
    assert losses[-1] < losses[0]


def test_drift_is_measured_on_every_layer_of_the_observer(run: Path) -> None:
    drift = read_json(run / "results.json")["drift"]
    assert [layer["layer"] for layer in drift] == ["body.0.1", "body.1.1", "body.2.1"]
    for layer in drift:
        for kind in ("running", "pooled", "start", "distilled", "published"):
            assert layer[kind]["mean"] > 0
            assert layer[kind]["spread"] > 1
    # recovery brings every class closer to its own statistics
    assert all(layer["distilled"]["classes"] < layer["start"]["classes"] for layer in drift)


def test_the_same_command_reuses_every_stage(run: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in (run / "stages").iterdir()}
    old = read_json(run / "results.json")
    seen = len(read_events(run / "events.jsonl"))
    again = pipeline.distill(TINY, run, options=QUIET)
    assert {p.name: p.stat().st_mtime_ns for p in (run / "stages").iterdir()} == before
    ends = [e for e in read_events(run / "events.jsonl")[seen:] if e["event"] == "stage_end"]
    assert ends
    assert all(e["reused"] for e in ends)
    assert again["student"] == old["student"]
    assert again["stages"] == old["stages"]


def test_another_configuration_is_refused_and_nothing_is_lost(run: Path) -> None:
    files = sorted(run.rglob("*.safetensors"))
    other = dataclasses.replace(TINY, ipc=2)
    with pytest.raises(UserError, match="ipc"):
        pipeline.distill(other, run, options=QUIET)
    assert sorted(run.rglob("*.safetensors")) == files


@pytest.mark.parametrize("labels", ["static", "online", "hard", "fkd"])
def test_other_students_train_on_a_finished_run(run: Path, labels: str) -> None:
    manifest = (run / "manifest.json").read_bytes()
    events = (run / "events.jsonl").read_bytes()
    results = evaluate(ltdd.load(run), ["alexnet"], 1, labels, options=QUIET)["alexnet"]
    assert results["student"]["arch"] == "alexnet"
    assert results["student"]["accuracy"]["n"] == 1
    assert (run / "evaluations" / f"alexnet-{labels}.json").exists()
    assert (run / "manifest.json").read_bytes() == manifest
    # The report of the run draws its own students' losses; these have a log of their own.
    assert (run / "events.jsonl").read_bytes() == events
    own = read_events(run / "evaluations" / f"alexnet-{labels}" / "events.jsonl")
    assert {event["who"] for event in own if event["event"] == "student"} == {"student"}


def test_evaluate_never_trains_an_expert_anew(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "stages").glob("experts-*"):
        path.unlink()
    with pytest.raises(UserError, match="experts"):
        evaluate(ltdd.load(copy), ["alexnet"], 1, "static", options=QUIET)


def test_both_backends_recover_the_same_images(run: Path, tmp_path: Path) -> None:
    reference = dataclasses.replace(
        TINY, backend="reference", evaluation=EvaluationConfig(epochs=1, seeds=1, baselines=())
    )
    pipeline.distill(reference, tmp_path / "reference", options=QUIET)
    difference = (
        (_stored_images(run, "recovery") - _stored_images(tmp_path / "reference", "recovery"))
        .abs()
        .max()
    )
    assert difference <= 1e-3


def test_a_class_with_fewer_images_than_ipc_works(tmp_path: Path) -> None:
    few = dataclasses.replace(
        TINY,
        ipc=15,  # the last class has 2 training images: 5 crops each are not enough
        recovery=RecoveryConfig(iterations=1),
        evaluation=EvaluationConfig(epochs=1, seeds=1, baselines=("random_real",)),
    )
    results = pipeline.distill(few, tmp_path / "few", options=QUIET)
    assert min(results["counts"]) < 3
    assert torch.bincount(ltdd.load(tmp_path / "few").labels).tolist() == [15] * 10


@pytest.mark.parametrize("method", ["random_real", "noise"])
def test_other_initializations_and_an_own_teacher(tmp_path: Path, method: str) -> None:
    config = dataclasses.replace(
        TINY,
        experts=dataclasses.replace(TINY.experts, teacher="convnet3", epochs=1),
        initialization=form_of("initialization", method)(),
        recovery=RecoveryConfig(iterations=2),
        evaluation=EvaluationConfig(epochs=1, seeds=1, baselines=()),
    )
    results = pipeline.distill(config, tmp_path / method, options=QUIET)
    assert results["teacher"]["arch"] == "convnet3"
    assert results["observer"]["arch"] == "convnet3_bn"


def test_runs_share_results_through_a_pool_and_stay_complete(run: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(run / "stages", pool)
    before = {path.name: path.stat().st_mtime_ns for path in pool.iterdir()}
    settings = dataclasses.replace(
        TINY,
        relabeling=dataclasses.replace(TINY.relabeling, calibration="adsa"),
        evaluation=dataclasses.replace(TINY.evaluation, baselines=("random_real",)),
    )
    results = pipeline.distill(settings, tmp_path / "out", options=shared(pool))
    events = read_events(tmp_path / "out/events.jsonl")
    computed = [e["stage"] for e in events if e["event"] == "stage_end" and not e["reused"]]
    assert computed == ["relabeling", "evaluation", "evaluation"]  # tau, and students of its labels
    assert {path.name for path in (tmp_path / "out/stages").iterdir()} == set(results["files"])
    new = {path.name for path in pool.iterdir()} - set(before)
    assert len(new) == 3
    assert new < set(results["files"])
    assert {name: (pool / name).stat().st_mtime_ns for name in before} == before
    assert results["baselines"] == {
        "random_real": read_json(run / "results.json")["baselines"]["random_real"]
    }
    shutil.rmtree(pool)
    evaluate(ltdd.load(tmp_path / "out"), ["convnet3"], 1, "fkd", options=QUIET)


def test_a_changed_student_setting_costs_students_and_nothing_else(
    run: Path, tmp_path: Path
) -> None:
    students = dataclasses.replace(TINY.evaluation, weight_decay=0.02)
    config = dataclasses.replace(TINY, evaluation=students)
    with pytest.raises(UserError, match=r"weight_decay = 0.01 \(now 0.02\).*taken from the store"):
        pipeline.distill(config, run, options=QUIET)
    results = pipeline.distill(config, tmp_path / "out", options=shared(run / "stages"))
    events = read_events(tmp_path / "out/events.jsonl")
    computed = [e["stage"] for e in events if e["event"] == "stage_end" and not e["reused"]]
    assert set(computed) == {"evaluation"}
    # What a student is trained on decides, not what made it: one more seed finds the first one.
    more = dataclasses.replace(config, evaluation=dataclasses.replace(students, seeds=3))
    again = pipeline.distill(more, tmp_path / "more", options=shared(tmp_path / "out/stages"))
    assert again["files"].items() >= results["files"].items()


def test_a_store_that_cannot_be_written_costs_nothing_but_its_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    students = dataclasses.replace(TINY.evaluation, epochs=1, seeds=1, baselines=())
    config = dataclasses.replace(TINY, evaluation=students)
    options = dataclasses.replace(QUIET, store=tmp_path / "file")
    results = pipeline.distill(config, tmp_path / "new", options=options)
    assert results["student"]["accuracy"]["n"] == 1
    events = read_events(tmp_path / "new/events.jsonl")
    assert any(event["event"] == "not_shared" for event in events)


def test_calibration_changes_every_kind_of_soft_label_alike(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = ltdd.load(run)
    settings = dataclasses.replace(
        TINY,
        relabeling=dataclasses.replace(TINY.relabeling, calibration="adsa"),
        evaluation=dataclasses.replace(TINY.evaluation, seeds=1, baselines=()),
    )
    results = pipeline.distill(settings, out, options=shared(run / "stages"))
    tau = results["calibration"]["tau"]
    assert 0 < tau <= 2  # two epochs do not unlearn an imbalance of 50
    calibrated = ltdd.load(out)
    assert calibrated.manifest["student_training"]["calibration_tau"] == tau
    assert torch.equal(calibrated.images, plain.images)
    prior = torch.tensor(results["counts"]).double()
    shift = tau * (prior / prior.sum()).log()
    # Both were rounded to float16 when they were published.
    expected = plain.logits - shift.float()
    torch.testing.assert_close(calibrated.logits, expected, rtol=2e-3, atol=2e-3)
    views, before = calibrated.fkd_logits(), plain.fkd_logits()
    assert views is not None
    assert before is not None
    torch.testing.assert_close(views[:], before[:] - shift.float())
    assert all(finding.problem is None for finding in verify(out))
    online = evaluate(ltdd.load(out), ["convnet3"], 1, "online", options=QUIET)["convnet3"]
    assert online["student"]["accuracy"] == results["student"]["accuracy"]  # of `fkd` labels


def test_several_architectures_are_evaluated_in_one_table(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--arch", "convnet3,alexnet", "--labels", "static", "--seeds", "1", "--verbose"]
    assert main(["evaluate", str(run), *words]) == 0
    shown, events = capsys.readouterr()
    assert "student who=student seed=0 epoch=0 loss=" in events
    rows = [line.strip("| ").split("|") for line in shown.splitlines() if line.startswith("|")]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert table["accuracy in %"] == [
        "overall", "head", "medium", "tail", "many", "med. shot", "few",
    ]  # fmt: skip
    for name in ("convnet3", "alexnet"):
        student = read_json(run / f"evaluations/{name}-static.json")["student"]
        wanted = [student["accuracy"], student["head"], student["medium"], student["tail"]]
        assert table[name][:4] == [f"{100 * score['mean']:.1f}" for score in wanted]
    assert table["class"] == ["images", "convnet3", "alexnet"]
    assert table["9"][2] == f"{100 * student['per_class'][9]:.1f}"
    files = [path for path in (run / "evaluations").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert main(["evaluate", str(run), "--arch", "convnet3,vgg"]) == 2
    assert "got 'vgg'" in capsys.readouterr().err
    assert sorted(p for p in (run / "evaluations").rglob("*") if p.is_file()) == sorted(files)
    assert {path: path.read_bytes() for path in files} == before


def test_robust_scores_come_from_their_baselines(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--lrs", "--ars"]) == 0
    results = read_json(run / "evaluations/convnet3-fkd.json")
    shown = capsys.readouterr().out
    assert set(results["baselines"]) == {*LRS_BASELINES, *ARS_BASELINES}
    for kind in ("lrs", "ars"):
        score = results["robustness"][kind][kind]
        assert f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f}" in shown
    ours = results["student"]["accuracy"]["mean"]
    means = {name: row["accuracy"]["mean"] for name, row in results["baselines"].items()}
    lrs, ars = results["robustness"]["lrs"], results["robustness"]["ars"]
    assert lrs["hlr"]["mean"] == pytest.approx(means["full_long_tailed"] - means["distilled_hard"])
    assert lrs["ior"]["mean"] == pytest.approx(ours - means["random_real_soft"])
    assert ars["augmented"]["mean"] == pytest.approx(lrs["ior"]["mean"])
    assert ars["unaugmented"]["mean"] == pytest.approx(
        means["distilled_bare"] - means["random_real_bare"]
    )
    assert 0 < lrs["lrs"]["mean"] < 1
    assert 0 < ars["ars"]["mean"] < 1
    assert read_json(run / "results.json")["robustness"] == {}


def test_an_observer_without_batch_norm_fails_before_any_work(tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY, experts=dataclasses.replace(TINY.experts, observer="convnet3")
    )
    with pytest.raises(UserError, match="BatchNorm2d"):
        pipeline.distill(config, tmp_path / "out", options=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_beats_its_baselines(tmp_path: Path) -> None:
    main(["distill", "--preset", "demo", "--imbalance-factor", "50", "--out", str(tmp_path / "d")])
    results = read_json(tmp_path / "d" / "results.json")
    baselines = results["baselines"]
    assert results["student"]["accuracy"]["mean"] > baselines["random_real"]["accuracy"]["mean"]
    assert results["student"]["tail"]["mean"] > baselines["full_long_tailed"]["tail"]["mean"]


def test_files_of_networks_from_elsewhere_have_no_colon() -> None:
    assert file_stem("torchvision:resnet18") == "torchvision-resnet18"
    assert file_stem("convnet3") == "convnet3"
