"""Memory of the process and of the GPU: what a block took at most, and what the allocator keeps."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed memory instead of returning it to the system.

    Networks on a CPU allocate and free the same large activations in every step. By default each
    is mapped afresh and its pages are faulted in again, which costs up to half of the time of a
    training step. The setting holds for the whole process.

    Returns:
        Whether the C library has the setting (glibc) and took it.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # parameters of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((trim_threshold, 2**31 - 1), (top_pad, 2**28), (mmap_max, 0))
    return all(bool(mallopt(*pair)) for pair in settings)


def return_freed_memory() -> None:
    """Give the system back what glibc's allocator has kept, so that it counts for nobody."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Meter:
    """Seconds and peak bytes of a block.

    On a GPU the peak is what the allocator handed out; on a CPU it is the resident size of the
    process, reset at the start where the kernel allows it (Linux), else since the process began.
    What blocks before it have freed does not count. Blocks that go by turns share one peak.
    """

    seconds: float = 0.0
    peak_bytes: int = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Meter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            return_freed_memory()
            # Where this is refused, peak_bytes is the peak of the whole process, as documented.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self._start = time.monotonic()
        return self

    def skip(self, seconds: float) -> None:
        """Leave out time that went to others."""
        self._start += seconds

    def __exit__(self, *exc_info: object) -> None:
        self.seconds = time.monotonic() - self._start
        self.peak_bytes = peak_bytes(self._device)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory since it was last reset.

    On a GPU it is what the allocator handed out, on a CPU the resident size of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
