"""Work on as many rows at once as fit into memory: after a failure on half as many, and so on.

Only work whose result does not depend on the size of a chunk may go through here. Training batches
cannot: batch norm sees the whole batch. They end with the name of the setting to lower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ltdd.engine.distributed.ranks import current
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError

T = TypeVar("T")

# MemoryError has a type of its own; everything else that allocates for torch raises RuntimeError
# in one of these wordings: its CPU and CUDA allocators, C++ itself, cuBLAS and cuDNN.
_WORDINGS = ("out of memory", "not enough memory", "bad_alloc", "alloc_failed", "allocate memory")
# oneDNN gives no reason. What it cannot do at all fails earlier, at "a primitive descriptor": what
# is left is memory, for the code that it compiles and for its scratch space.
_ONEDNN = "could not create a primitive"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is exhausted, on a CPU or a GPU."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (said == _ONEDNN or any(wording in said for wording in _WORDINGS))
    )


def agreed(work: Callable[[], T]) -> T:
    """Return what this rank's part of a common step gives, if memory sufficed on all ranks.

    Raises:
        MemoryError: it did not on one of them; all can go on with a smaller chunk.
    """
    ranks, made, failed = current(), list[T](), False
    try:
        made.append(work())
    except (MemoryError, RuntimeError) as error:
        if ranks.world == 1 or not is_out_of_memory(error):
            raise
        failed = True
    if ranks.any(failed):
        raise MemoryError("out of memory on one of the ranks")
    return made[0]


class Chunks:
    """Number of rows a stage works on at once; halved when memory does not suffice.

    Args:
        stage: named in the event, the printed line and the error.
        size: rows to begin with, 1 or more.
        runtime: device, log and whether to print.
    """

    def __init__(self, stage: str, size: int, runtime: Runtime) -> None:
        self.stage, self.size, self._runtime = stage, size, runtime

    def fit(self, work: Callable[[int], T], rows: int) -> T:
        """Return ``work(chunk)`` for the largest chunk of at most ``rows`` that fits into memory.

        Args:
            work: computes from a number of rows; it is called again after a failure, so it must
                leave nothing half done behind.
            rows: rows that there are, 1 or more.

        Raises:
            UserError: a single row does not fit.
        """
        while True:
            chunk = min(self.size, rows)
            try:
                return work(chunk)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = _first_line(error)
            # The exception held the failed attempt's tensors; here they are free.
            self._halve(chunk, reason)

    def map(self, work: Callable[[slice], T], rows: int) -> Iterator[T]:
        """Yield ``work(part)`` for consecutive parts of ``rows`` rows.

        Raises:
            UserError: a single row does not fit.
        """
        start = 0
        while start < rows:

            def attempt(chunk: int, start: int = start) -> tuple[int, T]:
                return start + chunk, work(slice(start, start + chunk))

            start, result = self.fit(attempt, rows - start)
            yield result

    def _halve(self, chunk: int, reason: str) -> None:
        if chunk == 1:
            raise UserError(
                f"{self.stage}: expected memory for one image at a time, got {reason}; "
                "end other programs, or use smaller images or networks"
            )
        self.size = chunk // 2
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        self._runtime.tell(
            "chunk_halved",
            f"{self.stage}: out of memory with {chunk} images at once, goes on with {self.size}",
            stage=self.stage,
            size=self.size,
            reason=reason,
        )


@contextmanager
def whole_batch(stage: str, setting: str) -> Iterator[None]:
    """Say which setting to lower if a batch that cannot be split does not fit into memory.

    Args:
        stage: named first.
        setting: name of the configuration field.

    Raises:
        UserError: in place of what the allocator raised.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{stage}: expected memory for a whole batch, which batch norm keeps from being split, "
            f"got {_first_line(error)}; lower --{setting}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
