"""Statistics of what enters convolutions, in channels and in patches (EDC)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.stripes import make_data
from helpers.tiny_run import QUIET, TINY
from torch import Tensor, nn

from ltdd import pipeline
from ltdd.config import DistillConfig, StatisticsConfig
from ltdd.data.augmentation.crops import normalize
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.observer import watched_layers
from ltdd.preflight import check_matched_layers
from ltdd.stages.alignment_targets import LayerStatistics
from ltdd.stages.statistics import class_statistics

BOTH = StatisticsConfig(layers="batch_norm_and_conv")
COUNTS = (5, 2, 1)


@pytest.fixture(scope="module")
def tail() -> LongTailedData:
    return make_data(COUNTS)


def inputs_of(observer: nn.Module, name: str, data: LongTailedData) -> Tensor:
    """Input of a layer for all training images, float64 (N, C, H, W)."""
    seen: list[Tensor] = []
    layer = observer.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].double()))
    with torch.no_grad():
        observer.eval()(
            normalize(data.train_images, torch.tensor(data.mean), torch.tensor(data.std))
        )
    handle.remove()
    return seen[0]


def cells(image: Tensor) -> list[Tensor]:
    """The 4x4 cells of one image (C, H, W) with sides of a multiple of 4."""
    rows = [image[:, top : top + 4] for top in range(0, image.shape[1], 4)]
    return [row[:, :, left : left + 4] for row in rows for left in range(0, row.shape[2], 4)]


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_they_equal_a_loop_over_images(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime, backend: str
) -> None:
    runtime = dataclasses.replace(runtime, backend=backend)
    layers = class_statistics(observer, tail, BOTH, runtime)
    watched = watched_layers(observer, "batch_norm_and_conv")
    assert [tuple(entry) for entry in watched] == [
        ("0", "conv"), ("0", "patches"), ("1", "batch_norm"),
        ("4", "conv"), ("4", "patches"), ("5", "batch_norm"),
    ]  # fmt: skip
    for entry, layer in zip(watched, layers, strict=True):
        if entry.kind == "batch_norm":
            continue
        maps = inputs_of(observer, entry.name, tail)
        parts = [cells(image) if entry.kind == "patches" else list(image) for image in maps]
        means = torch.tensor([[float(part.mean()) for part in image] for image in parts])
        spreads = torch.tensor(
            [[float(part.var(correction=0)) for part in image] for image in parts]
        )
        assert layer.count.tolist() == list(COUNTS)
        for label in range(3):
            own = tail.train_labels == label
            expected = (means[own].mean(0), spreads[own].mean(0), means[own].var(0, correction=0))
            # In this order: the reference's files have mean and variance of patches swapped.
            for actual, value in zip(
                (layer.mean, layer.within, layer.between), expected, strict=True
            ):
                torch.testing.assert_close(actual[label].float(), value, rtol=1e-4, atol=1e-6)
        # Over all images, by their real number and not a constant of the full data set.
        whole = spreads.mean(0) + means.var(0, correction=0)
        torch.testing.assert_close(layer.running_mean.float(), means.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.running_var.float(), whole, rtol=1e-4, atol=1e-6)


def same(first: list[LayerStatistics], second: list[LayerStatistics]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-7)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.tensors("").values(), other.tensors("").values(), strict=True)
    )


def test_they_are_the_same_after_shuffling(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    order = torch.randperm(sum(COUNTS), generator=torch.Generator().manual_seed(1))
    shuffled = dataclasses.replace(
        tail, train_images=tail.train_images[order], train_labels=tail.train_labels[order]
    )
    stored = class_statistics(observer, tail, BOTH, runtime)
    for batch_size in (1, 3, 250):
        config = dataclasses.replace(BOTH, batch_size=batch_size)
        assert same(class_statistics(observer, shuffled, config, runtime), stored)


def test_batch_norms_have_the_statistics_that_they_have_alone(
    observer: nn.Module, tail: LongTailedData, runtime: Runtime
) -> None:
    alone = class_statistics(observer, tail, StatisticsConfig(), runtime)
    both = class_statistics(observer, tail, BOTH, runtime)
    assert same([both[2], both[5]], alone)


def test_an_observer_without_batch_norm(tail: LongTailedData, runtime: Runtime) -> None:
    network = build_model("convnet2", 3, 8, 3)
    assert len(class_statistics(network, tail, BOTH, runtime)) == 4
    with pytest.raises(UserError, match="which has none"):
        class_statistics(network, tail, StatisticsConfig(), runtime)


@pytest.mark.parametrize("observer_name", ["convnet3_w32", "convnet3_w32_bn"])
def test_a_whole_run(tmp_path: Path, observer_name: str) -> None:
    """Observers with and without batch norm; the report has what there is to measure."""
    config = dataclasses.replace(
        TINY,
        ipc=1,
        experts=dataclasses.replace(
            TINY.experts, observer=observer_name, extra_observers=("convnet2_bn",)
        ),
        statistics=dataclasses.replace(BOTH, global_target="running", class_target="edc"),
        recovery=dataclasses.replace(
            TINY.recovery, class_part="pooled", momentum=0.8, order="class_major", max_batch=4,
            hook_drop=0.4, eigen_weight=0.1, jitter=32, crop_padding=4, patch_weight=0.5,
        ),
        evaluation=dataclasses.replace(TINY.evaluation, baselines=(), seeds=1, epochs=1),
    )  # fmt: skip
    results = pipeline.distill(config, tmp_path, options=QUIET)
    drift = results["drift"]
    if observer_name.endswith("_bn"):
        assert [row["layer"] for row in drift] == ["body.0.1", "body.1.1", "body.2.1"]
    else:
        assert len(drift) == 6
        assert drift[1]["layer"] == "body.0.0, patches"
    assert all(row["published"]["mean"] >= 0 for row in drift)


def test_options_for_convolutions_want_them_matched() -> None:
    recovery = dataclasses.replace(TINY.recovery, hook_drop=0.4)
    with pytest.raises(UserError, match=r"with recovery\.hook_drop.* got batch_norm and 0\.4"):
        check_matched_layers(DistillConfig(recovery=recovery))
    check_matched_layers(DistillConfig(recovery=recovery, statistics=BOTH))
