"""Frozen batch norm, activation and pooling together with the moments of their input."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _autograd, _check, _composed
from .row_moments import empty_rows, is_pixels, is_rows, output_like

_OP = "bn_act_moments"

Act = Literal["relu", "none"]
Pool = Literal["none", "avg2"]
FrozenPool = Literal["none", "avg2", "max3"]

ACTS: dict[str, int] = {"none": 0, "relu": 1}
POOLS: dict[str, int] = {"none": 1, "avg2": 2}
FROZEN_POOLS: dict[str, int] = POOLS | {"max3": 3}
_WIDEST_POOLED = 8192
_LARGEST_FLAT = 256  # pixels of a plane that a GPU reads together with the next ones


def check_fused(op: str, x: Tensor, act: str, pool: str, pools: dict[str, int] = POOLS) -> None:
    """Refuse an activation or switches that no fused operator takes."""
    _check.activation(op, "x", x)
    if not isinstance(act, str) or act not in ACTS:
        _check.bad_value(op, "act", f"one of {tuple(ACTS)}", repr(act))
    if not isinstance(pool, str) or pool not in pools:
        _check.bad_value(op, "pool", f"one of {tuple(pools)}", repr(pool))
    if pool != "none" and x.dim() != 4:
        _check.bad_value(op, "x", "of shape (N, C, H, W) with pool", tuple(x.shape))
    if pool == "max3" and 0 in x.shape[1:]:
        _check.bad_value(op, "x", "with channels and pixels to pool", tuple(x.shape))
    if pool == "avg2" and (min(x.shape[2:]) < 2 or x.shape[3] > _WIDEST_POOLED):
        wanted = f"of height >= 2 and width in [2, {_WIDEST_POOLED}] with pool"
        _check.bad_value(op, "x", wanted, tuple(x.shape))


def check_channel_vector(op: str, name: str, value: Tensor, x: Tensor) -> None:
    """Refuse what is not one number a channel of ``x``, in the dtype it is computed in."""
    _check.fits(op, name, value, (_check.acc_dtype(x.dtype),), (x.shape[1],), x.device)


def check_arguments(
    op: str, x: Tensor, k: Tensor, h: Tensor, residual: Tensor | None, act: str, pool: str
) -> None:
    """Refuse coefficients, residual or switches that do not fit the activation."""
    check_fused(op, x, act, pool, FROZEN_POOLS)
    check_channel_vector(op, "k", k, x)
    check_channel_vector(op, "h", h, x)
    if residual is not None:
        _check.fits(op, "residual", residual, (x.dtype,), tuple(x.shape), x.device)


def bn_act_moments(
    x: Tensor,
    k: Tensor,
    h: Tensor,
    residual: Tensor | None = None,
    act: Act = "relu",
    pool: FrozenPool = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a frozen batch norm and what follows it, and measure its input, in one pass.

    ``y = pool(act(k * x + h + residual))`` per channel, with ``k = w / sqrt(running_var + eps)``
    and ``h = b - running_mean * k``; ``mean`` and ``m2`` are the row moments of ``x``, the tensor
    whose statistics the batch norm would have taken.

    Args:
        x: Activation (N, C, H, W) or (N, C, S), float32, bfloat16, float16 or float64, contiguous
            or channels_last.
        k: Scale per channel (C,), float32 (float64 for float64 ``x``).
        h: Offset per channel (C,), same dtype.
        residual: Added before the activation; shape and dtype of ``x``.
        act: ``"relu"`` or ``"none"``.
        pool: ``"avg2"`` averages 2x2 blocks and drops odd edges, as ``AvgPool2d(2)`` does;
            ``"max3"`` takes the maximum of 3x3 blocks as ``MaxPool2d(3, 2, 1)`` does, in the same
            pass on a GPU behind a ReLU without residual, channels_last, channels a multiple of 4;
            ``"none"`` keeps every element.

    Returns:
        ``y`` in the dtype and layout of ``x``, ``mean`` and ``m2`` (N, C) as
        :func:`ltdd_ext.row_moments` returns them.

    Raises:
        TypeError: A dtype is another.
        ValueError: A shape, device or switch does not fit.

    Note:
        Differentiable in ``x`` and ``residual``, any number of times and in forward mode: one
        gradient by a kernel, whatever goes beyond and the transforms of ``torch.func`` by plain
        PyTorch operations. ``k`` and ``h`` are constants. The backward pass finds again from ``x``
        and ``residual`` where the ReLU passed; behind a residual a GPU keeps that, a bit each, and
        where it takes the maximum, a byte of position for each.
        Arithmetic is float32 (float64 for float64), so ``y`` differs from separate operators in
        bfloat16 by their intermediate rounding. Deterministic for any number of threads.

    Example:
        >>> import torch, ltdd_ext
        >>> x = torch.randn(2, 3, 8, 8)
        >>> y, mean, m2 = ltdd_ext.bn_act_moments(x, torch.ones(3), torch.zeros(3), pool="avg2")
        >>> y.shape, mean.shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 3]))
    """
    check_arguments(_OP, x, k, h, residual, act, pool)
    apart = pool == "max3" and not (residual is None and act == "relu" and _takes_max_pool(x))
    code = POOLS["none"] if apart else FROZEN_POOLS[pool]
    keep = (residual is not None or pool == "max3") and _wants_gradient(x, residual)
    y, mean, m2 = _call(x, k, h, residual, ACTS[act], code, keep)[:3]
    return F.max_pool2d(y, 3, 2, 1) if apart else y, mean, m2


