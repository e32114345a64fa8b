"""Shapes, layouts and tolerances that the operator tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = [
    (2, 3, 8, 8),
    (5, 7, 4, 4),
    (3, 64, 7, 7),
    (1, 1, 1, 1),
    (4, 33, 1, 5),
    (2, 40, 33, 41),
    (1, 130, 2, 2),
    (3, 5, 17),
]
EMPTY_SHAPES = [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 0, 0)]
LAYOUTS = ["rows", "pixels", "expanded", "sliced", "transposed", "shifted"]
ROUNDING = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = list(ROUNDING)


def assert_threads_change_no_bit(results: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """Compute with 1, 2, 4 and 1 threads, compare bit by bit and return the results of one."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 1):
            torch.set_num_threads(threads)
            found.append(results())
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    return found[0]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the values of x in other strides."""
    if layout == "pixels":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "sliced":
        return torch.cat([x, x], dim=1)[:, : x.shape[1]]
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "shifted":  # contiguous, but off the 16-byte boundaries of a new tensor
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x.contiguous()


def activation(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "rows",
    device: str = "cpu",
    shift: float = 0.5,
    seed: int = 0,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + shift
    return laid_out(x.to(dtype).to(device), layout)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest error in units of the largest wanted value."""
    if wanted.numel() == 0:
        return 0.0
    scale = wanted.double().abs().max().clamp(min=1e-30)
    return float((got.double().cpu() - wanted.double().cpu()).abs().max() / scale.cpu())


@dataclass(frozen=True)
class Alignment:
    """A random alignment problem of several layers."""

    means: list[Tensor]
    m2s: list[Tensor]
    sizes: list[int]
    labels: Tensor
    global_means: list[Tensor]
    global_vars: list[Tensor]
    class_means: list[Tensor]
    class_vars: list[Tensor]
    weights: list[float]

    def arguments(self) -> tuple[object, ...]:
        return (
            self.means,
            self.m2s,
            self.sizes,
            self.labels,
            self.global_means,
            self.global_vars,
            self.class_means,
            self.class_vars,
            self.weights,
        )


def alignment(
    rows: int = 7,
    channels: tuple[int, ...] = (3, 70),
    num_classes: int = 4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    requires_grad: bool = False,
) -> Alignment:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def leaf(value: Tensor) -> Tensor:
        return value.to(dtype).to(device).requires_grad_(requires_grad)

    sizes = [4 * (layer + 1) for layer in range(len(channels))]
    return Alignment(
        means=[leaf(normal(rows, c)) for c in channels],
        m2s=[
            leaf(normal(rows, c).square() * size) for c, size in zip(channels, sizes, strict=True)
        ],
        sizes=sizes,
        labels=torch.randint(num_classes, (rows,), generator=generator).to(device),
        global_means=[normal(c).to(dtype).to(device) for c in channels],
        global_vars=[normal(c).square().to(dtype).to(device) for c in channels],
        class_means=[normal(num_classes, c).to(dtype).to(device) for c in channels],
        class_vars=[normal(num_classes, c).square().to(dtype).to(device) for c in channels],
        weights=[1.0 + 9.0 * (layer == 0) for layer in range(len(channels))],
    )


def coefficients(channels: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    pair = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    return tuple(part.to(row_dtype).to(device) for part in pair)
