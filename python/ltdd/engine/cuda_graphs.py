"""Steps of training, recovery and labeling, on a GPU replayed from CUDA graphs.

A small network on a GPU waits for the host, which launches hundreds of kernels a step one by one; a
graph launches them all together: augmentation, both passes and the optimizer. So a step is a
function of tensors alone: what a step draws is drawn before it, on the host, from the random
streams. What is computed stays the same.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.engine.chunks import is_out_of_memory
from ltdd.engine.machine import cores
from ltdd.engine.runtime import Runtime
from ltdd.engine.tensor_trees import leaves, map_tensors, shapes, to_device

REHEARSALS = 3  # ordinary steps before one is recorded: libraries choose their kernels in these
# Whose layers never read from the device, and leave casts to autocast.
_KNOWN = frozenset({"torch", "torchvision", "ltdd", "ltdd_ext"})


def is_known(network: nn.Module) -> bool:
    """Return whether no layer of a network is anybody else's code."""
    return {type(module).__module__.partition(".")[0] for module in network.modules()} <= _KNOWN


class RecordedSteps:
    """Calls a function that takes one step, of training, recovery or labeling.

    On a GPU the first calls with inputs of given shapes are ordinary ones; then the step is
    recorded, and every later call of these shapes replays it. Networks with layers of anybody
    else's code, which might look at a value while they run, go the ordinary way. All calls are made
    on the stream that was the current one when this was made.

    Args:
        step: takes the inputs of a call, on the runtime's device, and returns a tensor without
            graph, such as the loss. It reads no value from the device, and what else it uses
            (parameters, statistics, the state of an optimizer made with `adjustable_rate`) it
            changes in place.
        network: what the step calls.
        runtime: device.
        recordable: whether the step keeps to all this.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        network: nn.Module,
        runtime: Runtime,
        recordable: bool = True,
    ) -> None:
        self._step, self._runtime = step, runtime
        self._may_record = recordable and runtime.device.type == "cuda" and is_known(network)
        self._side = _beside(torch.cuda.current_stream()) if self._may_record else None
        self._calls: dict[Any, int] = {}
        self._recorded: dict[Any, _Recording] = {}

    def __call__(self, *inputs: Any, variant: Any = None) -> Tensor:
        """Take a step and return what the function returns.

        Args:
            inputs: tensors, None, or tuples of them, on any device.
            variant: passed on to the step as its last argument unless it is None; steps of
                different variants are recorded apart.
        """
        extra = () if variant is None else (variant,)
        if self._runtime.device.type == "cpu":
            cores.look(self._runtime.tell)
        if not self._may_record:
            return self._step(*to_device(inputs, self._runtime.device), *extra)
        key = (variant, shapes(inputs))
        made = self._calls[key] = self._calls.get(key, 0) + 1
        if made == REHEARSALS + 1:
            try:
                here = to_device(inputs, self._runtime.device)
                self._recorded[key] = _Recording(self._step, here, extra, self._side)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._say_why_not(error)
        if key in self._recorded:
            return self._recorded[key].replay(inputs)
        return self._rehearse(inputs, extra)

    def _rehearse(self, inputs: Any, extra: tuple[Any, ...]) -> Tensor:
        """Take an ordinary step, on the stream that a recording is made on."""
        assert self._side is not None
        side, current = self._side, torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self._step(*to_device(inputs, self._runtime.device), *extra)
        current.wait_stream(side)
        return result

    def _say_why_not(self, error: RuntimeError) -> None:
        """Tell that every kernel is launched by itself: as right, but slower."""
        reason = str(error).partition("\n")[0]
        self._may_record = False
        said = f"steps are not recorded as CUDA graphs, which is slower: {reason}"
        self._runtime.tell("steps_not_recorded", said, reason=reason)


@functools.cache
def _beside(stream: Any) -> Any:
    """Return the stream to record on what is replayed on another one.

    Libraries keep their scratch by the stream, so two graphs that run at once must not have been
    recorded on one. It is the same one in every call: torch has 32, and gives them out in turns.
    """
    return torch.cuda.Stream(stream.device)


class _Recording:
    """One step as a CUDA graph, with the inputs that it reads and the tensor that it writes.

    Args:
        step: what is recorded.
        inputs: of its first replay, on the device.
        extra: further arguments, that stay.
        stream: to record on.
    """

    def __init__(
        self, step: Callable[..., Tensor], inputs: Any, extra: tuple[Any, ...], stream: Any
    ) -> None:
        self._inputs = map_tensors(torch.clone, inputs)
        self._graph = torch.cuda.CUDAGraph()
        outside, current = sys.exc_info()[1], torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self._graph, stream=stream):
                self._result = step(*self._inputs, *extra)
        except RuntimeError as error:
            # The end of a capture that has failed fails too, and leaves its stream the current one.
            torch.cuda.set_stream(current)
            cause = error.__context__
            if cause is None or cause is outside:
                raise
            raise cause from None

    def replay(self, inputs: Any) -> Tensor:
        for own, given in zip(leaves(self._inputs), leaves(inputs), strict=True):
            # From pageable memory, which the driver copies before it returns: a pinned tensor could
            # be overwritten before the step that reads it has begun.
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result.clone()  # the next replay overwrites it


def adjustable_rate(rate: float, device: torch.device) -> Any:
    """Return a learning rate for an optimizer whose steps may be recorded.

    On a GPU it is a tensor: schedules change its value, which a recorded step reads.
    """
    return torch.tensor(rate, device=device) if device.type == "cuda" else rate


class MovingAverage:
    """The average of a network's parameters over steps, with the newest statistics.

    ``average <- decay * average + (1 - decay) * parameter``, from the parameters after the first
    update. torch's `AveragedModel` asks the device in each update how many there were.

    Args:
        network: what is averaged.
        decay: in [0, 1); 0 keeps the last iterate.

    Attributes:
        module: a copy of the network with the averaged parameters.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network)
        self._decay, self._started = decay, False
        # Listed once: in every update it would take longer than the average itself.
        self._own, self._new = (list[Tensor](net.parameters()) for net in (self.module, network))
        self._own_buffers, self._new_buffers = (
            list[Tensor](net.buffers()) for net in (self.module, network)
        )

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's present parameters."""
        if self._started:
            torch._foreach_lerp_(self._own, self._new, 1 - self._decay)
        else:
            torch._foreach_copy_(self._own, self._new)
            self._started = True
        if self._own_buffers:
            torch._foreach_copy_(self._own_buffers, self._new_buffers)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"network": self.module.state_dict(), "started": self._started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.module.load_state_dict(state["network"])
        self._started = state["started"]
