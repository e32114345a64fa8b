"""Nearest rows in bounded memory: which of many rows is nearest to each of some others.

Every rank makes some batches of both, is given the asked rows of the others, and compares all asked
rows with its own of the many; the nearest to each is the nearest of those that the ranks found.

Half the squared distance is ``|a|^2 / 2 + |b|^2 / 2 - ab``. Rows of int8 are multiplied in float32,
a block of columns at a time whose sums of products stay below 2^24: every digit is right, on every
device and for every size of chunk. Rows of float32 are multiplied in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ltdd.engine.chunks import Chunks
from ltdd.engine.distributed.ranks import Ranks, current
from ltdd.engine.runtime import Runtime

BATCH = 500  # rows that others are compared with at once, fewer if memory does not suffice
HELD_BYTES = 2**29  # of asked rows, which stay in memory while the others pass
_ASKED = 1000  # of them in one product
_COLUMNS = 1024  # 128 * 128 * 1024 = 2^24


class Rows(NamedTuple):
    """Rows that are made when they are needed.

    Attributes:
        of: int64 positions (n,) -> (n, D), int8 or float32, on the runtime's device.
        labels: int64 (N,), the class of each one.
    """

    of: Callable[[Tensor], Tensor]
    labels: Tensor


class Nearest(NamedTuple):
    """The nearest row to each of some others, of all rows and of those of the same class.

    Attributes:
        half_square: float64 (2, Q), half the squared distance; infinite where there is none.
        position: int64 (2, Q), the first of several nearest ones; -1 where there is none.
    """

    half_square: Tensor
    position: Tensor

    def of_all(self, ranks: Ranks) -> Nearest:
        """Return the nearest of those that the ranks have found."""
        halves, positions = (ranks.join(found[None], [1] * ranks.world) for found in self)
        least = halves.amin(0)
        return Nearest(least, _first(positions, halves == least, 0))


class _Held(NamedTuple):
    """Rows in memory, with half their squared lengths, their labels and positions to leave out."""

    rows: Tensor
    half: Tensor
    labels: Tensor
    own: Tensor

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, own: Tensor) -> _Held:
        squares = rows.new_zeros(len(rows), dtype=torch.float64)
        for part in rows.split(_COLUMNS, 1):
            squares += part.double().square().sum(1)
        return cls(rows, squares / 2, labels.to(rows.device), own.to(rows.device))


@torch.no_grad()
def nearest_rows(asked: Rows, own: Tensor, among: Rows, stage: str, runtime: Runtime) -> Nearest:
    """Find the row nearest to each of some others.

    There are as many passes over ``among`` as ``HELD_BYTES`` make blocks of ``asked``.

    Args:
        asked: Q rows.
        own: int64 (Q,), the row of ``among`` that each one is and that does not count; -1 for none.
        among: N rows, 1 or more.
        stage: named by progress and errors.
        runtime: device, progress.

    Returns:
        The nearest rows, on the CPU.
    """
    chunks, device, ranks = Chunks(stage, BATCH, runtime), runtime.device, current()
    one = asked.of(torch.arange(1))
    most = max(1, HELD_BYTES // (one.shape[1] * one.element_size()))
    blocks = torch.arange(len(asked.labels)).split(most)
    batches = _batches_of_ranks(len(among.labels), ranks)[ranks.rank]
    found = []
    with runtime.progress(len(blocks) * len(batches), stage) as progress:
        for block in blocks:
            shares = _batches_of_ranks(len(block), ranks)
            lengths = [sum(map(len, share)) for share in shares]
            rows, filled = one.new_empty(lengths[ranks.rank], one.shape[1]), 0
            for batch in shares[ranks.rank]:
                for part in chunks.map(_slices(asked, block[batch]), len(batch)):
                    rows[filled : filled + len(part)] = part
                    filled += len(part)
            held = _Held.of(ranks.join(rows, lengths), asked.labels[block], own[block])
            best = torch.full((2, len(block)), torch.inf, dtype=torch.float64, device=device)
            position = torch.full((2, len(block)), -1, device=device)
            for batch in batches:
                for near in chunks.map(_comparison(held, among, batch), len(batch)):
                    nearer = near.half_square < best
                    best = best.where(~nearer, near.half_square)
                    position = position.where(~nearer, near.position)
                progress.step(images=len(batch))
            found.append(Nearest(best.cpu(), position.cpu()).of_all(ranks))
    return Nearest(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def _batches_of_ranks(count: int, ranks: Ranks) -> list[list[Tensor]]:
    """Return the positions 0..count-1 in batches: for every rank those that come next."""
    batches = torch.arange(count).split(BATCH)
    bounds = [len(batches) * rank // ranks.world for rank in range(ranks.world + 1)]
    return [list(batches[start:end]) for start, end in itertools.pairwise(bounds)]


def _slices(rows: Rows, positions: Tensor) -> Callable[[slice], Tensor]:
    return lambda part: rows.of(positions[part])


def _comparison(held: _Held, among: Rows, batch: Tensor) -> Callable[[slice], Nearest]:
    """Return what compares held rows with a part of a batch."""

    def compare(part: slice) -> Nearest:
        positions = batch[part]
        others = _Held.of(among.of(positions), among.labels[positions], positions)
        parts = (
            _compare(_Held(*asked), others)
            for asked in zip(*(tensor.split(_ASKED) for tensor in held), strict=True)
        )
        return Nearest(*(torch.cat(found, dim=1) for found in zip(*parts, strict=True)))

    return compare


def _compare(asked: _Held, others: _Held) -> Nearest:
    exact = torch.float32 if asked.rows.dtype == torch.int8 else torch.float64
    half = asked.half[:, None] + others.half
    columns = zip(asked.rows.split(_COLUMNS, 1), others.rows.split(_COLUMNS, 1), strict=True)
    for mine, theirs in columns:
        half -= mine.to(exact) @ theirs.to(exact).T
    half.clamp_(min=0)  # rounded below it, of float32
    found = []
    for left_out in (asked.own[:, None] == others.own, asked.labels[:, None] != others.labels):
        half.masked_fill_(left_out, torch.inf)
        least = half.amin(1)
        found.append((least, _first(others.own, half == least[:, None], 1)))
    return Nearest(*(torch.stack(parts) for parts in zip(*found, strict=True)))


def _first(positions: Tensor, which: Tensor, dim: int) -> Tensor:
    """Return the smallest of some positions: argmin may return any of equal ones."""
    return positions.where(which, torch.iinfo(torch.int64).max).amin(dim)
