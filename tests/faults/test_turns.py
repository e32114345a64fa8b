"""Trainings that take turns: the same bytes, undisturbed, stopped, killed or out of memory."""

from __future__ import annotations

import dataclasses
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_run import QUIET, Forked, smaller
from torch import Tensor, nn

from ltdd import pipeline
from ltdd.config import DistillConfig
from ltdd.engine import interruption, turns
from ltdd.engine.cuda_graphs import RecordedSteps
from ltdd.engine.loss_watch import LossWatch
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import Runtime, choose_kernels
from ltdd.engine.storage.stage_store import read_stage
from ltdd.engine.watching.events import Event, read_events
from ltdd.errors import UserError
from ltdd.stages.evaluation import training as student_training
from ltdd.stages.experts import training as expert_training

AtOnce = Callable[[int], None]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    """Three experts that imitate a fourth one, and four students, in seconds."""
    plain = smaller(tmp_path_factory.mktemp("digits"))
    experts = dataclasses.replace(
        plain.experts,
        epochs=4,
        teacher="convnet3",
        extra_teachers=("convnet1_bn",),
        distil_from="convnet1",
    )
    students = dataclasses.replace(plain.evaluation, epochs=6, batch_size=3)
    return dataclasses.replace(plain, experts=experts, evaluation=students)


def tensors(out: Path) -> dict[str, dict[str, Tensor]]:
    """Return all that the stages of a run stored."""
    return {path.name: read_stage(path).tensors for path in out.glob("stages/*.safetensors")}


