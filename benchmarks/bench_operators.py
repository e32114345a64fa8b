"""Each operator against published code, plain PyTorch and torch.compile; agreement checked first.

pytest-benchmark times the operator alone; the report uses the interleaved medians of all forms.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import pytest
import torch

from benchmarks import report
from benchmarks.cases import (
    DTYPES,
    LAYOUTS,
    Forms,
    activation,
    agree,
    bn_act_forms,
    conv3x3_forms,
    moments_forms,
    training_norm_forms,
)
from benchmarks.shapes import SELECTED, TRAINED, Shape
from benchmarks.timing import SETTING, bandwidth, keep_freed_pages, median_seconds

pytestmark = [pytest.mark.benchmark(timer=time.thread_time, warmup=False)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    keep_freed_pages()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measure(
    benchmark: Any,
    forms: Forms,
    shape: Shape,
    layout: str,
    dtype: str,
    passes: float | None,
    through_relu: bool = False,
) -> None:
    """Time all forms in turn and keep the row.

    They move the activation ``passes`` times; None where arithmetic, not memory, bounds them.
    """
    agree(forms, dtype, through_relu)
    size = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    megabytes, rates = max(1, size >> 20), {}
    if passes is not None:
        forms = {**forms, "yardstick": bandwidth(megabytes)}
    seconds = median_seconds(forms)
    if passes is not None:
        moved = 2 * (megabytes << 20)
        rates["gigabytes_per_second"] = passes * size / seconds["ours"] / 1e9
        rates["yardstick_gigabytes_per_second"] = moved / seconds["yardstick"] / 1e9
    report.add_row(
        benchmark.group,
        "x".join(map(str, shape)),
        layout,
        dtype,
        {name: 1e3 * value for name, value in seconds.items()},
        SETTING,
        **rates,
    )
    benchmark.pedantic(forms["ours"], rounds=3, warmup_rounds=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SELECTED, ids=lambda s: "x".join(map(str, s)))
def test_moments(benchmark: Any, shape: Shape, layout: str, dtype: str) -> None:
    benchmark.group = "moments, forward and backward"
    forms = moments_forms(activation(shape, layout, dtype))
    measure(benchmark, forms, shape, layout, dtype, 3)


@pytest.mark.parametrize("pool", [False, True], ids=["relu", "relu-pool"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SELECTED, ids=lambda s: "x".join(map(str, s)))
def test_bn_act_moments(benchmark: Any, shape: Shape, layout: str, dtype: str, pool: bool) -> None:
    benchmark.group = "BN + ReLU" + (" + pool" if pool else "") + " + moments, forward and backward"
    forms = bn_act_forms(activation(shape, layout, dtype), pool)
    quarter = 0.25 if pool else 1.0
    measure(benchmark, forms, shape, layout, dtype, (1 + quarter) + (1 + quarter + 1))


@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", TRAINED, ids=lambda s: "x".join(map(str, s)))
def test_norm_act(
    benchmark: Any, shape: Shape, layout: str, over: Literal["batch", "image"]
) -> None:
    benchmark.group = f"norm over the {over} + ReLU + pool in training, forward and backward"
    forms = training_norm_forms(activation(shape, layout, "fp32"), over)
    # x twice and y; x and the gradient of y twice each, and dx.
    measure(benchmark, forms, shape, layout, "fp32", 2.25 + (2 * 1.25 + 1), through_relu=True)


@pytest.mark.parametrize("shape", TRAINED[1:], ids=lambda s: "x".join(map(str, s)))
def test_conv3x3(benchmark: Any, shape: Shape) -> None:
    benchmark.group = "3x3 convolution to as many channels, forward and backward"
    forms = conv3x3_forms(activation(shape, "NHWC", "fp32"))
    measure(benchmark, forms, shape, "NHWC", "fp32", None)
