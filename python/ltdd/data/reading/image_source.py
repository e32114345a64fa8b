"""Images before they are decoded, and the two labelled parts that every source comes down to."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ltdd.data.reading.decoder import (
    FORMATS,
    ForeignFormatError,
    Form,
    Header,
    UInt8Array,
    header_of,
    pixels_of,
    reason,
    value_range,
)
from ltdd.errors import UserError

IntArray = npt.NDArray[np.int64]
Result = TypeVar("Result")

BLOCK_BYTES = 16 << 20
"""Decoded bytes in flight: what decoding needs in memory, whatever the size of the set."""

_LISTED = 10  # images that one message names
_MOST_IN_BLOCK = 1024  # images in flight


class Images(Protocol):
    """Images of a source, addressed by position and not decoded yet."""

    def __len__(self) -> int: ...

    def take(self, positions: IntArray) -> Images:
        """Return the images at these positions, in their order."""

    def headers(self) -> Counter[Header]:
        """Return how often which sizes and colours occur, without decoding."""

    def value_range(self) -> tuple[int, int] | None:
        """Return the ends of the values of more than 8 bits; None if there are none."""

    def blocks(self, form: Form) -> Iterator[tuple[IntArray, UInt8Array]]:
        """Decode all images in bounded memory: yield positions (n,) and pixels (n, C, S, S)."""

    def identity(self) -> str | None:
        """Return what names the content without reading it; None if nothing does."""

    def name(self, position: int) -> str:
        """Say which image this is, in the user's terms."""


@dataclass(frozen=True)
class Labelled:
    """Images with the class of each, int64 (N,)."""

    images: Images
    labels: IntArray

    def take(self, positions: IntArray) -> Labelled:
        """Return the images at these positions with their labels."""
        return Labelled(self.images.take(positions), self.labels[positions])


@dataclass(frozen=True)
class Parts:
    """Training and test part of a source, before the training part is cut.

    Attributes:
        train, test: the two parts.
        class_names: names in class order.
        left_out: files that could not be read, with the reason.
        notes: sentences that the user should read before the run starts.
    """

    train: Labelled
    test: Labelled
    class_names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Pictures(ABC):
    """Images that are opened and decoded one by one, several at a time."""

    threads: ClassVar[int] = min(8, os.cpu_count() or 1)
    can_be_skipped: ClassVar[bool] = True
    """Whether there is an option that leaves unreadable ones out."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, positions: IntArray) -> Images:
        """As `Images.take`."""

    @abstractmethod
    def opened(self, position: int) -> AbstractContextManager[Image.Image]:
        """Open one picture; any exception is that picture's fault."""

    @abstractmethod
    def identity(self) -> str | None:
        """As `Images.identity`."""

    @abstractmethod
    def name(self, position: int) -> str:
        """As `Images.name`."""

    def headers(self) -> Counter[Header]:
        """Open every picture without decoding it.

        Raises:
            UserError: names the pictures that cannot be read.
        """
        blocks = self._blocks(header_of, _MOST_IN_BLOCK)
        return Counter(header for block in blocks for header in block)

    def value_range(self) -> tuple[int, int] | None:
        """Decode every picture of more than 8 bits.

        Raises:
            UserError: names the pictures that cannot be read.
        """
        blocks = self._blocks(value_range, _MOST_IN_BLOCK)
        found = [ends for block in blocks for ends in block if ends is not None]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else None

    def blocks(self, form: Form) -> Iterator[tuple[IntArray, UInt8Array]]:
        """Decode every picture, in order.

        Raises:
            UserError: names the pictures that cannot be read.
        """
        at_once = min(_MOST_IN_BLOCK, max(1, BLOCK_BYTES // (form.channels * form.size**2)))
        start = 0
        for block in self._blocks(lambda image: pixels_of(image, form), at_once):
            yield np.arange(start, start + len(block)), np.stack(block)
            start += len(block)

    def readable(self) -> tuple[IntArray, tuple[str, ...]]:
        """Decode every picture once.

        Returns:
            Positions of those that can be read, and ``name (reason)`` of every other one.
        """
        good, bad = [], []
        for position, outcome in enumerate(self._attempts(_decode_small, _MOST_IN_BLOCK)):
            if isinstance(outcome, BaseException):
                bad.append(f"{self.name(position)} ({reason(outcome)})")
            else:
                good.append(position)
        return np.asarray(good, dtype=np.int64), tuple(bad)

    def _blocks(
        self, work: Callable[[Image.Image], Result], at_once: int
    ) -> Iterator[list[Result]]:
        """Yield results in lists of `at_once`; report all failures in one sentence at the end."""
        block: list[Result] = []
        failures: list[str] = []
        hints: dict[str, None] = {}
        for position, outcome in enumerate(self._attempts(work, at_once)):
            if isinstance(outcome, BaseException):
                failures.append(f"{self.name(position)} ({reason(outcome)})")
                if isinstance(outcome, ForeignFormatError):
                    hints[outcome.hint] = None
            elif not failures:
                block.append(outcome)
                if len(block) == at_once:
                    yield block
                    block = []
        if failures:
            listed, more = "; ".join(failures[:_LISTED]), len(failures) - _LISTED
            if self.can_be_skipped:
                hints["--on-bad-image skip leaves out what cannot be read"] = None
            raise UserError(
                f"expected readable {', '.join(FORMATS)} images, got {listed}"
                + (f" and {more} more" if more > 0 else "")
                + "".join(f"; {hint}" for hint in hints)
            )
        if block:
            yield block

    def _attempts(
        self, work: Callable[[Image.Image], Result], at_once: int
    ) -> Iterator[Result | BaseException]:
        """Yield the result or the exception of every picture, in order."""

        def attempt(position: int) -> Result:
            with self.opened(position) as image:
                return work(image)

        pool = ThreadPoolExecutor(max_workers=self.threads)
        try:
            for start in range(0, len(self), at_once):
                stop = min(start + at_once, len(self))
                for future in [pool.submit(attempt, n) for n in range(start, stop)]:
                    error = future.exception()
                    # Decoders fail in many ways on hostile files; each is the file's fault.
                    yield future.result() if error is None else error
        finally:  # an interrupted program does not wait for thousands of files
            pool.shutdown(cancel_futures=True)


def _decode_small(image: Image.Image) -> None:
    pixels_of(image, Form(8, 3))