@pytest.fixture(scope="module")
def alone(config: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run whose trainings went one after the other."""
    out = tmp_path_factory.mktemp("alone") / "run"
    pipeline.distill(config, out, options=QUIET)
    return out


def equal(out: Path, alone: Path) -> bool:
    """Return whether two runs stored the same bytes."""
    found, wanted = tensors(out), tensors(alone)
    assert list(out.glob("stages/*.checkpoint")) == []
    return found.keys() == wanted.keys() and all(
        found[name].keys() == wanted[name].keys()
        and all(torch.equal(found[name][key], wanted[name][key]) for key in wanted[name])
        for name in wanted
    )


def losses(out: Path, kind: str) -> list[tuple[str, int]]:
    """Return whose losses of which epoch were logged, in order."""
    found = []
    for event in read_events(out / "events.jsonl"):
        if event["event"] == kind and event.get("role") != "master":
            name = event["role"] if kind == "train" else f"{event['who']}{event['seed']}"
            found.append((name, event["epoch"]))
    return found


def names(out: Path, kind: str) -> list[str]:
    return [name for name, _ in losses(out, kind)]


EXPERTS = ["observer", "teacher", "teacher2"]
STUDENTS = ["student0", "student1", "random_real0", "random_real1"]


def test_results_are_the_same_bytes(
    config: DistillConfig, alone: Path, at_once: AtOnce, tmp_path: Path
) -> None:
    at_once(4)
    out = tmp_path / "run"
    pipeline.distill(config, out, options=QUIET)
    assert equal(out, alone)
    assert names(out, "train")[:12] == EXPERTS * 4
    assert names(alone, "train")[:12] == [role for role in EXPERTS for _ in range(4)]
    assert names(out, "student") == STUDENTS * 2  # the first and the last epoch are logged
    assert names(alone, "student") == [name for name in STUDENTS for _ in range(2)]


class Stopping:
    """Sends a signal when an event of a kind comes for the given time (`Sink`)."""

    def __init__(self, kind: str, number: int, left: int) -> None:
        self._kind, self._number, self._left = kind, number, left

    def start(self, events: Sequence[Event]) -> None:
        """Take what earlier processes logged."""

    def add(self, event: Event) -> None:
        self._left -= event["event"] == self._kind and event.get("role") != "master"
        if self._left == 0:
            self._left = -1
            os.kill(os.getpid(), self._number)


def options(*sinks: Any, **others: Any) -> RunOptions:
    return dataclasses.replace(QUIET, sinks=lambda folder: sinks, **others)


@pytest.mark.parametrize(("kind", "together", "left"), [("train", 3, 4), ("student", 4, 2)])
@pytest.mark.parametrize("later", [1, 4])
def test_stopped_in_the_middle_all_go_on_from_there(
    kind: str,
    together: int,
    left: int,
    later: int,
    config: DistillConfig,
    alone: Path,
    at_once: AtOnce,
    tmp_path: Path,
) -> None:
    at_once(4)
    out = tmp_path / "run"
    with interruption.handled(), pytest.raises(interruption.Interrupted):
        pipeline.distill(config, out, options=options(Stopping(kind, signal.SIGINT, left)))
    assert len(list(out.glob("stages/*.checkpoint"))) == together
    at_once(later)  # whether they go by turns is no part of what is kept
    pipeline.distill(config, out, options=QUIET)
    assert equal(out, alone)
    assert sorted(losses(out, kind)) == sorted(losses(alone, kind)), "no epoch twice"


@pytest.mark.parametrize(("kind", "left"), [("train", 5), ("student", 3), ("student", 6)])
def test_killed_in_the_middle_the_same_command_goes_on(
    kind: str, left: int, config: DistillConfig, alone: Path, at_once: AtOnce, tmp_path: Path
) -> None:
    at_once(4)
    out, killing = tmp_path / "run", Stopping(kind, signal.SIGKILL, left)
    kept = options(killing, checkpoint_seconds=0.0)
    run = Forked(lambda: pipeline.distill(config, out, options=kept))
    assert run.wait() == -signal.SIGKILL
    assert len(list(out.glob("stages/*.checkpoint"))) >= 2
    assert Forked(lambda: pipeline.distill(config, out, options=QUIET)).wait() == 0
    assert equal(out, alone)


def test_a_loss_that_is_no_number_names_its_training_and_spares_the_others(
    config: DistillConfig,
    alone: Path,
    at_once: AtOnce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Spoiled(LossWatch):
        def __init__(self, stage: str, runtime: Runtime) -> None:
            super().__init__(stage, runtime)
            self._spoils = stage == "experts: teacher"

        def add(self, step: int, loss: Tensor) -> None:
            super().add(step, loss * torch.nan if self._spoils and step == 6 else loss)

    at_once(3)
    out = tmp_path / "run"
    said = r"^experts: teacher: expected a finite loss at step 6, got nan"
    with monkeypatch.context() as patch:
        patch.setattr(expert_training, "LossWatch", Spoiled)
        with pytest.raises(UserError, match=said):
            pipeline.distill(config, out, options=QUIET)
    assert len(list(out.glob("stages/*.checkpoint"))) == 2
    pipeline.distill(config, out, options=QUIET)
    assert equal(out, alone)
    told = names(out, "train")
    assert {role: told.count(role) for role in EXPERTS} == {
        "observer": 4, "teacher": 1 + 4, "teacher2": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "stage", "failing"),
    [
        (expert_training, "experts", [2]),  # the master is 0
        (expert_training, "experts", [1]),
        (student_training, "evaluation", [3, 1]),
    ],
)
def test_without_memory_for_all_some_wait(
    module: Any,
    stage: str,
    failing: list[int],
    config: DistillConfig,
    alone: Path,
    at_once: AtOnce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[weakref.ref[Tensor]] = []
    failed: list[int] = []
    left: list[int] = []

    def alive() -> int:
        return sum(weight() is not None for weight in made)

    class Crowded(RecordedSteps):
        """Those that are named have no memory for their third step beside others."""

        def __init__(self, step: Any, network: nn.Module, *given: Any, **settings: Any) -> None:
            super().__init__(step, network, *given, **settings)
            self._number, self._taken = len(made), 0
            made.append(weakref.ref(next(network.parameters())))

        def __call__(self, *given: Any, **variant: Any) -> Tensor:
            self._taken += 1
            if failed and not left:
                left.append(alive())
            if self._number in failing and self._taken == 3 and alive() > 1:
                failed.append(self._number)
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().__call__(*given, **variant)

    at_once(4)
    monkeypatch.setattr(module, "RecordedSteps", Crowded)
    out = tmp_path / "run"
    pipeline.distill(config, out, options=dataclasses.replace(QUIET, quiet=False))
    assert equal(out, alone)
    events = [e for e in read_events(out / "events.jsonl") if e["event"] == "fewer_at_once"]
    most = {"experts": 3, "evaluation": 4}[stage]
    wanted = [(stage, most - 1 - n) for n in range(len(failing))]
    assert left == [most - 1], "what the first that failed had taken is free"
    assert [(event["stage"], event["at_once"]) for event in events] == wanted
    said = f"{stage}: not enough memory for {most} trainings at once, goes on {most - 1} by turns"
    assert f"{said}: RuntimeError: CUDA out of memory. Tried" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_results_are_the_same_bytes_on_a_gpu(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = dataclasses.replace(config, device="cuda", deterministic=True)
    try:
        for count in (1, 4):
            monkeypatch.setitem(turns.AT_ONCE, "cuda", count)
            pipeline.distill(on_gpu, tmp_path / str(count), options=QUIET)
    finally:
        choose_kernels(torch.device("cuda"), False)
    assert names(tmp_path / "4", "student")[:4] == STUDENTS
    assert equal(tmp_path / "4", tmp_path / "1")
