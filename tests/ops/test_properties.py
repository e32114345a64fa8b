"""Random shapes, layouts, dtypes and values against float64: few by default, many if slow."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ops.cases import LAYOUTS, ROUNDING, alignment, laid_out, relative_error
from torch import Tensor

import ltdd_ext
from ltdd_ext import ClassMoments, reference

FEW, MANY = 60, 2000


def sized(examples: int, check: Callable[..., None], **strategies: object) -> Callable[..., None]:
    """Return a test of that many examples."""

    def test(**drawn: object) -> None:
        check(**drawn)

    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )(given(**strategies)(test))


@dataclass(frozen=True)
class Drawn:
    """An activation and what its elements are around."""

    x: Tensor
    layout: str


@st.composite
def activations(draw: st.DrawFn, dimensions: tuple[int, ...] = (3, 4), smallest: int = 1) -> Drawn:
    """Any small activation: spread over magnitudes, sometimes constant rows, any strides."""
    dtype = draw(st.sampled_from(list(ROUNDING)))
    spatial = draw(st.sampled_from(dimensions)) - 2
    shape = (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 40)),
        *(draw(st.integers(smallest, 40 if spatial == 1 else 12)) for _ in range(spatial)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 10.0 ** draw(st.integers(-3, 3))
    shift = draw(st.sampled_from([0.0, 1.0, 30.0])) * scale
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
    if draw(st.booleans()):
        x[:, 0] = shift
    layout = draw(st.sampled_from(LAYOUTS))
    return Drawn(laid_out(x.to(dtype), layout), layout)


def row_moments_property(drawn: Drawn) -> None:
    x = drawn.x.detach().requires_grad_()
    mean, m2 = ltdd_ext.row_moments(x)
    x64 = x.detach().double().requires_grad_()
    want_mean, want_m2 = reference.row_moments(x64)
    largest = x64.detach().abs().max().clamp(min=1e-30)
    assert float((mean - want_mean).detach().abs().max() / largest) <= 5e-7
    size = x[0, 0].numel()
    # m2 to 5e-7 of itself, or of what rounding the elements' mean to float32 can move it by.
    slack = 5e-7 * want_m2.detach() + size * (2e-7 * largest) ** 2
    assert bool(((m2 - want_m2).detach().abs() <= slack).all())
    grads = [torch.ones_like(mean), torch.full_like(m2, 0.5)]
    torch.autograd.backward([mean, m2], grads)
    torch.autograd.backward([want_mean, want_m2], [grad.double() for grad in grads])
    scale = float(x64.grad.abs().max()) + float(largest)
    error = float((x.grad.double() - x64.grad).abs().max()) / scale
    assert error <= 1e-6 + ROUNDING[x.dtype]


def bn_act_moments_property(drawn: Drawn, act: str, pool: str, with_residual: bool) -> None:
    x = drawn.x.detach().requires_grad_()
    row_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(x.numel())
    k, h = torch.randn(2, x.shape[1], generator=generator, dtype=torch.float64).to(row_dtype)
    residual = x.detach().flip(0).requires_grad_() if with_residual else None
    got = ltdd_ext.bn_act_moments(x, k, h, residual, act, pool)
    x64 = x.detach().double().requires_grad_()
    residual64 = residual.detach().double().requires_grad_() if residual is not None else None
    want = reference.bn_act_moments(x64, k.double(), h.double(), residual64, act, pool)
    scale = float(x64.detach().abs().max() * (k.abs().max() + 1) + h.abs().max())
    assume(scale < torch.finfo(x.dtype).max)  # float16 ends at 65504
    error = float((got[0].double() - want[0]).detach().abs().max()) / scale
    assert error <= 1e-6 + ROUNDING[x.dtype]
    for one, other in zip(ltdd_ext.row_moments(x.detach()), got[1:], strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-5 * scale**2)
    # Elements within rounding of the kink of the ReLU may fall on either side of it.
    before = k.double().view(-1, *[1] * (x.dim() - 2)) * x64 + h.double().view(
        -1, *[1] * (x.dim() - 2)
    )
    if residual64 is not None:
        before = before + residual64
    clear = before.detach().abs() > 1e-5 * scale
    grad = torch.ones_like(got[0])
    torch.autograd.backward([got[0]], [grad])
    torch.autograd.backward([want[0]], [grad.double()])
    gap = (x.grad.double() - x64.grad).abs() * (clear if act == "relu" else 1.0)
    assert float(gap.max()) / (float(k.abs().max()) + 1e-6) <= 1e-6 + ROUNDING[x.dtype]


def norm_act_property(drawn: Drawn, over: str, act: str, pool: str) -> None:
    x = drawn.x.detach().requires_grad_()
    assume(over == "image" or x.numel() > x.shape[1])
    row_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(x.numel())
    pair = torch.randn(2, x.shape[1], generator=generator, dtype=torch.float64).to(row_dtype)
    weight, bias = (one.clone().requires_grad_() for one in pair)
    eps = 0.1 * float(x.detach().double().square().mean()) + 1e-6
    y, mean, m2 = ltdd_ext.norm_act(x, weight, bias, over, eps, act, pool)
    exact = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
    want, want_mean, want_m2 = reference.norm_act(*exact, over, eps, act, pool)
    torch.testing.assert_close(mean, want_mean, rtol=1e-5, atol=1e-5 * eps**0.5)
    torch.testing.assert_close(m2, want_m2, rtol=1e-5, atol=1e-5 * eps * x[0, 0].numel())
    # eps is a tenth of the mean square, so the norm amplifies rounding by about three.
    tolerance = 1e-5 + 4 * ROUNDING[x.dtype]
    scale = float(want.detach().abs().max()) + 1
    assert float((y.double() - want).detach().abs().max()) <= tolerance * scale
    # Elements within rounding of the kink of the ReLU may fall on either side of it.
    whole = reference.norm_act(*exact, over, eps, "none", "none")[0].detach()
    assume(act == "none" or float(whole.abs().min()) > 1e-4 * scale)
    grad = torch.ones_like(y)
    y.backward(grad)
    want.backward(grad.double())
    unit = float(exact[1].detach().abs().max()) * eps**-0.5 + 1e-6
    numbers = torch.finfo(x.dtype)
    subnormal_step = numbers.smallest_normal * numbers.eps  # float16 gradients get so small
    gap = float((x.grad.double() - exact[0].grad).abs().max())
    assert gap <= tolerance * unit + subnormal_step / 2
    terms = scale * x.numel() / x.shape[1]
    for one, other in zip((weight, bias), exact[1:], strict=True):
        assert float((one.grad.double() - other.grad).abs().max()) <= 1e-5 * terms


def conv3x3_property(
    images: int, channels: tuple[int, int], sides: tuple[int, int], layout: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (seed % 7 - 3)
    x = torch.randn(images, channels[0], *sides, generator=generator) * scale
    x = laid_out(x, layout).detach().requires_grad_()
    weight = torch.randn(channels[1], channels[0], 3, 3, generator=generator).requires_grad_()
    bias = torch.randn(channels[1], generator=generator).requires_grad_()
    y = ltdd_ext.conv3x3(x, weight, bias)
    exact = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
    want = torch.nn.functional.conv2d(*exact, padding=1)
    grad = torch.randn(y.shape, generator=generator)
    y.backward(grad)
    want.backward(grad.double())
    pairs = [(y.detach(), want.detach())]
    pairs += [(one.grad, other.grad) for one, other in zip((x, weight, bias), exact, strict=True)]
    # Measured by the sum of magnitudes, which is what rounding errors grow with.
    wide = [one.detach().abs() for one in exact]
    reach = torch.nn.functional.conv2d(*wide, padding=1).max()
    back = torch.nn.functional.conv_transpose2d(grad.double().abs(), wide[1], padding=1).max()
    taps = grad.double().abs().sum((0, 2, 3)).max() * wide[0].max()
    sizes = (reach, back, taps, grad.double().abs().sum((0, 2, 3)).max())
    # By tiles, which have to be asked for, a factor is two halves up to 2^-17, and the product of
    # both lower ones is left out.
    tiles = os.environ.get("LTDD_CPU_ISA") == "amx"
    bound = 2 * 2**-17 + 2**-16 + 1e-6 if tiles else 1e-5
    for (got, wanted), size in zip(pairs, sizes, strict=True):
        assert float((got.double() - wanted).abs().max() / size) <= bound


def class_moments_property(images: int, classes: int, channels: int, seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 1 + seed % 50
    mean = torch.randn(images, channels, generator=generator) * 3 + seed % 7
    m2 = torch.rand(images, channels, generator=generator) * size
    labels = torch.randint(classes, (images,), generator=generator)
    whole, parts = ClassMoments.zeros(classes, channels), ClassMoments.zeros(classes, channels)
    whole.update_(mean, m2, size, labels)
    for index in torch.arange(images).split(cut):
        parts.update_(mean[index], m2[index], size, labels[index])
    assert all(torch.equal(a, b) for a, b in zip(whole.state, parts.state, strict=True))
    merged = ClassMoments.zeros(classes, channels)
    for index in torch.arange(images).flip(0).split(cut):
        shard = ClassMoments.zeros(classes, channels)
        shard.update_(mean[index], m2[index], size, labels[index])
        merged.merge_(shard)
    finished = whole.finish()
    for one, other in zip(finished, merged.finish(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, equal_nan=True)
    for label in range(classes):
        own = mean[labels == label].double()
        if len(own) == 0:
            assert bool(finished.mean[label].isnan().all())
            continue
        torch.testing.assert_close(finished.mean[label], own.mean(0), rtol=1e-12, atol=1e-12)
        between = own.var(0, unbiased=False)
        torch.testing.assert_close(finished.between[label], between, rtol=1e-10, atol=1e-12)
        within = m2[labels == label].double().mean(0) / size
        torch.testing.assert_close(finished.within[label], within, rtol=1e-12, atol=1e-12)
    x = mean.unsqueeze(2) + torch.randn(images, channels, size, generator=generator)
    batch = ltdd_ext.class_moments(x, labels, classes)
    for one, exact in zip(batch, reference.class_moments(x, labels, classes), strict=True):
        torch.testing.assert_close(one, exact, rtol=2e-6, atol=1e-6, equal_nan=True)


def align_loss_property(
    rows: int, channels: tuple[int, ...], classes: int, class_weight: float, seed: int
) -> None:
    case = alignment(rows, channels, classes, torch.float64, seed=seed, requires_grad=True)
    narrow = alignment(rows, channels, classes, torch.float32, seed=seed, requires_grad=True)
    want = reference.align_loss(*case.arguments(), class_weight)
    for one, tolerance in ((case, 1e-12), (narrow, 3e-6)):
        got = ltdd_ext.align_loss(*one.arguments(), class_weight)
        assert relative_error(got.detach(), want.detach()) <= tolerance
    exact = torch.autograd.grad(want, case.means + case.m2s)
    grads = torch.autograd.grad(
        ltdd_ext.align_loss(*case.arguments(), class_weight), case.means + case.m2s
    )
    scale = max(float(one.abs().max()) for one in exact)
    for one, other in zip(grads, exact, strict=True):
        assert float((one - other).abs().max()) <= 1e-11 * scale


ROWS = {"drawn": activations()}
FUSED = {
    "drawn": activations(dimensions=(4,), smallest=2),
    "act": st.sampled_from(["none", "relu"]),
    "pool": st.sampled_from(["none", "avg2"]),
    "with_residual": st.booleans(),
}
NORM = {
    "drawn": activations(dimensions=(4,), smallest=2),
    "over": st.sampled_from(["batch", "image"]),
    "act": st.sampled_from(["none", "relu"]),
    "pool": st.sampled_from(["none", "avg2"]),
}
CONV = {
    "images": st.integers(1, 30),
    "channels": st.tuples(st.integers(1, 40), st.integers(1, 40)),
    "sides": st.tuples(st.integers(1, 13), st.integers(1, 13)),
    "layout": st.sampled_from(LAYOUTS),
    "seed": st.integers(0, 2**31),
}
CLASSES = {
    "images": st.integers(1, 40),
    "classes": st.integers(1, 6),
    "channels": st.integers(1, 80),
    "seed": st.integers(0, 2**31),
    "cut": st.integers(1, 40),
}
ALIGN = {
    "rows": st.integers(1, 20),
    "channels": st.lists(st.integers(1, 80), min_size=1, max_size=3).map(tuple),
    "classes": st.integers(1, 5),
    "class_weight": st.sampled_from([0.0, 0.3, 2.0]),
    "seed": st.integers(0, 2**31),
}

test_row_moments = sized(FEW, row_moments_property, **ROWS)
test_bn_act_moments = sized(FEW, bn_act_moments_property, **FUSED)
test_norm_act = sized(FEW, norm_act_property, **NORM)
test_conv3x3 = sized(FEW, conv3x3_property, **CONV)
test_class_moments = sized(FEW, class_moments_property, **CLASSES)
test_align_loss = sized(FEW, align_loss_property, **ALIGN)

test_row_moments_many = pytest.mark.slow(sized(MANY, row_moments_property, **ROWS))
test_bn_act_moments_many = pytest.mark.slow(sized(MANY, bn_act_moments_property, **FUSED))
test_norm_act_many = pytest.mark.slow(sized(MANY, norm_act_property, **NORM))
test_conv3x3_many = pytest.mark.slow(sized(MANY, conv3x3_property, **CONV))
test_class_moments_many = pytest.mark.slow(sized(MANY, class_moments_property, **CLASSES))
test_align_loss_many = pytest.mark.slow(sized(MANY, align_loss_property, **ALIGN))