def _takes_max_pool(x: Tensor) -> bool:
    """Tell whether there are kernels for it, as ``takes_max_pool`` of ``csrc/cuda/ops.h`` does."""
    return (
        x.is_cuda
        and x.dtype != torch.float64
        and x.numel() > 0
        and x.shape[1] % 4 == 0
        and not is_rows(x)
        and is_pixels(x)
    )


def _wants_gradient(x: Tensor, residual: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or (residual is not None and residual.requires_grad)
    )


def bn_act_moments_shared(
    x: Tensor, k: Tensor, h: Tensor, residual: Tensor | None, act: Act
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``y`` twice, for two layers that only read it, and mean and m2.

    As :func:`bn_act_moments` without pool. On a GPU the backward pass adds the gradients of the two
    where it reads them: autograd would add them in a pass of its own. The numbers are the same.
    """
    check_arguments(_OP, x, k, h, residual, act, "none")
    inputs = (x, k, h, residual, ACTS[act])
    needed = _wants_gradient(x, residual)
    if needed and not torch.compiler.is_compiling() and not _autograd.is_transformed():
        shared: tuple[Tensor, Tensor, Tensor, Tensor] = _Shared.apply(*inputs)
        return shared
    y, mean, m2 = _call(*inputs, POOLS["none"], needed)[:3]
    return y, y, mean, m2


class _Shared(torch.autograd.Function):
    """The formula of the operator with two outputs for one tensor."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the tensor, and name it twice."""
        given = (*inputs, POOLS["none"], True)
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.ltdd_ext.bn_act_moments.default(*given)
        _setup_context(ctx, given, output)
        y, mean, m2, _ = output
        return y, y.detach(), mean, m2

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor, grad_shortcut: Tensor, grad_mean: Tensor, grad_m2: Tensor
    ) -> tuple[Any, ...]:
        """Compute the gradients by both readers' gradients."""
        if _autograd.is_differentiated():
            return _backward(ctx, grad_y + grad_shortcut, grad_mean, grad_m2)[:5]
        return _backward(ctx, grad_y, grad_mean, grad_m2, grad_shortcut=grad_shortcut)[:5]


