"""Differentiable operators: one formula each, for compilers and for direct calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def differentiable(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """Register the formula of an operator and return the function that calls the operator.

    The registration is what compilers read. Outside of them its Python takes longer than the
    operator on a small layer: there an ``autograd.Function`` of the same formula does, or nothing
    where no gradient is wanted.
    """
    operator = getattr(torch.ops.ltdd_ext, name).default
    torch.library.register_autograd(operator, backward, setup_context=setup_context)

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Formula.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    return call
