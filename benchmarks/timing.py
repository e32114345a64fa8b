"""Time variants side by side: interleaved, one thread, by the CPU time of that thread.

Other work on the machine then costs every variant the same, and time spent waiting does not count.
"""

from __future__ import annotations

import ctypes
import random
import statistics
import time
from collections.abc import Callable

import torch

_SHORT_RUN, _MOST_ROUNDS = 0.5, 99  # seconds that all rounds may take together

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
    """Run the variants in turn after two warm-ups, and return their medians.

    Each round has an order of its own: what ran before leaves caches that help or hurt what comes
    next by up to a tenth of a millisecond. Turns of a few milliseconds get more than ``rounds``.
    """
    for run in variants.values():
        run()
    start = time.thread_time()
    for run in variants.values():
        run()
    turn = time.thread_time() - start
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants.items()), random.Random(0).shuffle
    for _ in range(max(rounds, min(_MOST_ROUNDS, int(_SHORT_RUN / turn)))):
        shuffle(order)
        for name, run in order:
            start = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def bandwidth(megabytes: int) -> Variant:
    """Return a copy of ``megabytes`` each way, the yardstick for gigabytes per second."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def reading(x: torch.Tensor) -> Variant:
    """Return a sum over the memory of a dense tensor, the yardstick for kernels that only read it.

    Its bytes are taken as floats, whatever they are: conversions would cost more than reading.
    """
    flat = x.detach().as_strided((x.numel(),), (1,)).view(torch.float32)
    return lambda: flat.sum()
