"""Weights in bfloat16, cast together instead of one by one in every step.

Autocast casts each weight of a convolution or linear layer by itself, and its gradient back: two
launches a weight, of which a small network has as many as of anything else. Here one call casts all
weights of a step, and another all gradients; frozen ones are cast once. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ltdd.engine.cuda_graphs import is_known
from ltdd.engine.runtime import Runtime

CAST_ONCE_ON = frozenset({"cuda"})  # kinds of devices where frozen weights are
_CAST_LAYERS = (nn.Conv2d, nn.Linear)  # whose weights and biases autocast casts


@contextmanager
def frozen_weights_cast(network: nn.Module, runtime: Runtime) -> Iterator[None]:
    """Have the layers of a frozen network use weights that are cast already, inside the block.

    Layers of anybody else's code stay as they are: they may do otherwise with their weights than
    autocast does. So do all on a CPU, where the casts are little beside the products, and where a
    kernel for few channels reads the weights before they are rounded. With precision ``fp32`` there
    is nothing to cast.

    Args:
        network: on its device; it does not change inside the block.
        runtime: device and precision.
    """
    on = runtime.device.type in CAST_ONCE_ON
    casts = on and runtime.precision == "bf16" and is_known(network)
    places = [
        (module, name, weight)
        for module in network.modules()
        if casts and type(module) in _CAST_LAYERS
        for name, weight in module.named_parameters(recurse=False)
        if not weight.requires_grad
    ]
    try:
        for module, name, weight in places:
            module._parameters[name] = nn.Parameter(weight.bfloat16(), requires_grad=False)
        yield
    finally:
        for module, name, weight in places:
            module._parameters[name] = weight


class CastWeights:
    """The trained weights of a network as its convolutions and linear layers use them.

    Args:
        network: on its device.
        runtime: with precision ``fp32`` there is nothing to cast.
        whole: whether this process computes the gradients alone; those of torch's
            DistributedDataParallel belong to the parameters themselves, which stay in their places.
    """

    def __init__(self, network: nn.Module, runtime: Runtime, whole: bool = True) -> None:
        self._places = [
            (module, name, parameter)
            for module in network.modules()
            if isinstance(module, _CAST_LAYERS) and whole and runtime.precision == "bf16"
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad
        ]
        self._weights = list[Tensor]({parameter: None for _, _, parameter in self._places})
        self._copies = [weight.detach().bfloat16().requires_grad_() for weight in self._weights]
        self._grads = [torch.empty_like(weight) for weight in self._weights]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have the network use freshly cast weights inside the block."""
        copies = dict(zip(self._weights, self._copies, strict=True))
        if self._copies:
            torch._foreach_copy_([copy.detach() for copy in self._copies], self._weights)
        try:
            for module, name, weight in self._places:
                module._parameters[name] = cast(nn.Parameter, copies[weight])
            yield
        finally:
            for module, name, weight in self._places:
                module._parameters[name] = weight

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss that was computed with these weights.

        They are those of the parameters, which have none before.
        """
        for copy in self._copies:
            copy.grad = None
        torch.autograd.backward(loss)
        found = [
            (weight, grad, copy.grad)
            for weight, grad, copy in zip(self._weights, self._grads, self._copies, strict=True)
            if copy.grad is not None
        ]
        if found:
            torch._foreach_copy_([to for _, to, _ in found], [grad for _, _, grad in found])
        for weight, grad, _ in found:
            weight.grad = grad
