"""Calls of every differentiable operator, for the tests of their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from ops.cases import activation, alignment
from torch import Tensor

import ltdd_ext
from ltdd_ext import reference

OPS = torch.ops.ltdd_ext


@dataclass(frozen=True)
class Case:
    """A call that is differentiated, in float64 unless its operator knows float32 only."""

    call: Callable[..., Sequence[Tensor]]
    reference: Callable[..., Sequence[Tensor]]
    inputs: tuple[Tensor, ...]

    @property
    def tolerance(self) -> float:
        return 2e-4 if self.inputs[0].dtype == torch.float32 else 1e-10

    def leaves(self) -> list[Tensor]:
        return [one.detach().clone().requires_grad_() for one in self.inputs]


Build = Callable[[object], Callable[..., Sequence[Tensor]]]


def case(build: Build, *inputs: Tensor) -> Case:
    return Case(build(ltdd_ext), build(reference), inputs)


def smooth_activation(
    shape: tuple[int, ...], layout: str, before_relu: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the first of some activations for which no element is near the kink of the ReLU."""
    for seed in range(200):
        x = activation(shape, torch.float64, layout, seed=seed)
        if float(before_relu(x).abs().min()) > 3e-3:
            return x
    raise AssertionError("no such activation")


def row_moments_case(layout: str, shape: tuple[int, ...]) -> Case:
    return case(lambda ops: ops.row_moments, activation(shape, torch.float64, layout))


def bn_act_moments_case(layout: str, act: str, pool: str, residual: str) -> Case:
    k, h = torch.tensor([[0.7, -1.2], [0.3, -0.2]], dtype=torch.float64)
    shape = (2, 2, 5, 3)
    other = activation(shape, torch.float64, "rows", seed=400)

    def before(x: Tensor) -> Tensor:
        added = {"none": 0.0, "other": other, "itself": x}[residual]
        return k.view(2, 1, 1) * x + h.view(2, 1, 1) + added

    def build(ops):
        def call(x, *rest):
            added = {"none": None, "other": rest[0] if rest else None, "itself": x}[residual]
            return ops.bn_act_moments(x, k, h, added, act, pool)

        return call

    x = smooth_activation(shape, layout, before)
    return case(build, x, *([other] if residual == "other" else []))


def norm_act_case(layout: str, over: str, act: str, pool: str, shape: tuple[int, ...]) -> Case:
    generator = torch.Generator().manual_seed(7)
    weight, bias = (torch.randn(shape[1], generator=generator).double() for _ in range(2))
    x = smooth_activation(
        shape, layout, lambda x: reference.norm_act(x, weight, bias, over, 1e-2, "none")[0]
    )
    # The moments are constants, which the checks below have no word for.
    return case(
        lambda ops: lambda *given: ops.norm_act(*given, over, 1e-2, act, pool)[:1], x, weight, bias
    )


def align_loss_case(class_weight: float, weights: list[float] | None) -> Case:
    one = alignment(rows=5, channels=(2, 3), num_classes=4, dtype=torch.float64)

    def build(ops):
        def call(*rows):
            rest = (*one.arguments()[2:8], weights, class_weight)
            return (ops.align_loss(rows[:2], rows[2:], *rest),)

        return call

    return case(build, *one.means, *one.m2s)


def conv3x3_case(layout: str, shape: tuple[int, ...], out: int) -> Case:
    generator = torch.Generator().manual_seed(3)
    taps = torch.randn(out, shape[1], 3, 3, generator=generator) / (3 * shape[1] ** 0.5)
    bias = torch.randn(out, generator=generator)

    def build(ops):
        if ops is reference:  # of float64, which the operator refuses
            return lambda *given: (torch.nn.functional.conv2d(*given, padding=1),)
        return lambda *given: (ops.conv3x3(*given),)

    return case(build, activation(shape, layout=layout), taps, bias)


LAYOUTS = ["rows", "pixels", "sliced"]
DOUBLE_CASES: dict[str, Callable[[], Case]] = {
    **{
        f"row_moments-{layout}-{shape}": lambda layout=layout, shape=shape: row_moments_case(
            layout, shape
        )
        for layout in LAYOUTS
        for shape in [(2, 3, 3, 5), (1, 1, 1, 1), (2, 3, 7)]
    },
    **{
        f"bn_act_moments-{layout}-{act}-{pool}-{residual}": (
            lambda layout=layout, act=act, pool=pool, residual=residual: bn_act_moments_case(
                layout, act, pool, residual
            )
        )
        for layout in LAYOUTS[:2]
        for act in ["none", "relu"]
        for pool in ["none", "avg2", "max3"]
        for residual in ["none", "other", "itself"]
    },
    **{
        f"norm_act-{layout}-{over}-{act}-{pool}-{shape}": (
            lambda layout=layout, over=over, act=act, pool=pool, shape=shape: norm_act_case(
                layout, over, act, pool, shape
            )
        )
        for layout in LAYOUTS[:2]
        for over in ["batch", "image"]
        for act in ["none", "relu"]
        for pool, shape in [("none", (2, 2, 3, 5)), ("avg2", (3, 2, 5, 3)), ("none", (3, 2, 5))]
    },
    **{
        f"align_loss-{class_weight}-{weights}": (
            lambda class_weight=class_weight, weights=weights: align_loss_case(
                class_weight, weights
            )
        )
        for class_weight in [0.0, 0.7]
        for weights in [None, [2.0, 0.5]]
    },
}
SINGLE_CASES: dict[str, Callable[[], Case]] = {
    f"conv3x3-{layout}-{shape}-{out}": lambda layout=layout, shape=shape, out=out: conv3x3_case(
        layout, shape, out
    )
    for layout in LAYOUTS
    for shape, out in [
        ((2, 3, 5, 7), 4),
        ((1, 33, 9, 6), 12),
        ((3, 12, 1, 1), 1),
        ((2, 40, 8, 8), 40),
    ]
}
# One of each operator, for what does not depend on switches.
EACH: dict[str, Callable[[], Case]] = {
    "row_moments": lambda: row_moments_case("pixels", (2, 3, 3, 5)),
    "bn_act_moments": lambda: bn_act_moments_case("rows", "relu", "avg2", "itself"),
    "norm_act-batch": lambda: norm_act_case("pixels", "batch", "relu", "avg2", (3, 2, 5, 3)),
    "norm_act-image": lambda: norm_act_case("rows", "image", "relu", "none", (2, 2, 3, 5)),
    "align_loss": lambda: align_loss_case(0.7, None),
    "conv3x3": lambda: conv3x3_case("pixels", (2, 9, 5, 6), 10),
}
