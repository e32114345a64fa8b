"""Exhausted memory: chunks are halved and the result stays; batches that cannot be split say so."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_run import TINY
from torch import Tensor, nn

from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.chunks import Chunks, is_out_of_memory, whole_batch
from ltdd.engine.runtime import Runtime
from ltdd.engine.turns import finished
from ltdd.engine.watching.events import EventLog, read_events
from ltdd.errors import UserError
from ltdd.models import build_model, normalization
from ltdd.models.inference import predict_logits
from ltdd.stages.alignment_targets import LayerStatistics
from ltdd.stages.evaluation.training import StudentName, train_student
from ltdd.stages.experts.training import train_expert
from ltdd.stages.initialization import initial_images
from ltdd.stages.label_sources import HardLabels
from ltdd.stages.recovery.alignment import Observed, align_images
from ltdd.stages.relabeling import label_views
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics
from ltdd_ext import _convolution

CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you"
ALLOCATORS = [
    MemoryError(),
    RuntimeError(CPU_ALLOCATOR),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a primitive"),  # oneDNN's words
]


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(torch.device("cpu"), log=EventLog(tmp_path / "events.jsonl"), quiet=True)


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    return load_data(TINY.data, TINY.imbalance_factor)


@pytest.fixture(scope="module")
def network(data: LongTailedData) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("convnet3_bn", data.num_classes, data.image_size, data.channels).eval()


def halvings(tmp_path: Path) -> list[int]:
    path = tmp_path / "events.jsonl"
    events = read_events(path) if path.exists() else []
    return [event["size"] for event in events if event["event"] == "chunk_halved"]


@pytest.mark.parametrize("error", ALLOCATORS, ids=lambda error: type(error).__name__)
def test_a_chunk_is_halved_until_it_fits(
    error: Exception, runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def work(part: slice) -> list[int]:
        rows = list(range(100))[part]
        tried.append(len(rows))
        if len(rows) > 10:
            raise error
        return rows

    chunks = Chunks("relabeling", 64, dataclasses.replace(runtime, quiet=False))
    done = [row for rows in chunks.map(work, 100) for row in rows]
    assert done == list(range(100))
    assert tried[:4] == [64, 32, 16, 8]
    assert max(tried[3:]) == 8
    events = read_events(tmp_path / "events.jsonl")
    assert [(e["event"], e["stage"], e["size"]) for e in events] == [
        ("chunk_halved", "relabeling", size) for size in (32, 16, 8)
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "relabeling: out of memory with 64 images at once, goes on with 32"
    assert len(said) == 3


def test_few_rows_are_halved_not_the_chunk_they_do_not_fill(runtime: Runtime) -> None:
    sizes = []

    def work(chunk: int) -> int:
        sizes.append(chunk)
        if chunk > 3:
            raise MemoryError
        return chunk

    assert Chunks("inference", 500, runtime).fit(work, 12) == 3
    assert sizes == [12, 6, 3]


def test_a_single_row_that_does_not_fit_ends_in_one_sentence(runtime: Runtime) -> None:
    def work(chunk: int) -> None:
        raise RuntimeError(CPU_ALLOCATOR + "\nframe #0: somewhere in C++")

    with pytest.raises(UserError, match=r"inference: expected memory for one image at a time") as e:
        Chunks("inference", 500, runtime).fit(work, 500)
    assert "\n" not in str(e.value)
    assert "DefaultCPUAllocator" in str(e.value)


def test_other_errors_are_not_taken_for_exhausted_memory(runtime: Runtime, tmp_path: Path) -> None:
    access = RuntimeError("CUDA error: an illegal memory access was encountered")
    shapes = RuntimeError("mat1 and mat2 shapes")
    unknown = RuntimeError("could not create a primitive descriptor for a convolution")
    for error in (access, shapes, unknown, ValueError("out of memory"), OSError()):
        assert not is_out_of_memory(error)

    def work(chunk: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Chunks("inference", 8, runtime).fit(work, 8)
    with pytest.raises(RuntimeError, match="mat1"), whole_batch("experts", "x"):
        work(1)
    assert halvings(tmp_path) == []


def small_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """Let no more than some images through a convolution at once; return the sizes that were."""
    seen = []

    def limited(convolve: Callable[..., Tensor], position: int) -> Callable[..., Tensor]:
        def convolution(*arguments: Any) -> Tensor:
            size = len(arguments[position])
            if size > images:
                raise RuntimeError(CPU_ALLOCATOR)
            seen.append(size)
            return convolve(*arguments)

        return convolution

    monkeypatch.setattr(F, "conv2d", limited(F.conv2d, 0))
    for module in (normalization, _convolution):
        monkeypatch.setattr(module, "convolve", limited(module.convolve, 1))
    return seen


def statistics(network: nn.Module, data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
    layers = class_statistics(network, data, TINY.statistics, runtime)
    return {k: v for n, layer in enumerate(layers) for k, v in layer.tensors(str(n)).items()}


def initialization(network: nn.Module, data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
    start = initial_images(network, data, 2, TINY.initialization, runtime)
    return {"images": start.images, "source": start.source}


def inference(network: nn.Module, data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
    return {"logits": predict_logits(network, data.test_images, data.normalization, runtime)}


def relabeling(network: nn.Module, data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
    views = ViewSchedule(0, 40, data.image_size, data.image_size, False, TINY.evaluation)
    return {
        "logits": label_views(data.test_images[:40], [network], views, data.normalization, runtime)
    }


@functools.cache
def calibrated(network: nn.Module) -> list[LayerStatistics]:
    data = load_data(TINY.data, TINY.imbalance_factor)
    return class_statistics(network, data, TINY.statistics, Runtime(torch.device("cpu")))


def recovery(network: nn.Module, data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
    noise = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10).repeat_interleave(3)
    images = align_images(
        InitialImages(noise, labels, torch.full_like(labels, -1)),
        [Observed(network, calibrated(network))],
        data.spec(flip=False),
        dataclasses.replace(TINY.recovery, max_batch=30, alignment_weight=1.0, iterations=4),
        TINY.statistics,
        runtime,
    )
    return {"images": images}


Stage = Callable[[nn.Module, LongTailedData, Runtime], dict[str, Tensor]]


@pytest.mark.parametrize("stage", [statistics, initialization, inference, relabeling, recovery])
def test_smaller_chunks_give_the_same_result(
    stage: Stage,
    network: nn.Module,
    data: LongTailedData,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = stage(network, data, runtime)
    assert halvings(tmp_path) == []
    seen = small_memory(monkeypatch, 7)
    found = stage(network, data, runtime)
    assert max(seen) <= 7
    assert halvings(tmp_path)
    events = read_events(tmp_path / "events.jsonl")
    halved = {event["stage"] for event in events if event["event"] == "chunk_halved"}
    assert halved == {stage.__name__}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        tolerance = {"rtol": 1e-3, "atol": 1e-3} if tensor.dtype == torch.float16 else {}
        torch.testing.assert_close(
            tensor, expected[name], **({"rtol": 1e-6, "atol": 1e-6} | tolerance)
        )


def test_training_names_the_setting_to_lower(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, 7)
    with pytest.raises(UserError, match=r"^experts: .*not enough memory.*experts\.batch_size$"):
        finished(train_expert("observer", "convnet3_bn", data, TINY.experts, False, runtime))
    views = ViewSchedule(0, 20, data.image_size, data.image_size, False, TINY.evaluation)
    shown = ImageSet(data.test_images[:20], data.test_labels[:20])
    model = build_model("convnet3", data.num_classes, data.image_size, data.channels)
    spec, name = data.spec(flip=False), StudentName("student", 0)
    with pytest.raises(UserError, match=r"^evaluation: .*lower --evaluation\.batch_size$"):
        finished(train_student(model, shown, HardLabels(), views, spec, name, runtime))


# A process of its own: this one may hold freed memory, which no limit takes away.
UNDER_A_LIMIT = """
import resource
from pathlib import Path
import torch
from torch import nn
from ltdd.data.image_spec import Normalization
from ltdd.engine.watching.events import EventLog
from ltdd.models.inference import predict_logits
from ltdd.engine.runtime import Runtime

torch.set_num_threads(1)
runtime = Runtime(torch.device("cpu"), log=EventLog(Path("events.jsonl")))
layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
model = nn.Sequential(*layers, nn.Linear(64, 10))
images = torch.randint(0, 256, (160, 3, 64, 64), dtype=torch.uint8)
normalization = Normalization((0.5,) * 3, (0.25,) * 3)
expected = predict_logits(model, images, normalization, runtime, 25)
# 64 maps of 64x64 in float32 are 1 MiB an image, twice in all: 160 images need 320 MiB.
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (160 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = predict_logits(model, images, normalization, runtime, 160)
torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
"""


def test_a_real_limit_is_met_by_smaller_chunks(tmp_path: Path) -> None:
    call = [sys.executable, "-c", UNDER_A_LIMIT]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert halvings(tmp_path)[0] == 80
    assert "inference: out of memory with 160 images at once, goes on with 80" in done.stderr
