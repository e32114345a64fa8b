"""Experts that a run is given, several of them, and `ltdd check-teacher`, on digits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.tiny_run import QUIET

import ltdd
from ltdd import pipeline
from ltdd.cli.main import main
from ltdd.config import DistillConfig, EvaluationConfig, PlainExperts, RecoveryConfig
from ltdd.data.long_tailed_data import load_data
from ltdd.engine.storage.files import read_json
from ltdd.engine.storage.stage_store import read_stage
from ltdd.engine.watching.events import read_events
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.inference import predict_logits
from ltdd.stages.experts import train_experts
from ltdd.stages.run import Run

BASE = DistillConfig(
    data="digits",
    imbalance_factor=20.0,
    ipc=1,
    horizontal_flip=False,
    experts=PlainExperts(
        observer="convnet3_bn",
        epochs=4,
        batch_size=32,
        learning_rate=0.05,
        schedule="one_cycle",
    ),
    recovery=RecoveryConfig(iterations=4),
    evaluation=EvaluationConfig(epochs=2, seeds=1, baselines=()),
)


def experts(config: DistillConfig, **settings: Any) -> DistillConfig:
    return dataclasses.replace(config, experts=dataclasses.replace(config.experts, **settings))


SEVERAL = experts(BASE, extra_observers=("convnet3_bn",), extra_teachers=("resnet9",))


def assumed_orders(out: Path) -> list[str]:
    """Return the weights files whose classes were taken to be in the data's order."""
    events = read_events(out / "events.jsonl")
    return [e["file"] for e in events if e["event"] == "class_order_assumed"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two observers, which are also the teacher, and a third network beside them."""
    out = tmp_path_factory.mktemp("runs") / "several"
    pipeline.distill(SEVERAL, out, options=QUIET)
    return out


def trained_roles(out: Path) -> set[str]:
    return {e["role"] for e in read_events(out / "events.jsonl") if e["event"] == "train"}


def test_several_experts_make_one_run(run: Path) -> None:
    assert trained_roles(run) == {"observer", "observer2", "teacher2"}
    results = read_json(run / "results.json")
    assert results["teacher"]["arch"] == "convnet3_bn+convnet3_bn+resnet9"
    assert results["observer"]["arch"] == "convnet3_bn"
    assert results["teacher"]["accuracy"]["mean"] > 0.3
    stored = list((run / "stages").glob("statistics-*.safetensors"))
    assert len(stored) == 2
    first, second = (read_stage(path).tensors["0.mean"] for path in stored)
    assert not torch.equal(first, second)  # another seed, another network


def test_labels_are_those_of_the_stored_pixels(run: Path) -> None:
    distilled = ltdd.load(run)
    data = load_data(SEVERAL.data, SEVERAL.imbalance_factor)
    again = Run.create(SEVERAL, data, run, QUIET, finished=frozenset({"experts"}))
    teacher, normalization = train_experts(again).teacher.value, data.normalization
    images = distilled.images
    assert images.dtype == torch.uint8
    expected = predict_logits(teacher, images, normalization, again.runtime)
    torch.testing.assert_close(distilled.logits.float(), expected, rtol=2e-3, atol=2e-3)
    # A step of the 8-bit scale would show: it is what rounding after labelling amounts to.
    moved = (images.int() + 1).clamp(max=255).to(torch.uint8)
    other = predict_logits(teacher, moved, normalization, again.runtime)
    assert float((other - expected).abs().max()) > 5e-3


def test_a_given_observer_is_not_trained_and_gives_the_same_images(
    tmp_path: Path,
) -> None:
    pipeline.distill(BASE, tmp_path / "trained", options=QUIET)
    weights = expert_file(tmp_path / "trained", tmp_path)
    given = experts(BASE, observer_weights=str(weights))
    pipeline.distill(given, tmp_path / "given", options=QUIET)
    assert trained_roles(tmp_path / "given") == set()
    assert trained_roles(tmp_path / "trained") == {"observer"}
    first, second = ((tmp_path / n / "data.safetensors").read_bytes() for n in ("given", "trained"))
    assert first == second
    # Other weights under the same name are another expert; nothing else changes its key.
    network = build_model("convnet3_bn", 10, 8, 1)
    safetensors.torch.save_file(network.state_dict(), weights)
    pipeline.distill(given, tmp_path / "given", options=QUIET)
    assert (tmp_path / "given" / "data.safetensors").read_bytes() != first


def expert_file(run: Path, folder: Path, names: list[str] | None = None) -> Path:
    """Write the run's first observer as a file of its own, outputs in the order of ``names``."""
    network = build_model("convnet3_bn", 10, 8, 1)
    for path in (run / "stages").glob("experts-*.safetensors"):
        tensors = read_stage(path).tensors
        if set(tensors) == set(network.state_dict()):
            break
    if names is not None:
        order = [int(name) for name in names]
        tensors = {k: v[order] if k.startswith("classifier.") else v for k, v in tensors.items()}
    file = folder / "weights.safetensors"
    safetensors.torch.save_file(tensors, file)
    return file


def test_a_teacher_from_a_file_with_a_class_map(run: Path, tmp_path: Path) -> None:
    names = list("9876543210")
    file, class_map = expert_file(run, tmp_path, names), tmp_path / "classes.json"
    class_map.write_text(json.dumps(names))
    config = experts(
        BASE, teacher="convnet3_bn", teacher_weights=str(file), class_map=str(class_map), epochs=1
    )
    results = pipeline.distill(config, tmp_path / "run", options=QUIET)
    assert trained_roles(tmp_path / "run") == {"observer"}
    assert assumed_orders(tmp_path / "run") == []
    assert results["teacher"]["accuracy"]["mean"] > 0.3


def test_weights_that_name_no_classes_are_mentioned(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(expert_file(run, tmp_path))
    pipeline.distill(experts(BASE, observer_weights=file), tmp_path / "run")
    assert f"{file} names no classes; its outputs are taken" in capsys.readouterr().err
    assert assumed_orders(tmp_path / "run") == [file]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"observer_weights": "none.pt"}, "experts.observer_weights: cannot read none.pt"),
        ({"teacher_weights": "w.pt"}, "experts.teacher to name the architecture"),
        ({"teacher": "torchvision:resnet7"}, "experts.teacher: .*got 'resnet7'"),
        ({"extra_observers": ("convnet3",)}, "BatchNorm2d"),
        ({"extra_teachers": ("resnet7",)}, "experts.extra_teachers: expected an architecture"),
        ({"warmup_epochs": 2}, "schedule cosine with warmup_epochs, got 'one_cycle'"),
    ],
)
def test_what_cannot_work_fails_before_any_work(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        pipeline.distill(experts(BASE, **settings), tmp_path / "out", options=QUIET)
    assert not (tmp_path / "out").exists()


def check(*words: object) -> int:
    return main(["check-teacher", *map(str, words)])


def accuracy(shown: str) -> float:
    return float(shown.split("overall")[1].split()[0]) / 100


def test_the_teacher_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(run) == 0
    shown = capsys.readouterr()
    stored = read_json(run / "results.json")["teacher"]
    assert accuracy(shown.out) == pytest.approx(stored["accuracy"]["mean"], abs=6e-4)
    assert "convnet3_bn+convnet3_bn+resnet9 on 500 held-out images of digits" in shown.out
    for name in ("head", "tail", "many shot", "few shot"):
        assert name in shown.out
    rows = [line.split() for line in shown.out.splitlines()[-10:]]
    assert [row[0] for row in rows] == list("0123456789")
    assert [float(row[2]) for row in rows] == pytest.approx(
        [100 * value for value in stored["per_class"]], abs=0.06
    )
    assert shown.err == ""
    # Looking changed nothing that a later run depends on.
    assert check(run, "--floor", "0.2") == 0
    assert check(run, "--floor", "0.999") == 1
    assert "expected 99.9 % or more (chance is 10.0 %)" in capsys.readouterr().err


def test_weights_with_classes_in_another_order_are_noticed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = list("9876543210")
    words = (expert_file(run, tmp_path, names), "--arch", "convnet3_bn", "--data", "digits")
    assert check(*words) == 0
    shown = capsys.readouterr()
    assert accuracy(shown.out) < 0.19
    assert "are its classes in another order" in shown.err
    class_map = tmp_path / "classes.json"
    class_map.write_text(json.dumps({"class_names": names}))
    assert check(*words, "--class-map", class_map, "--floor", "0.3") == 0
    assert accuracy(capsys.readouterr().out) > 0.3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("none.pt", "expected --arch and --data to go with the weights none.pt"),
        ("none.pt --arch resnet9 --data digits", "cannot read none.pt"),
        ("RUN --arch resnet9", "--arch with a file of weights only"),
        ("RUN --floor 2", "expected --floor between 0 and 1, got 2"),
        ("EMPTY", "cannot read"),
    ],
)
def test_questions_without_an_answer(
    run: Path, tmp_path: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(run), "EMPTY": str(tmp_path)}
    assert check(*(places.get(word, word) for word in words.split())) == 2
    assert said in capsys.readouterr().err


def test_a_run_of_an_earlier_version_goes_on(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "old"
    shutil.copytree(run, out)
    stored = read_json(out / "run.json")
    for name in ("class_map", "averaging", "warmup_epochs"):
        del stored["config"]["experts"][name]
    stored["fingerprint"] = "of the fields of that time"
    (out / "run.json").write_text(json.dumps(stored))
    seen = len(read_events(out / "events.jsonl"))
    pipeline.distill(SEVERAL, out, options=QUIET)
    ends = [e for e in read_events(out / "events.jsonl")[seen:] if e["event"] == "stage_end"]
    assert ends
    assert all(e["reused"] for e in ends)
    with pytest.raises(UserError, match=r"experts.averaging = 'none' \(now 'ema'\)"):
        pipeline.distill(experts(SEVERAL, averaging="ema"), out, options=QUIET)
