"""Time variants side by side: interleaved, one thread, by the CPU time of that thread.

Other work on the machine then costs every variant the same, and time spent waiting does not count.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable

import torch

Variant = Callable[[], object]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
SETTING = (
    "CPU time of one thread; glibc malloc with M_MMAP_MAX=0, M_TRIM_THRESHOLD=M_TOP_PAD=2^30, "
    "so that freed pages are kept"
)


def keep_freed_pages() -> None:
    """Stop glibc from returning large blocks, whose page faults would dominate."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        raise RuntimeError("timing: expected glibc, whose allocator the reports name")
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 1 << 30), (_M_TOP_PAD, 1 << 30)):
        libc.mallopt(option, value)


def median_seconds(variants: dict[str, Variant], rounds: int = 9) -> dict[str, float]:
    """Run the variants in turn, ``rounds`` times after two warm-ups, and return their medians."""
    for run in variants.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def bandwidth(megabytes: int) -> Variant:
    """Return a copy of ``megabytes`` each way, the yardstick for gigabytes per second."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def reading(megabytes: int) -> Variant:
    """Return a sum over ``megabytes``, the yardstick for kernels that only read."""
    source = torch.ones(megabytes << 18)
    return lambda: source.sum()
