"""The forms that benchmarks compare compute the same, and compilers see each as one graph."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import QUIET, smaller

from benchmarks import by_turns, gpu_plan, recovery_forms, rivals
from benchmarks.bench_step import convnet
from ltdd.engine import turns
from ltdd.engine.watching.events import read_events


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 32, 32, generator=generator).requires_grad_()


def test_a_compiler_sees_hooks_and_loss_as_one_graph(images: torch.Tensor) -> None:
    labels = torch.arange(4)
    for gap in (rivals.plain_gap, None):
        hooked = recovery_forms.Hooked(convnet(), gap)
        whole = torch.compile(hooked, fullgraph=True, backend="eager")
        for _ in range(2):  # the gaps of one call must not reach the next
            torch.testing.assert_close(whole(images, labels), hooked(images, labels))


def test_forms_of_a_recovery_step_agree(images: torch.Tensor) -> None:
    forms = recovery_forms.recovery_forms(convnet(), images, torch.float32)
    want = forms["plain"]()
    for name in ("ours", "peer"):
        assert float((forms[name]() - want).norm() / want.norm()) <= 1e-4
    assert float((forms["no alignment"]() - want).norm() / want.norm()) > 1e-2


def test_the_plan_names_commands_that_exist() -> None:
    for part in gpu_plan.plan("cifar10", "9.0").values():
        assert part.minutes <= 9
        for command in part.commands:
            words = [word for word in shlex.split(command) if "=" not in word or "/" in word]
            assert words[0] in ("python", "ncu")
            for word in words:
                if word.startswith("tests/"):
                    assert (gpu_plan.Path(__file__).parents[1] / word).exists(), word


def test_turns_are_measured_against_none(tmp_path: Path) -> None:
    config = smaller(tmp_path / "data")
    experts = dataclasses.replace(config.experts, teacher="convnet1")
    config = dataclasses.replace(config, experts=experts)
    before = dict(turns.AT_ONCE)
    seconds, equal = by_turns.measure(config, tmp_path / "out", QUIET)
    assert equal
    assert all(one > 0 and other > 0 for one, other in seconds.values())
    assert before == turns.AT_ONCE
    orders = {"alone": ["observer"] * 2 + ["teacher"] * 2, "turns": ["observer", "teacher"] * 2}
    for name, order in orders.items():
        events = read_events(tmp_path / "out" / name / "events.jsonl")
        assert [event["role"] for event in events if event["event"] == "train"][:4] == order
    (tmp_path / "out" / "turns" / "stages").rename(tmp_path / "gone")
    assert not by_turns._equal(tmp_path / "out" / "alone", tmp_path / "out" / "turns")
