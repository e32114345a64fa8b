"""Weights in bfloat16, cast together once a step instead of one by one.

Autocast casts each weight of a convolution or linear layer by itself, and its gradient back: two
launches a weight, of which a small network has as many as of anything else. Here one call casts all
weights, and another all gradients. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ltdd.engine.runtime import Runtime

_CAST_LAYERS = (nn.Conv2d, nn.Linear)  # whose weights and biases autocast casts


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
