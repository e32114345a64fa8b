"""3x3 convolution of channels_last images on a CPU, for small networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _check, _composed

_OP = "conv3x3"


def check_arguments(op: str, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse images or parameters that do not fit."""
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        _check.tensor(op, name, value)
        if value.is_cuda:
            _check.bad_value(op, name, "on cpu", value.device)
    if x.dim() != 4:
        _check.bad_value(op, "x", "of shape (N, C, H, W)", tuple(x.shape))
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        _check.bad_value(op, "weight", f"of shape (O, {x.shape[1]}, 3, 3)", tuple(weight.shape))
    _check.shape(op, "bias", bias, (weight.shape[0],))
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        dtypes = (torch.float32, torch.bfloat16) if name == "x" else (torch.float32,)
        _check.dtype_in(op, name, value, dtypes)
        _check.same_device(op, name, value, x.device)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with 3x3 taps, stride 1 and padding 1.

    ``y[n,o,i,j] = bias[o] + sum_{c,a,b} weight[o,c,a,b] x[n,c,i+a-1,j+b-1]``, forward and backward.
    Of bfloat16, where the processor has tiles (AMX), they are products of matrices, summed in
    float32; of float32 too with ``LTDD_CPU_ISA=amx`` in the environment, then three products, of
    the upper and lower halves of both factors. Elsewhere they are computed on tiles of 4x4 outputs
    as ``A' ((G w G') (B' d B)) A`` (Winograd's F(4x4, 3x3), arXiv:1509.09308, section 4) with a
    quarter of the multiplications; directly where input or output has up to 8 channels.

    Args:
        x: Images (N, C, H, W) on the CPU, float32 or bfloat16; other layouts than channels_last are
            copied.
        weight: Taps (O, C, 3, 3), float32.
        bias: (O,), float32.

    Returns:
        Images (N, O, H, W), of the dtype of x, channels_last. Gradients of weight and bias are
        float32.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a shape does not fit, or an argument is not on the CPU.

    Note:
        Differentiable in all arguments, any number of times and in forward mode: gradients of any
        order by the same kernels, forward mode and the transforms of ``torch.func`` by PyTorch's
        convolution. Transforms and halves cost about a digit: errors are around 1e-5 of the largest
        output, ten times those of the direct sum. Of bfloat16 images, taps may be rounded to
        bfloat16 (with AMX they are), sums are float32. Deterministic for any number of threads.
        :func:`ltdd_ext.nn.convolve` says where it pays.

    Example:
        >>> import torch, ltdd_ext
        >>> x = torch.ones(1, 2, 4, 4)
        >>> y = ltdd_ext.conv3x3(x, torch.ones(5, 2, 3, 3), torch.zeros(5))
        >>> y.shape, round(float(y[0, 0, 0, 0]), 3)
        (torch.Size([1, 5, 4, 4]), 8.0)
    """
    check_arguments(_OP, x, weight, bias)
    y: Tensor = _call(x, weight, bias)
    return y


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_backward(grad_y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    shape = (grad_y.shape[1], x.shape[1], 3, 3)
    taps = torch.empty(
        shape, dtype=torch.float32, device=x.device, memory_format=torch.channels_last
    )
    return taps, taps.new_empty(shape[0])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    dx = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        dx = _from_the_other_side(grad_y, weight)
    if any(ctx.needs_input_grad[1:]):  # not where a frozen network is asked for its input's
        grad_weight, grad_bias = _call_backward(grad_y, x)
    return dx, grad_weight, grad_bias


def _from_the_other_side(grad_y: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient by x: the same sum with mirrored taps."""
    mirrored = weight.flip(2, 3).transpose(0, 1)
    dx: Tensor = _call(grad_y, mirrored, weight.new_zeros(weight.shape[1]))
    return dx


def _setup_context_backward(
    ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]
) -> None:
    ctx.save_for_backward(*inputs)


def _backward_backward(
    ctx: Any, grad_weight: Tensor, grad_bias: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Differentiate the gradient of the taps, which is linear in grad_y and in x."""
    grad_y, x = ctx.saved_tensors
    to_grad_y = to_x = None
    if ctx.needs_input_grad[0]:
        to_grad_y = _call(x, grad_weight, grad_bias)
    if ctx.needs_input_grad[1]:
        to_x = _from_the_other_side(grad_y, grad_weight)
    return to_grad_y, to_x


torch.library.register_fake("ltdd_ext::conv3x3", _fake)
torch.library.register_fake("ltdd_ext::conv3x3_backward", _fake_backward)
_call = _autograd.differentiable(_OP, _composed.conv3x3, _backward, _setup_context)
_call_backward = _autograd.differentiable(
    "conv3x3_backward", _composed.conv3x3_backward, _backward_backward, _setup_context_backward
)
