"""What is drawn, and which bits come out: what they depend on, and what they must not."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import QUIET, TINY
from torch import Tensor

from ltdd import pipeline
from ltdd.config import EvaluationConfig
from ltdd.data.augmentation.crops import cut_windows, random_crops, random_windows
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.runtime import Runtime, choose_kernels
from ltdd.engine.stage_runner import StageRunner
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.stages import initialization
from ltdd.stages.run import Run
from ltdd.stages.statistics import class_statistics


@pytest.fixture
def two_threads() -> Iterator[Callable[[], None]]:
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


def drawn_by_experts(runtime: Runtime) -> list[Tensor]:
    generator = runtime.stream("experts", "observer", "epoch", 3)
    images = torch.arange(40 * 3 * 32 * 32).view(40, 3, 32, 32)
    order = torch.randperm(50_000, generator=generator)
    weights = torch.arange(50_000, dtype=torch.float64)
    resampled = torch.multinomial(weights, 512, replacement=True, generator=generator)
    return [
        order,
        cut_windows(images, 4, random_windows(len(images), 4, True, generator)),
        resampled,
        generator.get_state(),
    ]


def drawn_by_recovery(runtime: Runtime) -> list[Tensor]:
    crops = random_crops(1000, 0.08, True, runtime.stream("recovery", 2, 17))
    return [crops.boxes, crops.mirrored]


def drawn_by_views(runtime: Runtime) -> list[Tensor]:
    schedule = ViewSchedule(runtime.seed, 1000, 32, 32, True, EvaluationConfig(batch_size=300))
    views = list(schedule.epoch(5))
    return [drawn for view in views for drawn in (view.indices, view.change.boxes)]


@pytest.mark.parametrize("draw", [drawn_by_experts, drawn_by_recovery, drawn_by_views])
def test_threads_do_not_change_what_is_drawn(
    draw: Callable[[Runtime], list[Tensor]], runtime: Runtime, two_threads: Callable[[], None]
) -> None:
    expected = draw(runtime)
    two_threads()
    torch.rand(7)  # nor does the global stream
    assert all(map(torch.equal, draw(runtime), expected))
    other = draw(dataclasses.replace(runtime, seed=runtime.seed + 1))
    assert not all(map(torch.equal, other, expected))


@pytest.mark.parametrize("batch", [1, 7])
def test_the_scoring_batch_does_not_change_what_is_drawn(
    batch: int, data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = build_model("convnet3", 3, 8, 3).eval()
    config = TINY.initialization
    expected = initialization.initial_images(teacher, data, 4, config, runtime)
    monkeypatch.setattr(initialization, "SCORING_BATCH", batch)
    found = initialization.initial_images(teacher, data, 4, config, runtime)
    assert torch.equal(found.source, expected.source)
    assert torch.equal(found.images, expected.images)


def test_statistics_are_the_same_bits_every_time(data: LongTailedData, runtime: Runtime) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        observer = build_model("convnet3_bn", 3, 8, 3).eval()
    runs = [class_statistics(observer, data, TINY.statistics, runtime) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        for ours, theirs in zip(
            first.tensors("").values(), second.tensors("").values(), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_on_a_cpu_the_setting_changes_nothing(tmp_path: Path) -> None:
    data = load_data(TINY.data, TINY.imbalance_factor)
    keys = []
    for deterministic in (False, True):
        config = dataclasses.replace(TINY, deterministic=deterministic)
        run = Run.create(config, data, tmp_path, QUIET)
        keys.append(run.stages.key("recovery", {}, []))
    assert keys[0] == keys[1]
    assert not choose_kernels(torch.device("cpu"), True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_kernels_do_not_fill_their_outputs_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for module, name in (
        (torch.utils.deterministic, "fill_uninitialized_memory"),
        (torch.backends.cudnn, "benchmark"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # restored afterwards
    try:
        assert choose_kernels(torch.device("cuda"), True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operator_without_a_deterministic_kernel_is_named(
    tmp_path: Path, runtime: Runtime
) -> None:
    stages = StageRunner(tmp_path, {}, runtime, QUIET)

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        return {"x": torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))}

    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(UserError, match=r"^recovery: expected operators .* got put_ without"):
            stages.run("recovery", {}, [], compute)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
def test_two_runs_on_a_gpu_give_the_same_bytes(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, device="cuda", deterministic=True)
    hashes = []
    try:
        for name in ("first", "second"):
            pipeline.distill(config, tmp_path / name, options=QUIET)
            content = (tmp_path / name / "data.safetensors").read_bytes()
            hashes.append(hashlib.sha256(content).hexdigest())
    finally:
        choose_kernels(torch.device("cuda"), False)
    assert hashes[0] == hashes[1]
