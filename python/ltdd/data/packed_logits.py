"""Soft labels in few bytes.

``none``  values as they are.
``fp16``  two bytes a value.
``topk``  the k largest logits of a row in fp16, their classes, and one constant for all others:
          their mean. Of all constants it has the smallest squared error, and it keeps the mean
          over all classes, so matching raw logits still means what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ltdd.config import RelabelingConfig
from ltdd.errors import UserError

Packing = Literal["none", "fp16", "topk"]
_ROWS = 1 << 16  # packed at once, which bounds the memory of the sort
_SUFFIXES = {"values": "", "classes": "_classes", "rest": "_rest", "shift": "_shift"}


@dataclass(frozen=True)
class PackedLogits:
    """Logits (..., K) as they are stored.

    Args:
        values: float32 or float16 (..., K), or float16 (..., k) with ``classes`` and ``rest``.
        num_classes: K.
        classes: uint8 or int16 (..., k), the classes that ``values`` belong to.
        rest: float16 (...), the logit of all other classes.
        shift: float32 (K,), to be subtracted from every row when it is read.

    Raises:
        UserError: types and shapes that do not belong together, or a class out of range.

    Example:
        >>> logits = torch.tensor([[4.0, 1.0, 0.0, -1.0]])
        >>> packed = pack(logits, RelabelingConfig(packing="topk", packing_top=1))
        >>> packed[:].tolist(), packed.nbytes
        ([[4.0, 0.0, 0.0, 0.0]], 5)
    """

    values: Tensor
    num_classes: int
    classes: Tensor | None = None
    rest: Tensor | None = None
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        described = ", ".join(
            f"{name} {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
            for name, t in self._parts().items()
        )
        if self.classes is None and self.rest is None:
            allowed = (torch.float32, torch.float16)
            good = self.values.dtype in allowed and self.values.shape[-1:] == (self.num_classes,)
        else:
            good = (
                self.classes is not None
                and self.rest is not None
                and self.values.dtype == self.rest.dtype == torch.float16
                and self.classes.dtype == _class_type(self.num_classes)
                and self.values.shape == self.classes.shape
                and self.values.shape[:-1] == self.rest.shape
                and 0 < self.values.shape[-1] < self.num_classes
            )
        if self.shift is not None:
            shape = (self.num_classes,)
            good = good and self.shift.dtype == torch.float32 and self.shift.shape == shape
        if not good:
            raise UserError(
                f"labels: expected logits float32 or float16 (..., {self.num_classes}), or the "
                f"parts of packed ones, got {described}"
            )
        if self.classes is not None and self.classes.numel():
            low, high = int(self.classes.min()), int(self.classes.max())
            if low < 0 or high >= self.num_classes:
                raise UserError(
                    f"labels: expected packed classes from 0 to {self.num_classes - 1}, "
                    f"got {low} to {high}"
                )

    @property
    def packing(self) -> Packing:
        """How they are stored."""
        if self.classes is not None:
            return "topk"
        return "fp16" if self.values.dtype == torch.float16 else "none"

    @property
    def shape(self) -> torch.Size:
        """Shape of the logits, (..., K)."""
        return torch.Size((*self.values.shape[:-1], self.num_classes))

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self._parts().values())

    def __getitem__(self, index: Any) -> Tensor:
        """Return float32 logits; ``index`` selects among all dimensions but the last."""
        full = self.values[index].float()
        if self.classes is not None and self.rest is not None:
            rest = self.rest[index].float().unsqueeze(-1)
            others = rest.expand(*full.shape[:-1], self.num_classes).contiguous()
            full = others.scatter_(-1, self.classes[index].long(), full)
        return full if self.shift is None else full - self.shift

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the parts under the names that they have in a file."""
        return {name + _SUFFIXES[part]: tensor for part, tensor in self._parts().items()}

    @classmethod
    def from_tensors(
        cls, name: str, tensors: Mapping[str, Tensor], num_classes: int
    ) -> PackedLogits:
        """Find the parts that `tensors` named.

        Raises:
            UserError: they are missing or do not belong together.
        """
        if name not in tensors:
            raise UserError(f"labels: expected a tensor {name!r}, got none")
        parts = {part: tensors.get(name + suffix) for part, suffix in _SUFFIXES.items()}
        return cls(tensors[name], num_classes, parts["classes"], parts["rest"], parts["shift"])

    def _parts(self) -> dict[str, Tensor]:
        parts = {name: getattr(self, name) for name in _SUFFIXES}
        return {name: part for name, part in parts.items() if part is not None}


def pack(logits: Tensor, settings: RelabelingConfig) -> PackedLogits:
    """Pack logits as a configuration asks for.

    Args:
        logits: float32 or float16 (..., K), finite.
        settings: ``packing`` and ``packing_top``.

    Returns:
        The same bytes for the same logits, whatever the machine.

    Raises:
        UserError: a logit is too large for float16.
    """
    num_classes = logits.shape[-1]
    if settings.packing == "none":
        return PackedLogits(logits, num_classes)
    check_packing(settings, num_classes)
    if settings.packing == "fp16":
        return PackedLogits(_half(logits), num_classes)
    top, shape = settings.packing_top, logits.shape[:-1]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in logits.reshape(-1, num_classes).split(_ROWS):
        # A stable sort decides ties by class, so that equal logits give equal bytes.
        ordered, classes = rows.double().sort(dim=-1, descending=True, stable=True)
        best = classes[:, :top].to(_class_type(num_classes))
        parts.append((_half(ordered[:, :top]), best, _half(ordered[:, top:].mean(dim=-1))))
    values, best, rest = (torch.cat(part) for part in zip(*parts, strict=True))
    return PackedLogits(
        values.view(*shape, top), num_classes, best.view(*shape, top), rest.view(shape)
    )


def packing_settings(settings: RelabelingConfig) -> list[str | int]:
    """Return what decides how labels are packed, and with it what students learn from."""
    top = [settings.packing_top] if settings.packing == "topk" else []
    return [settings.packing, *top]


def check_packing(settings: RelabelingConfig, num_classes: int) -> None:
    """Check that a configuration fits the number of classes.

    Raises:
        UserError: ``topk`` would keep all logits.
    """
    if settings.packing == "topk" and settings.packing_top >= num_classes:
        raise UserError(
            f"relabeling.packing_top: expected fewer than the {num_classes} classes, got "
            f"{settings.packing_top}; set a smaller one or use --relabeling.packing fp16"
        )


def packed_bytes(settings: RelabelingConfig, rows: int, num_classes: int, value_bytes: int) -> int:
    """Return what the packed logits of some rows need.

    Args:
        settings: ``packing`` and ``packing_top``.
        rows: logit vectors.
        num_classes: K.
        value_bytes: of one value before it is packed.
    """
    if settings.packing == "none":
        return rows * num_classes * value_bytes
    if settings.packing == "fp16":
        return rows * num_classes * 2
    return rows * (settings.packing_top * (2 + _class_type(num_classes).itemsize) + 2)


def _class_type(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int16


def _half(values: Tensor) -> Tensor:
    half = values.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise UserError(
            f"labels: expected logits within float16's range, got {float(values.abs().max()):g}; "
            "use --relabeling.packing none"
        )
    return half
