"""Who this process is among those of a run, and how they pass results to each other.

torchrun starts the processes. gloo carries what is on CPUs, NCCL what is on GPUs. Nothing that is
received is unpickled: numbers travel as JSON, tensors as their bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

PACKET = 2**20  # bytes of tensors that travel together
_PAUSES = (5e-5, 2e-3)  # seconds between two looks at what is waited for, first and at most


class Waiting(Protocol):
    """Told while this rank waits for others, so that it does not wait for those that are gone."""

    def check(self) -> None:
        """Raise if another rank has failed."""


class Ranks:
    """The processes of a run.

    Args:
        rank: number of this one, from 0.
        world: how many there are.
        group: connects them on CPUs; None for one alone.
        waiting: checked while this one waits.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        self.rank, self.world = rank, world
        self._group, self._waiting = group, waiting

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and speaks for all."""
        return self.rank == 0

    def first_only(self, work: Callable[[], T]) -> T:
        """Let the first rank do something, and return its result on all of them.

        Args:
            work: returns JSON types, or None.
        """
        result = None
        if self.is_first:
            with alone():
                result = work()
        return self.share(result)  # type: ignore[no-any-return]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do something on all ranks, but first on the first: what it leaves, the others find."""
        if self.is_first:
            with alone():
                result = work()
        self.share(None)
        if not self.is_first:
            with alone():
                result = work()
        self.share(None)
        return result

    @contextlib.contextmanager
    def first_holds(
        self, take: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> Iterator[None]:
        """Let the first rank hold something, such as a lock, while all do what the block does."""
        with take() if self.is_first else contextlib.nullcontext():
            self.share(None)
            yield

    def share(self, value: Any, source: int = 0) -> Any:
        """Return the value (JSON types) that one rank gives, on all of them."""
        if self.world == 1:
            return value
        content = json.dumps(value).encode() if self.rank == source else b""
        size = torch.tensor([len(content)])
        self._broadcast(size, source)
        text = torch.empty(int(size), dtype=torch.uint8)
        if content:
            text = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._broadcast(text, source)
        return json.loads(text.numpy().tobytes())

    def share_tensors(self, tensors: Mapping[str, Tensor], source: int = 0) -> dict[str, Tensor]:
        """Return the CPU tensors that one rank gives, by name, on all of them."""
        if self.world == 1:
            return dict(tensors)
        given = {name: tensor.contiguous() for name, tensor in tensors.items()}
        forms = [[n, str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in given.items()]
        forms = self.share(forms, source)
        if self.rank != source:
            given = {
                n: torch.empty(shape, dtype=getattr(torch, dtype)) for n, dtype, shape in forms
            }
        filled = (tensor for tensor in given.values() if tensor.numel())
        for packet in _packets(tensor.reshape(-1).view(torch.uint8) for tensor in filled):
            whole = packet[0] if len(packet) == 1 else torch.cat(packet)
            self._broadcast(whole, source)
            if self.rank != source and len(packet) > 1:
                for part, received in zip(packet, whole.split(list(map(len, packet))), strict=True):
                    part.copy_(received)
        return given

    def all(self, value: Any) -> list[Any]:
        """Return the values (JSON types) of all ranks, in order."""
        return [self.share(value, source) for source in range(self.world)]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on one of the ranks."""
        if self.world == 1:
            return flag
        flags = torch.tensor([int(flag)])
        self._wait(dist.all_reduce(flags, group=self._group, async_op=True))
        return bool(flags)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, in the same order everywhere."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        self._wait(dist.all_reduce(total, group=self.group_of(total), async_op=True))
        return total

    def join(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the parts of all ranks in order, joined along their first dimension.

        Args:
            part: of this rank, (n, ...).
            lengths: n of every rank.
        """
        if self.world == 1:
            return part
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in lengths]
        self._wait(dist.all_gather(parts, padded, group=self.group_of(part), async_op=True))
        return torch.cat([rows[:length] for rows, length in zip(parts, lengths, strict=True)])

    def group_of(self, tensor: Tensor) -> dist.ProcessGroup | None:
        """Return what connects the devices of tensors; None is torch's default group, for GPUs."""
        return None if tensor.is_cuda else self._group

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        self._wait(dist.broadcast(tensor, source, group=self._group, async_op=True))

    def _wait(self, work: Any) -> None:
        """Wait in Python, so that a signal and the failure of another rank end it."""
        pause, longest = _PAUSES
        while not work.is_completed():
            time.sleep(pause)  # the thread that receives may need this very core
            pause = min(1.1 * pause, longest)
            if pause == longest and self._waiting is not None:
                self._waiting.check()
        work.wait()


def _packets(parts: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Put small tensors together: many of them would wait longer than they travel."""
    packet, size = list[Tensor](), 0
    for part in parts:
        if packet and size + len(part) > PACKET:
            yield packet
            packet, size = [], 0
        packet.append(part)
        size += len(part)
    if packet:
        yield packet


_current = Ranks()


def current() -> Ranks:
    """Return the ranks of the run that goes on, or this process alone."""
    return _current


@contextlib.contextmanager
def among(ranks: Ranks) -> Iterator[None]:
    """Let `current` be these inside the block."""
    global _current
    before, _current = _current, ranks
    try:
        yield
    finally:
        _current = before


def alone() -> contextlib.AbstractContextManager[None]:
    """Do what the block does on this rank alone: nothing in it waits for another one."""
    return among(Ranks())


def local_rank() -> int:
    """Return the number of this process among those of its machine, as torchrun says it."""
    return int(os.environ.get("LOCAL_RANK", "0"))
