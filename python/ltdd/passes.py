"""Training passes of a network, on a GPU replayed from CUDA graphs.

A small network on a GPU waits for the host, which launches hundreds of kernels a step one by one;
a graph launches them together. What is computed stays the same.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.chunks import is_out_of_memory
from ltdd.runtime import Runtime

_KNOWN = frozenset({"torch", "torchvision", "ltdd"})  # whose layers never read from the device


class TrainingPasses:
    """Calls a network in training mode; its backward pass is autograd's as ever.

    On a GPU the first batch is what graphs are recorded with, and every later batch of its shape
    replays them. Batches of other shapes, and networks with layers of anybody else's code, which
    might look at a value while they run, go the ordinary way.

    Outputs of a replayed pass are overwritten by the next one.

    Args:
        network: in training mode, on the runtime's device. Copies of it must have been made before
            the first call.
        runtime: device and precision.
    """

    def __init__(self, network: nn.Module, runtime: Runtime) -> None:
        self._network, self._runtime = network, runtime
        self._recorded: nn.Module | None = None
        self._shape: torch.Size | None = None
        owners = {type(module).__module__.partition(".")[0] for module in network.modules()}
        self._may_record = runtime.device.type == "cuda" and owners <= _KNOWN

    def __call__(self, images: Tensor) -> Any:
        """Return what the network returns for normalised images (N, C, H, W)."""
        if self._may_record and self._shape is None:
            self._shape = images.shape
            try:
                self._recorded = self._record(images)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._say_why_not(error)
        network = self._network
        if self._recorded is not None and images.shape == self._shape:
            network = self._recorded
        with self._runtime.autocast():
            return network(images)

    def _say_why_not(self, error: RuntimeError) -> None:
        """Tell that every pass is launched kernel by kernel: as right, but slower."""
        reason = str(error).partition("\n")[0]
        self._runtime.log.write("passes_not_recorded", reason=reason)
        if not self._runtime.quiet:
            said = f"passes are not recorded as CUDA graphs, training is slower: {reason}"
            print(said, file=sys.stderr, flush=True)

    def _record(self, images: Tensor) -> nn.Module:
        # The rehearsals before a recording move running statistics, which are put back.
        before = [buffer.clone() for buffer in self._network.buffers()]
        half = self._runtime.precision == "bf16"
        # A shell around the network takes the patched call, so that the network keeps its own.
        shell = nn.Sequential(self._network)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half, cache_enabled=False):
            torch.cuda.make_graphed_callables(shell, (images.clone(),))  # patches the shell
        with torch.no_grad():
            for buffer, value in zip(self._network.buffers(), before, strict=True):
                buffer.copy_(value)
        return shell
