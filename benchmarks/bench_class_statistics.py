"""Class statistics of one batch at every batch-norm input, beside what no form can do without.

``limit`` is one call of the operator on a single pixel and, less its own call, a sum over the bytes
of the batch: no form measures them before it has read them. Both are timed in the turns of the
forms, between which neither code nor data stay in the nearest caches. To be twice as fast as the
compiler is possible only where its form takes twice the limit (``at best``).
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import ltdd_ext
from benchmarks import report
from benchmarks.cases import DTYPES, LAYOUTS, activation, agree, statistics_forms
from benchmarks.shapes import EVERY, Shape
from benchmarks.timing import SETTING, keep_freed_pages, median_seconds, reading

pytestmark = [pytest.mark.benchmark(timer=time.thread_time, warmup=False)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", dict.fromkeys(EVERY), ids=lambda s: "x".join(map(str, s)))
def test_class_statistics(benchmark: Any, shape: Shape, layout: str, dtype: str) -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    x = activation(shape, layout, dtype)
    forms = statistics_forms(x)
    agree(forms, dtype)
    pixel, label, nothing = (
        x.new_zeros(1, 1, 1, 1),
        torch.zeros(1, dtype=torch.int64),
        reading(x[:0]),
    )
    forms |= {
        "sum": reading(x),
        "call": lambda: ltdd_ext.class_moments(pixel, label, 1),
        "call of a sum": nothing,
    }
    seconds = median_seconds(forms)
    read = seconds.pop("sum") - seconds.pop("call of a sum")
    seconds["limit"] = seconds.pop("call") + read
    size = x.numel() * x.element_size()
    report.add_row(
        "class statistics",
        "x".join(map(str, shape)),
        layout,
        dtype,
        {name: 1e3 * value for name, value in seconds.items()},
        SETTING,
        gigabytes_per_second=size / seconds["ours"] / 1e9,
        yardstick_gigabytes_per_second=size / read / 1e9,
    )
    benchmark.pedantic(forms["ours"], rounds=3, warmup_rounds=0)
