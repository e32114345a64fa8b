"""Numbers that a stage may go on with: anything else stops it, and the message names the place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ltdd.errors import UserError

REMEDY = "lower the learning rate or use --precision fp32"


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity; integers never do."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def check_all_finite(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold NaN or infinity.

    Raises:
        UserError: names the place and the first such tensor.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise UserError(
                f"{where}: expected finite values in {name!r}, got NaN or infinity; {REMEDY}"
            )


def check_each(values: Tensor, stage: str, named: Sequence[tuple[str, int]]) -> None:
    """Refuse numbers that are NaN or infinite.

    Args:
        values: (n,), on the CPU: fetched together, so that a GPU is waited for once.
        stage: named in the message.
        named: what each is, and its step.

    Raises:
        UserError: as `check_finite`, of the first of them.
    """
    for number in torch.nonzero(~values.isfinite()).flatten().tolist():
        what, step = named[number]
        check_finite(values[number], stage, step, what)


def check_finite(value: Tensor, stage: str, step: int, what: str) -> float:
    """Return a scalar loss as a float.

    Raises:
        UserError: it is NaN or infinite; the message names the stage, the step and the tensor.
    """
    number = float(value)
    if not math.isfinite(number):
        raise UserError(f"{stage}: expected a finite {what} at step {step}, got {number}; {REMEDY}")
    return number
