"""Let trainings that do not need each other take turns on one GPU, from one thread.

A GPU rests between the kernels of one training, and while the host launches them; a second training
on a stream of its own fills these gaps. A training is a generator that pauses after every step. No
context of a step is open in a pause, and random streams are addressed, not advanced, so that the
result has the same bytes as that of a training alone.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

import torch

from ltdd.engine import interruption
from ltdd.engine.chunks import is_out_of_memory
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError, first_line

T = TypeVar("T")
Turns = Generator[None, None, T]
"""Work that pauses between its steps, and returns a result."""

AT_ONCE = {"cuda": 5}
"""Trainings that take turns, by kind of device; one on others: a CPU is never idle."""


def finished(work: Turns[T]) -> T:
    """Return the result of a work, without a pause."""
    training = _Training(work, None)
    while not training.take_turn():
        pass
    return training.result[0]


def timed(work: Turns[T], paused: Callable[[float], None]) -> Turns[T]:
    """Take the steps of a work, and tell how many seconds each of its pauses took."""
    with contextlib.closing(work):
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            begun = time.monotonic()
            yield
            paused(time.monotonic() - begun)


def by_turns(stage: str, starts: Sequence[Callable[[], Turns[T]]], runtime: Runtime) -> list[T]:
    """Return the results of works that do not need each other, in order.

    As many as the device has use for take turns, the others wait for one of them to end. Where they
    do not fit into memory together, the one that finds none left starts again from its checkpoint
    when another has ended. When one fails or is stopped, the others save their state.

    Args:
        stage: named where memory does not suffice.
        starts: each begins one of the works, a second time where its first attempt had no memory.
        runtime: device and log.

    Raises:
        Whatever a work raises; for want of memory, only where it is under way alone.
    """
    most = min(AT_ONCE.get(runtime.device.type, 1), len(starts))
    own = most > 1 and runtime.device.type == "cuda"
    streams = [_stream(runtime.device, number) if own else None for number in range(most)]
    waiting, made = deque(range(len(starts))), dict[int, T]()
    under_way: dict[int, _Training[T]] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < most:
                number = waiting.popleft()
                under_way[number] = _Training(starts[number](), streams.pop())
            for number, training in list(under_way.items()):
                lacking = ""
                try:
                    if not training.take_turn():
                        continue
                    made[number] = training.result[0]
                except (MemoryError, RuntimeError, UserError) as error:
                    lacking = _want_of_memory(error)
                    if len(under_way) == 1 or not lacking:
                        raise
                # The exception held the tensors of the attempt; here they are free.
                streams.append(under_way.pop(number).stream)
                if under_way:  # whose signals wait for the end of a step, as before
                    interruption.delay(True)
                if lacking:
                    most = len(under_way)
                    waiting.appendleft(number)
                    _give_way(stage, most, lacking, runtime)
    except BaseException:
        for training in under_way.values():
            training.stop(stage, runtime)
        raise
    return [made[number] for number in range(len(starts))]


class _Training(Generic[T]):
    """A work that is under way.

    Args:
        work: not begun.
        stream: that its steps are launched on; None for the current one.

    Attributes:
        stream: as given.
        result: empty until it has ended.
    """

    def __init__(self, work: Turns[T], stream: Any) -> None:
        self._work, self.stream = work, stream
        self.result: list[T] = []
        if stream is not None:  # what it reads has been queued on the current one
            stream.wait_stream(torch.cuda.current_stream())

    def take_turn(self) -> bool:
        """Go on to the next pause; return whether the work has ended instead."""
        stream = self.stream
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            try:
                next(self._work)
            except StopIteration as end:
                self.result.append(end.value)
        if self.result and stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
        return bool(self.result)

    def stop(self, stage: str, runtime: Runtime) -> None:
        """Save the state and end, as after a signal; the work may have ended already."""
        try:
            with contextlib.closing(self._work), interruption.asked():
                self.take_turn()
        except interruption.Interrupted:
            pass
        except Exception as error:  # another one is about to be told
            reason = first_line(error)
            said = f"{stage}: another training kept its last checkpoint only: {reason}"
            runtime.tell("state_not_saved", said, stage=stage, reason=reason)


@functools.cache
def _stream(device: torch.device, number: int) -> Any:
    """Return a stream, the same one in every call: torch has 32, and gives them out in turns."""
    return torch.cuda.Stream(device)


def _want_of_memory(error: BaseException) -> str:
    """Return what an exception says of exhausted memory; nothing if it is about anything else."""
    for found in (error, error.__cause__):  # which `whole_batch` puts into its own words
        if found is not None and is_out_of_memory(found):
            return first_line(found)
    return ""


def _give_way(stage: str, most: int, reason: str, runtime: Runtime) -> None:
    """Say that fewer trainings go on at once, and free the memory of the one that waits."""
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    how = "one after the other" if most == 1 else f"{most} by turns"
    said = f"{stage}: not enough memory for {most + 1} trainings at once, goes on {how}: {reason}"
    runtime.tell("fewer_at_once", said, stage=stage, at_once=most, reason=reason)
