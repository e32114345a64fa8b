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


def mean_of_losses(losses: Sequence[Tensor], stage: str, first: int) -> float:
    """Return the mean of the losses of an epoch's steps.

    They are looked at together, so that a GPU does not wait for the host in every step.

    Args:
        losses: scalars, at least one.
        stage: named in the message.
        first: number of the first step.

    Raises:
        UserError: one is NaN or infinite; the message names the stage and the first such step.
    """
    device = losses[-1].device  # those of a checkpoint are on the CPU
    values = torch.stack([loss.to(device) for loss in losses]).cpu()
    for step in torch.nonzero(~values.isfinite()).flatten().tolist():
        check_finite(values[step], stage, first + step, "loss")
    return float(values.mean())


def check_finite(value: Tensor, stage: str, step: int, what: str) -> float:
    """Return a scalar loss as a float.

    Raises:
        UserError: it is NaN or infinite; the message names the stage, the step and the tensor.
    """
    number = float(value)
    if not math.isfinite(number):
        raise UserError(f"{stage}: expected a finite {what} at step {step}, got {number}; {REMEDY}")
    return number
