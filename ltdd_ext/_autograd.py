"""Differentiable operators: one formula each, for compilers and for direct calls.

The kernels know the value and its first derivative in reverse mode, some also the second. Whatever
goes beyond, forward mode and the transforms of ``torch.func``, PyTorch derives from the same
operator out of its own operations (``_composed``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _has_transforms
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Tell whether a transform of ``torch.func`` or forward mode is at work.

    Kernels would drop what these attach to a tensor.
    """
    return _has_transforms() or forward_ad._current_level >= 0


def is_differentiated() -> bool:
    """Tell whether what is computed in a backward pass will itself be differentiated."""
    return torch.is_grad_enabled() or _has_transforms() or forward_ad._current_level >= 0


def pull_back(
    composed: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a composed operator, differentiable in inputs and ``grads``.

    Args:
        composed: The operator out of PyTorch's operations.
        inputs: Its arguments.
        needed: Which of them want a gradient.
        grads: Gradients of its outputs; None for zeros.
    """
    if not any(needed):
        return (None,) * len(needed)
    with torch.enable_grad():
        # Each argument under a name of its own: two of them may be one tensor.
        own = [one.view_as(one) if want else one for one, want in zip(inputs, needed, strict=True)]
        pairs = [
            (output, grad)
            for output, grad in zip(composed(*own), grads, strict=True)
            if output.requires_grad and grad is not None
        ]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [one for one, want in zip(own, needed, strict=True) if want],
            [grad for _, grad in pairs],
            create_graph=torch.is_grad_enabled(),
        )
    )
    return tuple(next(found) if want else None for want in needed)


def differentiable(
    name: str,
    composed: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    kept: int = 0,
) -> Callable[..., Any]:
    """Register the formula of an operator and return the function that calls the operator.

    The registration is what compilers read. Outside of them its Python takes longer than the
    operator on a small layer: there an ``autograd.Function`` of the same formula does, or nothing
    where no gradient is wanted.

    Args:
        name: Of the operator.
        composed: The same out of PyTorch's operations, for the transforms.
        backward: Its formula, differentiable if :func:`is_differentiated`.
        setup_context: Keeps what the formula needs.
        kept: How many of the last outputs are for the formula alone. Where a gradient is wanted
            they are not returned: autograd would fill gradients of them with zeros.
    """
    operator = getattr(torch.ops.ltdd_ext, name).default
    torch.library.register_autograd(operator, backward, setup_context=setup_context)

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            setup_context(ctx, inputs, output)
            return output[:-kept] if kept else output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def call(*inputs: Any) -> Any:
        if _has_transforms() or forward_ad._current_level >= 0:  # a call of its own would show
            return composed(*inputs)
        if torch.compiler.is_compiling():
            return operator(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Formula.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    return call


def last_derivative(name: str, of: str) -> Callable[..., Any]:
    """Return the function that calls a backward operator, and make its own gradient an error.

    A formula that :func:`is_differentiated` does not call it.

    Args:
        name: Of the backward operator.
        of: The operator that it is a derivative of.
    """
    operator = getattr(torch.ops.ltdd_ext, name).default

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{name}: expected to be the last derivative, got a gradient through it; use "
            f"ltdd_ext.{of} and torch.autograd.grad(..., "
            "create_graph=True)"
        )

    def call(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    torch.library.register_autograd(operator, refuse)
    return call
