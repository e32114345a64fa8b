"""What every stage needs from its surroundings: device, precision, random streams, progress."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import torch

import ltdd_ext
from ltdd.config import Backend, DistillConfig, Precision
from ltdd.engine.progress import Progress, peak_bytes
from ltdd.errors import UserError


class Log(Protocol):
    """Anything that takes one structured event, such as ``artifacts.EventLog``."""

    def write(self, event: str, **fields: Any) -> None: ...


class NullLog:
    """Drops every event."""

    def write(self, event: str, **fields: Any) -> None:
        """Do nothing."""


class Checkpoint(Protocol):
    """Where an unfinished stage keeps its state, such as ``checkpoint.StageCheckpoint``."""

    def restore(self) -> dict[str, Any]: ...

    def step(self, **state: Any) -> None: ...


class NoCheckpoint:
    """Keeps nothing: a stopped stage starts over."""

    def restore(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def step(self, **state: Any) -> None:
        """Do nothing."""


def stream_seed(seed: int, *keys: int | str) -> int:
    """Return the 63-bit seed of the random stream named by ``keys``.

    Streams are addressed, not advanced: what one draws does not depend on what was drawn before,
    so neither batch size nor order of work changes a result.
    """
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Runtime:
    """Surroundings of a run.

    Args:
        device: where networks and images live.
        precision: ``bf16`` runs networks under autocast, ``fp32`` does not.
        backend: ``compiled`` uses ``ltdd_ext``'s operators for statistics and recovery,
            ``reference`` their plain PyTorch twins. The layers of networks are the same.
        seed: root of every random stream.
        log: receives structured events.
        quiet: no progress output.
        checkpoint: keeps the state of the stage that runs; it does not change a result.
    """

    device: torch.device
    precision: Literal["bf16", "fp32"] = "fp32"
    backend: Backend = "compiled"
    seed: int = 0
    log: Log = field(default_factory=NullLog)
    quiet: bool = False
    checkpoint: Checkpoint = field(default_factory=NoCheckpoint)

    @classmethod
    def from_config(cls, config: DistillConfig, log: Log, quiet: bool) -> Runtime:
        """Build the surroundings that a configuration asks for."""
        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        return cls(device, precision, config.backend, config.seed, log, quiet)

    @property
    def ops(self) -> ModuleType:
        """Module that holds the statistics operators of the chosen backend."""
        return ltdd_ext if self.backend == "compiled" else ltdd_ext.reference

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the chosen precision."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def stream(self, *keys: int | str) -> torch.Generator:
        """Return a fresh CPU generator for the random stream named by ``keys``."""
        return torch.Generator().manual_seed(stream_seed(self.seed, *keys))

    @contextmanager
    def global_stream(self, *keys: int | str) -> Iterator[None]:
        """Seed torch's global generators inside the block (for layer initialisation)."""
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(self.seed, *keys))
            yield

    def tell(self, event: str, sentence: str, **fields: Any) -> None:
        """Log an event and say it in words, unless the run is quiet: something goes another way."""
        self.log.write(event, **fields)
        if not self.quiet:
            print(sentence, file=sys.stderr, flush=True)

    def progress(self, total: int, label: str, done: int = 0) -> Progress:
        """Return a progress display for ``total`` steps, of which ``done`` were restored."""
        return Progress(total, label, self.quiet, done, self.device)


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device.

    Raises:
        UserError: ``cuda`` was asked for and there is no usable GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a usable CUDA device for 'cuda', got a machine without")
    return torch.device(name)


def resolve_precision(name: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """Turn ``auto`` into the precision in which convolutions are fastest on the device."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def choose_kernels(device: torch.device, deterministic: bool) -> bool:
    """Let a GPU use all kernels, or only those that give the same bits in every run.

    The choice holds for the whole process. An operator without such a kernel raises a RuntimeError
    when it is called. On a CPU there is nothing to choose: the bits depend only on the number of
    threads.

    Returns:
        Whether the choice decides a result's bits, so that it belongs into a stage's hash.
    """
    if device.type != "cuda":
        return False
    if deterministic:  # cuBLAS reads it when it starts, and repeats itself in a fixed workspace
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic  # times its kernels for each new shape
    return deterministic


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


class Meter:
    """Seconds and peak bytes of a block.

    On a GPU the peak is what the allocator handed out; on a CPU it is the resident size of the
    process, reset at the start where the kernel allows it (Linux), else since the process began.
    """

    seconds: float = 0.0
    peak_bytes: int = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Meter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            # Where this is refused, peak_bytes is the peak of the whole process, as documented.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self._start = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.seconds = time.monotonic() - self._start
        self.peak_bytes = peak_bytes(self._device)


def mean_of_losses(losses: Sequence[torch.Tensor], stage: str, first: int) -> float:
    """Return the mean of the losses of an epoch's steps.

    They are looked at together, so that a GPU does not wait for the host in every step.

    Args:
        losses: scalars, at least one.
        stage: named in the message.
        first: number of the first step.

    Raises:
        UserError: one is NaN or infinite; the message names the stage and the first such step.
    """
    device = losses[-1].device  # those of a checkpoint are on the CPU
    values = torch.stack([loss.to(device) for loss in losses]).cpu()
    for step in torch.nonzero(~values.isfinite()).flatten().tolist():
        check_finite(values[step], stage, first + step, "loss")
    return float(values.mean())


def check_finite(value: torch.Tensor, stage: str, step: int, what: str) -> float:
    """Return a scalar loss as a float.

    Raises:
        UserError: it is NaN or infinite; the message names the stage, the step and the tensor.
    """
    number = float(value)
    if not math.isfinite(number):
        raise UserError(
            f"{stage}: expected a finite {what} at step {step}, got {number}; "
            "lower the learning rate or use --precision fp32"
        )
    return number