def fused_output(x: Tensor, pool: int) -> Tensor:
    """Make the empty output that the kernels would: ``x`` after the pool, in its layout."""
    if pool == 1:
        return output_like(x)
    pixels = x.numel() > 0 and not is_rows(x) and is_pixels(x)
    order = torch.channels_last if pixels else torch.contiguous_format
    up = int(pool == FROZEN_POOLS["max3"])
    shape = (*x.shape[:2], (x.shape[2] + up) // 2, (x.shape[3] + up) // 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)


def passed_bytes(x: Tensor) -> int:
    """Return how many bytes say where the ReLU behind a residual passed.

    One for each 16 bytes of ``x`` on a GPU, where whole vectors fit, as ``bn_act_passed_bytes`` of
    ``csrc/cuda/ops.h`` says; otherwise none, and the backward pass reads the residual again.
    """
    if not x.is_cuda or x.dtype == torch.float64 or x.numel() == 0:
        return 0
    vector, plane = 16 // x.element_size(), x.shape[2:].numel()
    if not is_rows(x) and is_pixels(x):
        fits = x.shape[1] % vector == 0
    else:
        fits = plane % vector == 0 or (plane <= _LARGEST_FLAT and x.numel() % vector == 0)
    return x.numel() // vector if fits else 0


def _fake(
    x: Tensor,
    k: Tensor,
    h: Tensor,
    residual: Tensor | None,
    act: int,
    pool: int,
    keep_passed: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, kept = fused_output(x, pool), 0
    if keep_passed and pool == FROZEN_POOLS["max3"]:
        kept = y.numel()
    elif keep_passed and residual is not None and (act, pool) == (ACTS["relu"], POOLS["none"]):
        kept = passed_bytes(x)
    return y, empty_rows(x), empty_rows(x), x.new_empty(kept, dtype=torch.uint8)


def _fake_backward(
    grad_y: Tensor,
    grad_mean: Tensor,
    grad_m2: Tensor,
    x: Tensor,
    k: Tensor,
    h: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    act: int,
    pool: int,
    grad_shortcut: Tensor | None = None,
    passed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    nothing = residual is None and (passed is None or pool == FROZEN_POOLS["max3"])
    return output_like(x), x.new_empty(0) if nothing else output_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, k, h, residual, act, pool, _ = inputs
    _, mean, _, passed = output
    ctx.save_for_backward(x, k, h, residual, mean, passed)
    ctx.act, ctx.pool = act, pool


def _backward(
    ctx: Any,
    grad_y: Tensor,
    grad_mean: Tensor,
    grad_m2: Tensor,
    _: Tensor | None = None,  # of what says where the ReLU passed, where a compiler asks
    grad_shortcut: Tensor | None = None,
) -> tuple[Any, ...]:
    x, k, h, residual, mean, passed = ctx.saved_tensors
    wanted, grads = ctx.needs_input_grad, (grad_y, grad_mean, grad_m2)
    if _autograd.is_differentiated():
        needed = (wanted[0], False, False, wanted[3], False, False)  # of the operator's inputs
        inputs = (x, k, h, residual, ctx.act, ctx.pool)
        return (*_autograd.pull_back(_composed.bn_act_moments, inputs, needed, grads), None)
    beside = (None, passed) if passed.numel() > 0 else (residual, None)
    rest = (x, k, h, beside[0], mean, ctx.act, ctx.pool, grad_shortcut, beside[1])
    dx, dresidual = _call_backward(*grads, *rest)
    return dx, None, None, None if residual is None else dresidual, None, None, None


def _plain(*inputs: Any) -> tuple[Tensor, ...]:
    """Compute the operator out of PyTorch's operations, which keep what they need."""
    return _composed.bn_act_moments(*inputs[:-1])


torch.library.register_fake("ltdd_ext::bn_act_moments", _fake)
torch.library.register_fake("ltdd_ext::bn_act_moments_backward", _fake_backward)
_call_backward = _autograd.last_derivative("bn_act_moments_backward", _OP)
_call = _autograd.differentiable(_OP, _plain, _backward, _setup_context, kept=1)
