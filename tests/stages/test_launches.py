"""How many operations a step of training takes: on a GPU each is a launch, or a node of a graph.

Counted are operations that compute, on a CPU in bfloat16, where a step is made of the same ones as
on a GPU: views of tensors and new tensors without values are none, `_foreach` and fused operations
are one each. Bounds are what was counted when they were written; a step that needs more needs a
reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ltdd.config import EvaluationConfig, ExpertsConfig, RecoveryConfig, StatisticsConfig
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.data.packed_logits import PackedLogits
from ltdd.engine import cast_weights
from ltdd.engine.runtime import Runtime
from ltdd.engine.turns import finished
from ltdd.models import build_model
from ltdd.stages.evaluation import training
from ltdd.stages.experts import training as expert_training
from ltdd.stages.label_sources import StoredLabels
from ltdd.stages.recovery import alignment
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics
from ltdd_ext import _convolution

WITHOUT_WORK = (
    "empty", "new_empty", "detach", "_unsafe_view", "lift_fresh", "_record_function",
    "promote_types",
)  # fmt: skip
CLASSES = 10
BF16 = Runtime(torch.device("cpu"), "bf16", quiet=True)


class Operations(TorchDispatchMode):
    """Counts what computes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2]
        self.count += not func.is_view and not name.startswith(WITHOUT_WORK)
        return func(*args, **(kwargs or {}))


class Counted(Exception):
    """Ends a training when its second step is counted: the first makes the optimizer's state."""


class CountedSteps:
    def __init__(self, step: Callable[..., Tensor], *_: Any, **__: Any) -> None:
        self._step = step

    def __call__(self, *inputs: Any, variant: Any = None) -> Tensor:
        step = functools.partial(self._step, *inputs, *(() if variant is None else (variant,)))
        step()
        with Operations() as operations:
            step()
        raise Counted(operations.count)


def count(monkeypatch: pytest.MonkeyPatch, stage: Any, train: Callable[[], object]) -> int:
    monkeypatch.setattr(stage, "RecordedSteps", CountedSteps)
    monkeypatch.setattr(_convolution, "_CPU", "none")  # a GPU has PyTorch's convolutions
    with pytest.raises(Counted) as counted:
        train()
    found = counted.value.args[0]
    assert isinstance(found, int)
    return found


@pytest.fixture(scope="module")
def images() -> LongTailedData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels, names = torch.arange(100) % CLASSES, tuple("abcdefghij")
    few = pixels[:10], labels[:10]
    return LongTailedData(pixels, labels, *few, names, (0.5,) * 3, (0.2,) * 3, "0" * 64, "test")


@pytest.mark.parametrize(
    ("architecture", "optimizer", "bound"),
    [("convnet3", "adamw", 82), ("convnet3", "muon", 148), ("convnet3_bn", "adamw", 119)],
)
def test_a_student(
    monkeypatch: pytest.MonkeyPatch,
    images: LongTailedData,
    architecture: str,
    optimizer: Any,
    bound: int,
) -> None:
    config = EvaluationConfig(optimizer=optimizer)
    labels = StoredLabels(PackedLogits(torch.zeros(1, 100, CLASSES), CLASSES))
    given = (
        build_model(architecture, CLASSES, 32, 3),
        ImageSet(images.train_images, images.train_labels),
        labels,
        ViewSchedule(0, 100, 32, 32, True, config),
        images.spec(flip=True),
        training.StudentName("student", 0),
        BF16,
    )
    assert (
        50 < count(monkeypatch, training, lambda: finished(training.train_student(*given))) <= bound
    )


@pytest.mark.parametrize(
    ("architecture", "bound"), [("convnet3", 120), ("convnet3_bn", 153), ("resnet32", 336)]
)
def test_an_expert(
    monkeypatch: pytest.MonkeyPatch, images: LongTailedData, architecture: str, bound: int
) -> None:
    plain = torch.optim.SGD

    def sgd(*given: Any, **settings: Any) -> torch.optim.Optimizer:
        return plain(*given, **(settings | {"fused": True}))  # as on a GPU

    monkeypatch.setattr(torch.optim, "SGD", sgd)
    config = ExpertsConfig(batch_size=8)
    given = ("observer", architecture, images, config, True, BF16)
    steps = count(
        monkeypatch, expert_training, lambda: finished(expert_training.train_expert(*given))
    )
    assert 50 < steps <= bound


@pytest.mark.parametrize(
    ("architecture", "bound"), [("convnet3_bn", 59), ("resnet18", 132), ("resnet32", 183)]
)
def test_recovery(
    monkeypatch: pytest.MonkeyPatch, images: LongTailedData, architecture: str, bound: int
) -> None:
    monkeypatch.setattr(alignment, "SHARES", 1)  # as on a GPU
    monkeypatch.setattr(cast_weights, "CAST_ONCE_ON", {"cpu"})
    targets, network = StatisticsConfig(), build_model(architecture, CLASSES, 32, 3)
    observed = alignment.Observed(network, class_statistics(network, images, targets, BF16))
    labels = torch.arange(CLASSES)
    start = InitialImages(torch.rand(CLASSES, 3, 32, 32), labels, torch.full_like(labels, -1))
    spec, config = images.spec(flip=True), RecoveryConfig()
    given = (start, [observed], spec, config, targets, BF16)
    steps = count(monkeypatch, alignment, lambda: alignment.align_images(*given))
    assert 50 < steps <= bound
