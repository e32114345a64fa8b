"""Give every stage its surroundings: device, precision, random streams, progress."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, Protocol

import torch

import ltdd_ext
from ltdd.config import Backend, DistillConfig, Precision
from ltdd.engine.distributed.ranks import current
from ltdd.engine.watching.progress import Progress
from ltdd.errors import UserError


class Log(Protocol):
    """Anything that takes one structured event, such as ``events.EventLog``."""

    def write(self, event: str, **fields: Any) -> None:
        """Take an event of this name."""


class NullLog:
    """Drops every event."""

    def write(self, event: str, **fields: Any) -> None:
        """Do nothing."""


class Checkpoint(Protocol):
    """Anything that keeps the state of an unfinished stage, as ``StageCheckpoint`` does."""

    def restore(self) -> dict[str, Any]:
        """Return what a stopped process kept; empty if there is nothing."""

    def step(self, **state: Any) -> None:
        """Keep the state if it is time to."""

    def shares(self) -> list[dict[str, Any]]:
        """Return what every rank of a stopped run kept of its own units."""

    def share(self, rank: int) -> Checkpoint:
        """Return what keeps the state of the units of a rank."""


class NoCheckpoint:
    """Keeps nothing: a stopped stage starts over."""

    def restore(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def step(self, **state: Any) -> None:
        """Do nothing."""

    def shares(self) -> list[dict[str, Any]]:
        """Return nothing."""
        return []

    def share(self, rank: int) -> NoCheckpoint:
        """Return this."""
        return self


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
        quiet = quiet or not current().is_first
        return cls(device, precision, config.backend, config.seed, log, quiet)

    @property
    def rank(self) -> int:
        """Number of this process among those of the run, from 0."""
        return current().rank

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
        """Log an event and say it in words: something goes another way."""
        self.log.write(event, **fields)
        self.say(sentence)

    def say(self, sentence: str) -> None:
        """Print a sentence, unless the run is quiet."""
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
    threads, which ``OMP_NUM_THREADS`` keeps from following the cores that are free (`cores`).

    Returns:
        Whether the choice decides a result's bits, so that it belongs into a stage's hash.
    """
    if device.type != "cuda":
        return False
    if deterministic:  # cuBLAS reads it when it starts, and repeats itself in a fixed workspace
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Or the mode would write NaN into every new tensor: one more pass over memory for each result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic  # times its kernels for each new shape
    return deterministic
