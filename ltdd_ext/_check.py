"""Argument checks of every operator: one place, before a backend is chosen.

Each problem is one sentence, ``<op>: expected <argument> <property>, got <value>``, as a TypeError
for a wrong type or dtype and as a ValueError for anything else, the same on CPU and CUDA.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import _library

ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def bad_value(op: str, argument: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: expected {argument} {wanted}, got {got}")


def bad_type(op: str, argument: str, wanted: str, got: object) -> NoReturn:
    raise TypeError(f"{op}: expected {argument} {wanted}, got {got}")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def tensor(op: str, argument: str, value: object) -> None:
    """Refuse what is not a strided tensor on a device with kernels."""
    if not isinstance(value, Tensor):
        bad_type(op, argument, "a torch.Tensor", type(value).__name__)
    if value.layout != torch.strided:
        bad_type(op, argument, "a strided tensor", value.layout)
    if value.is_cpu:
        return
    if value.device.type == "cuda":
        if _library.cuda_problem is not None:
            bad_value(op, argument, "on a device with compiled kernels", _library.cuda_problem)
    elif value.device.type != "meta":
        bad_value(op, argument, "on cpu or cuda", value.device)


def activation(op: str, argument: str, value: Tensor) -> None:
    """Refuse what is not (N, C, H, W) or (N, C, S) in a supported dtype."""
    tensor(op, argument, value)
    if value.dtype not in ACTIVATION_DTYPES:
        bad_type(op, argument, "of dtype float32, bfloat16, float16 or float64", value.dtype)
    if value.dim() not in (3, 4):
        bad_value(op, argument, "of shape (N, C, H, W) or (N, C, S)", _shape(value))


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype an activation is computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_in(op: str, argument: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if value.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        bad_type(op, argument, f"of dtype {names}", str(value.dtype).removeprefix("torch."))


def shape(op: str, argument: str, value: Tensor, wanted: tuple[int, ...]) -> None:
    if value.shape != wanted:
        bad_value(op, argument, f"of shape {wanted}", _shape(value))


def same_device(op: str, argument: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        bad_value(op, argument, f"on {device}", value.device)


def fits(
    op: str,
    argument: str,
    value: Tensor,
    dtypes: Sequence[torch.dtype],
    wanted: tuple[int, ...],
    device: torch.device,
    index: int | None = None,
) -> None:
    """Refuse what is not a strided tensor of one of the dtypes, the shape and the device.

    With an index the argument is that entry of a list.
    """
    if (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dtype in dtypes
        and value.shape == wanted
        and value.device == device
    ):
        return  # without what is below: small layers would feel it
    if index is not None:
        argument = f"{argument}[{index}]"
    tensor(op, argument, value)
    dtype_in(op, argument, value, dtypes)
    shape(op, argument, value, wanted)
    same_device(op, argument, value, device)


def whole(op: str, argument: str, value: Any, least: int) -> None:
    """Refuse what is not an integer of at least ``least``."""
    if type(value) is int and value >= least:
        return  # as nearly always
    if not _is_scalar(value, int, "__index__"):
        bad_type(op, argument, "a whole number", repr(value))
    if value < least:
        bad_value(op, argument, f">= {least}", value)


def number(op: str, argument: str, value: Any) -> None:
    """Refuse what is not a finite real number."""
    if type(value) is float and -math.inf < value < math.inf:
        return  # as nearly always
    if not _is_scalar(value, (int, float), "__float__"):
        bad_type(op, argument, "a number", repr(value))
    if not -math.inf < value < math.inf:
        bad_value(op, argument, "finite", value)


def _is_scalar(value: Any, plain: type | tuple[type, ...], method: str) -> bool:
    """Tell numbers, those of NumPy and of compilers too, from truth values, arrays and tensors.

    A tensor would have to be read, which waits for its device, and would lose its gradient.
    """
    if isinstance(value, bool | Tensor):
        return False
    if isinstance(value, plain):  # compilers cannot ask their symbols what is asked below
        return True
    return hasattr(value, method) and getattr(value, "shape", ()) == ()


def sequence(op: str, argument: str, value: object) -> None:
    """Refuse what is not a list or the like; the rows of a tensor would pass for one."""
    if isinstance(value, Tensor | str) or not hasattr(value, "__len__"):
        bad_type(op, argument, "a sequence with one entry per layer", type(value).__name__)


def length(op: str, argument: str, value: Sequence[object], wanted: int, per: str) -> None:
    if type(value) is list and len(value) == wanted:
        return  # as nearly always
    sequence(op, argument, value)
    if len(value) != wanted:
        bad_value(op, argument, f"to hold {wanted} entries, one per {per}", len(value))


def labels(op: str, value: Tensor, rows: int, device: torch.device) -> None:
    """Refuse labels of another dtype, length or device; their range is :func:`label_range`."""
    fits(op, "labels", value, (torch.int64,), (rows,), device)


# Labels on a GPU that were in range: how often they had been changed, and the number of classes.
_in_range: MutableMapping[Tensor, tuple[int, int]] = WeakIdKeyDictionary()


def label_range(op: str, value: Tensor, num_classes: int) -> None:
    """Refuse labels outside [0, num_classes), as the CPU kernels do by themselves.

    Reading labels waits for the device, so a tensor is read once, and again after it was changed in
    place. A compiled graph or a CUDA graph under capture cannot wait at all: there, and after
    changes that torch does not count, the kernels skip such a label or answer with NaN.
    """
    if torch.compiler.is_compiling() or value.device.type == "meta" or value.numel() == 0:
        return
    counted = value.is_cuda and not value.is_inference()
    state = (value._version, num_classes) if counted else None
    if state is not None and _in_range.get(value) == state:
        return
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    smallest, largest = torch.aminmax(value.cpu())  # one wait, whatever is asked of them
    low, high = smallest.item(), largest.item()
    if low < 0 or high >= num_classes:
        bad_value(op, "labels", f"in [0, {num_classes})", low if low < 0 else high)
    if state is not None:
        _in_range[value] = state


def module(op: str, argument: str, value: object) -> None:
    """Refuse what is no layer or network."""
    if not isinstance(value, torch.nn.Module):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        bad_type(op, argument, "an nn.Module", got)
