"""Steps: recorded on a GPU, or taken as they are, with the same numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ltdd.config import (
    EvaluationConfig,
    ExpertsConfig,
    RecoveryConfig,
    StatisticsConfig,
    TeacherMode,
    with_form,
)
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.data.packed_logits import PackedLogits
from ltdd.engine import cuda_graphs
from ltdd.engine.chunks import is_out_of_memory
from ltdd.engine.cuda_graphs import (
    REHEARSALS,
    MovingAverage,
    RecordedSteps,
    adjustable_rate,
)
from ltdd.engine.runtime import Runtime
from ltdd.engine.turns import finished
from ltdd.models import build_model
from ltdd.stages import relabeling
from ltdd.stages.evaluation import training
from ltdd.stages.experts import training as expert_training
from ltdd.stages.label_sources import HardLabels, OnlineLabels, StaticLabels, StoredLabels
from ltdd.stages.recovery import alignment
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics

Train = Callable[[Runtime], dict[str, Tensor]]

EXPERT = ExpertsConfig(epochs=3, batch_size=64, learning_rate=0.02)
STUDENT = EvaluationConfig(epochs=5, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    return load_data("digits", 20)


def expert(data: LongTailedData, architecture: str, **settings: Any) -> Train:
    config = with_form(EXPERT, settings.pop("loss", "rldd"), **settings)

    def train(runtime: Runtime) -> dict[str, Tensor]:
        model = finished(
            expert_training.train_expert("observer", architecture, data, config, False, runtime)
        )
        return model.state_dict()

    return train


def networks(count: int, architecture: str, device: torch.device) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [build_model(architecture, 10, 8, 1) for _ in range(count)]
    return [network.to(device).to(memory_format=torch.channels_last).eval() for network in made]


def student(data: LongTailedData, labels: str, **settings: Any) -> Train:
    """20 images, in batches of 7, 7 and 6."""
    config = dataclasses.replace(STUDENT, **settings)
    shown = ImageSet(data.train_images[:20], data.train_labels[:20])
    views = ViewSchedule(0, 20, 8, 8, False, config)

    def train(runtime: Runtime) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(config.epochs, 20, 10, generator=generator)
        model, teacher = networks(2, "convnet3", runtime.device)
        source = {
            "static": StaticLabels(logits[0], runtime.device),
            "fkd": StoredLabels(PackedLogits(logits, 10)),
            "online": OnlineLabels(teacher, runtime),
            "hard": HardLabels(),
        }[labels]
        name = training.StudentName("student", 0)
        trained = finished(
            training.train_student(
                model, shown, source, views, data.spec(flip=False), name, runtime
            )
        )
        return trained.state_dict()

    return train


def labels(data: LongTailedData, mode: TeacherMode = "eval") -> Train:
    """Labels of 20 images, in batches of 7, 7 and 6."""
    views = ViewSchedule(0, 20, 8, 8, False, STUDENT)

    def label(runtime: Runtime) -> dict[str, Tensor]:
        (teacher,) = networks(1, "convnet3_bn", runtime.device)
        images = data.train_images[:20]
        table = relabeling.label_views(images, [teacher], views, data.normalization, runtime, mode)
        return {"logits": table}

    return label


def images(
    data: LongTailedData, observers: int, targets: StatisticsConfig | None = None, **settings: Any
) -> Train:
    """Two batches of 20 images."""
    targets = targets or StatisticsConfig()
    config = RecoveryConfig(iterations=12, max_batch=20, alignment_weight=1.0, **settings)

    def recover(runtime: Runtime) -> dict[str, Tensor]:
        observed = [
            alignment.Observed(network, class_statistics(network, data, targets, runtime))
            for network in networks(observers, "convnet3_bn", runtime.device)
        ]
        noise = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        own = torch.arange(10).repeat_interleave(4)
        start = InitialImages(noise, own, torch.full_like(own, -1))
        spec = data.spec(flip=False)
        return {"images": alignment.align_images(start, observed, spec, config, targets, runtime)}

    return recover


CASES: dict[str, Callable[[LongTailedData], Train]] = {
    "rldd": lambda data: expert(data, "convnet3_bn"),
    "rldd, ema": lambda data: expert(data, "convnet3", averaging="ema"),
    "rldd, randaugment": lambda data: expert(data, "convnet3_bn", randaugment=True),
    "rldd, crops, growing": lambda data: expert(
        data, "convnet3_bn", crop_min_scale=0.3, color_jitter=0.4, progressive_resizing=True
    ),
    "rldd, one cycle": lambda data: expert(
        data, "convnet3_bn", schedule="one_cycle", nesterov=True
    ),
    "ce": lambda data: expert(data, "convnet3_bn", loss="ce"),
    "unimix": lambda data: expert(data, "convnet3_bn", loss="unimix"),
    "static, adamw": lambda data: student(data, "static"),
    "fkd, muon": lambda data: student(data, "fkd", optimizer="muon", randaugment=True),
    "online, sgd": lambda data: student(data, "online", optimizer="sgd"),
    "hard": lambda data: student(data, "hard", cutmix=False),
    "labels": labels,
    "labels, by the batch": lambda data: labels(data, "batch"),
    "images": lambda data: images(data, 1),
    "images, two observers": lambda data: images(data, 2, class_alignment_weight=0.0),
    "images, convolutions": lambda data: images(
        data,
        1,
        StatisticsConfig(layers="batch_norm_and_conv", global_target="running"),
        class_part="pooled",
        momentum=0.8,
        jitter=32,
        crop_padding=4,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_nothing_on_the_host(
    monkeypatch: pytest.MonkeyPatch, data: LongTailedData, runtime: Runtime, name: str
) -> None:
    """Tensors without values stand in for a GPU: who asks for one fails."""
    taken = []

    class Valueless(RecordedSteps):
        def __call__(self, *inputs: Any, variant: Any = None) -> Tensor:
            taken.append(variant)
            extra = () if variant is None else (variant,)
            with FakeTensorMode(allow_non_fake_inputs=True):
                result = self._step(*inputs, *extra)
            assert not result.requires_grad
            return torch.zeros(result.shape, dtype=result.dtype)

    for stage in (expert_training, training, relabeling, alignment):
        monkeypatch.setattr(stage, "RecordedSteps", Valueless)
    monkeypatch.setattr(relabeling, "VALUES_TOGETHER", 14 * 64)  # of two batches of three
    CASES[name](data)(dataclasses.replace(runtime, backend="compiled"))
    assert len(taken) > REHEARSALS


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, data: LongTailedData, log: Any, name: str
) -> None:
    runtime = Runtime(torch.device("cuda"), "fp32", log=log, quiet=True)
    replayed = []
    replay = cuda_graphs._Recording.replay

    def watch(self: Any, inputs: Any) -> Tensor:
        replayed.append(1)
        return replay(self, inputs)

    monkeypatch.setattr(cuda_graphs._Recording, "replay", watch)
    monkeypatch.setattr(relabeling, "VALUES_TOGETHER", 14 * 64)
    train = CASES[name](data)
    ours = train(runtime)
    assert not log.of("steps_not_recorded")
    assert replayed
    monkeypatch.setattr(cuda_graphs, "REHEARSALS", 10**9)
    count = len(replayed)
    plain = train(runtime)
    assert len(replayed) == count
    # Kernels whose sums have no fixed order part a little, and training makes that more.
    for key, own in ours.items():
        scale = float(plain[key].float().abs().max()) + 1e-3
        assert float((own.float() - plain[key].float()).abs().max()) <= 0.05 * scale, key


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_layers_of_anybody_elses_code_are_not_recorded() -> None:
    class Curious(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.abs().max())  # reads from the device, which a recording cannot

    network = nn.Sequential(nn.Linear(4, 4), Curious()).cuda()
    training = RecordedSteps(lambda x: network(x).sum().detach(), network, cuda())
    for _ in range(REHEARSALS + 2):
        training(torch.randn(3, 4))
    assert not training._recorded


def cuda(**settings: Any) -> Runtime:
    return Runtime(torch.device("cuda"), **settings)


def recordable(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> RecordedSteps:
    """A step on a CPU that believes it may be recorded."""
    training = RecordedSteps(lambda x: x.sum(), nn.Linear(1, 1), runtime)
    training._may_record = True
    monkeypatch.setattr(training, "_rehearse", lambda inputs, extra: training._step(*inputs))
    return training


def test_a_recording_that_fails_is_told_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: Any
) -> None:
    training = recordable(Runtime(torch.device("cpu"), log=log), monkeypatch)

    def refuse(*given: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graphs, "_Recording", refuse)
    for _ in range(3 * REHEARSALS):
        assert float(training(torch.ones(3))) == 3
    said = "which is slower: operation not permitted when stream is capturing\n"
    assert capsys.readouterr().err.count(said) == 1
    assert len(log.of("steps_not_recorded")) == 1


def test_memory_that_a_recording_exhausts_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    training = recordable(Runtime(torch.device("cpu"), quiet=True), monkeypatch)

    def exhaust(*given: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(cuda_graphs, "_Recording", exhaust)
    for _ in range(REHEARSALS):
        training(torch.ones(3))
    with pytest.raises(RuntimeError) as raised:
        training(torch.ones(3))
    assert is_out_of_memory(raised.value)


class FailedCapture:
    """As torch.cuda.graph behaves when the step fails: ending the capture fails as well."""

    current = "default"

    def __init__(self, graph: Any, stream: Any) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        FailedCapture.current = self._stream

    def __exit__(self, *error: Any) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_capture_that_fails_names_the_first_error_and_restores_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(x: Tensor) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", FailedCapture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: FailedCapture.current)
    monkeypatch.setattr(
        torch.cuda, "set_stream", lambda stream: setattr(FailedCapture, "current", stream)
    )
    for step, said in ((read, "not permitted when"), (torch.sum, "a previous error")):
        try:
            raise ValueError("of the caller")
        except ValueError:
            with pytest.raises(RuntimeError, match=said):
                cuda_graphs._Recording(step, (torch.ones(3),), (), "own")
        assert FailedCapture.current == "default"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_that_reads_a_value_goes_on_unrecorded(log: Any) -> None:
    runtime = Runtime(torch.device("cuda"), log=log, quiet=True)
    steps = RecordedSteps(lambda x: x * float(x.sum()), nn.Linear(1, 1), runtime)
    before = torch.cuda.current_stream()
    for _ in range(REHEARSALS + 2):
        assert float(steps(torch.ones(3)).sum()) == 9
        assert torch.cuda.current_stream() == before
    (event,) = log.of("steps_not_recorded")
    assert "captur" in event["reason"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_that_run_at_once_share_no_scratch() -> None:
    layers = [nn.Linear(512, 512).cuda() for _ in range(2)]
    x = torch.randn(256, 512, device="cuda")
    streams, steps, wanted = [torch.cuda.Stream() for _ in layers], [], []
    torch.cuda.synchronize()
    for stream, layer in zip(streams, layers, strict=True):
        with torch.cuda.stream(stream):
            steps.append(RecordedSteps(lambda x, own=layer: own(x).detach(), layer, cuda()))
            for _ in range(REHEARSALS + 1):
                result = steps[-1](x)
            wanted.append(result)
    torch.cuda.synchronize()
    for _ in range(1000):
        got = []
        for stream, step in zip(streams, steps, strict=True):
            with torch.cuda.stream(stream):
                got.append(step(x))
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


def test_graphs_of_one_stream_are_recorded_on_one_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        device = "cuda:0"

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"beside {device}: {next(numbers)}")
    numbers, streams = itertools.count(), [Stream(), Stream()]
    found = [cuda_graphs._beside(streams[n]) for n in (0, 1, 0, 1)]
    assert found == ["beside cuda:0: 0", "beside cuda:0: 1"] * 2


def test_each_shape_and_variant_is_recorded_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    training = recordable(Runtime(torch.device("cpu"), quiet=True), monkeypatch)
    made = []

    class Noted:
        def __init__(self, step: Any, inputs: Any, extra: Any, stream: Any) -> None:
            made.append((tuple(inputs[0].shape), extra))

        def replay(self, inputs: Any) -> Tensor:
            return inputs[0].sum()

    monkeypatch.setattr(cuda_graphs, "_Recording", Noted)
    for size in (3, 4, 3, 4):
        for _ in range(REHEARSALS):
            assert float(training(torch.ones(size))) == size
    for _ in range(REHEARSALS + 1):
        training(torch.ones(3), variant=16)
    assert made == [((3,), ()), ((4,), ()), ((3,), (16,))]


def test_the_moving_average_goes_on_where_a_checkpoint_stopped() -> None:
    network = nn.BatchNorm1d(2)
    average = MovingAverage(network, 0.5)

    def move(value: float) -> None:
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_mean.fill_(value)

    move(4)
    average.update()  # the first iterate, not the network's initial parameters
    again = MovingAverage(network, 0.5)
    again.load_state_dict(average.state_dict())
    move(8)
    for one in (average, again):
        one.update()
        assert one.module.weight.tolist() == [6, 6]
        assert one.module.running_mean.tolist() == [8, 8]


def test_a_rate_is_a_tensor_on_a_gpu_only() -> None:
    assert adjustable_rate(0.5, torch.device("cpu")) == 0.5
    with FakeTensorMode():
        assert adjustable_rate(0.5, torch.device("cuda")).device.type == "cuda"
