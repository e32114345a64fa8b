"""norm_act against float64 of the reference, over switches, layouts and odd sizes."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from ops.cases import (
    DTYPES,
    LAYOUTS,
    ROUNDING,
    activation,
    assert_threads_change_no_bit,
    laid_out,
    relative_error,
)

import ltdd_ext
from ltdd_ext import reference

SHAPES = [
    (2, 3, 8, 8),
    (3, 70, 7, 7),
    (5, 4, 4, 4),
    (2, 33, 9, 6),
    (1, 4, 40, 51),
    (20, 17, 2, 4),
    (2, 600, 3, 4),
    (9, 2, 4, 1500),
]


def parameters(channels: int, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    pair = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    return [part.to(row_dtype).to(device).requires_grad_() for part in pair]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("pool", ["none", "avg2"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape, over, act, pool, layout, dtype, device):
    x = activation(shape, dtype, layout, device).requires_grad_()
    weight, bias = parameters(shape[1], dtype, device)
    y, mean, m2 = ltdd_ext.norm_act(x, weight, bias, over, 1e-3, act, pool)
    assert y.dtype == dtype
    grad = torch.randn(y.shape, dtype=torch.float64).to(y)
    y.backward(grad)

    inputs = [v.detach().double().requires_grad_() for v in (x, weight, bias)]
    want, want_mean, want_m2 = reference.norm_act(*inputs, over, 1e-3, act, pool)
    want.backward(grad.double())
    tolerance = 1e-6 + ROUNDING[dtype]
    assert relative_error(y.detach(), want.detach()) <= tolerance
    assert relative_error(mean, want_mean) <= 5e-7
    assert relative_error(m2, want_m2) <= 5e-7
    assert relative_error(x.grad, inputs[0].grad) <= 4 * tolerance
    # Sums that may cancel: their error is measured by what is added up.
    terms = grad.double().abs().sum([dim for dim in range(4) if dim != 1])
    for got, wanted in zip((weight, bias), inputs[1:], strict=True):
        assert got.grad.dtype == got.dtype
        assert ((got.grad - wanted.grad).abs() / terms).max() <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("pool", ["none", "avg2"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_second_derivatives_match_float64(shape, over, act, pool, layout, dtype):
    """By the kernel, of a slope that all three gradients have a say in."""
    x = activation(shape, dtype, layout)
    weight, bias = (p.detach() for p in parameters(shape[1], dtype))
    grad_y = ltdd_ext.norm_act(x, weight, bias, over, 1e-3, act, pool)[0].detach()
    generator = torch.Generator().manual_seed(4)
    grad_y = torch.randn(grad_y.shape, generator=generator, dtype=torch.float64).to(grad_y)
    ways = [
        torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype)
        for one in (x, weight, bias)
    ]

    def second(ops: ModuleType, exact: bool) -> list[torch.Tensor]:
        given = [v.double() if exact else v for v in (grad_y, x, weight, bias)]
        leaves = [v.detach().requires_grad_() for v in given]
        y = ops.norm_act(*leaves[1:], over, 1e-3, act, pool)[0]
        first = torch.autograd.grad(y, leaves[1:], leaves[0], create_graph=True)
        slope = sum((g.double() * way.double()).sum() for g, way in zip(first, ways, strict=True))
        return list(torch.autograd.grad(slope, leaves, materialize_grads=True))

    tolerance = 2e-6 + ROUNDING[dtype]
    for got, want in zip(second(ltdd_ext, False)[:3], second(reference, True), strict=False):
        assert got.dtype in (dtype, weight.dtype)
        assert relative_error(got, want) <= 8 * tolerance


@pytest.mark.parametrize("over", ["batch", "image"])
def test_is_the_layer_of_pytorch(over):
    """The reference itself against PyTorch's own norms."""
    x = activation((4, 6, 8, 8), torch.float64)
    weight, bias = (p.detach() for p in parameters(6, torch.float64))
    if over == "batch":
        normed = F.batch_norm(x, None, None, weight, bias, training=True)
    else:
        normed = F.instance_norm(x, None, None, weight, bias)
    want = F.avg_pool2d(F.relu(normed), 2)
    for ops in (ltdd_ext, reference):
        torch.testing.assert_close(ops.norm_act(x, weight, bias, over, pool="avg2")[0], want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("over", ["batch", "image"])
def test_layouts_may_differ(layout, grad_layout, over, device):
    """x and the incoming gradient each in its own strides."""
    x = activation((3, 20, 6, 6), layout=layout, device=device).detach().requires_grad_()
    weight, bias = parameters(20, torch.float32, device)
    y, _, _ = ltdd_ext.norm_act(x, weight, bias, over, pool="avg2")
    assert y.stride() == laid_out(y, "pixels" if layout == "pixels" else "rows").stride()
    grad = activation(tuple(y.shape), layout=grad_layout, device=device, seed=2)
    want, _, _ = reference.norm_act(x, weight, bias, over, pool="avg2")
    for got, wanted in zip(
        torch.autograd.grad(y, (x, weight, bias), grad),
        torch.autograd.grad(want, (x, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("over", ["batch", "image"])
def test_three_dimensions(over, device):
    x = activation((3, 5, 11), device=device).requires_grad_()
    weight, bias = parameters(5, torch.float32, device)
    y, _, _ = ltdd_ext.norm_act(x, weight, bias, over)
    want, _, _ = reference.norm_act(x, weight, bias, over)
    torch.testing.assert_close(y, want)
    got, wanted = (torch.autograd.grad(v.square().sum(), x)[0] for v in (y, want))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_values_far_from_zero(over, layout, device):
    """A mean of 1,000 deviations costs the digits that k x + h cancels, no more."""
    drawn = torch.randn(4, 8, 16, 16, generator=torch.manual_seed(0)) + 1000
    x = laid_out(drawn.to(device), layout)
    weight, bias = torch.ones(8, device=device), torch.zeros(8, device=device)
    y, _, _ = ltdd_ext.norm_act(x, weight, bias, over, act="none")
    want, _, _ = reference.norm_act(x.double(), weight.double(), bias.double(), over, act="none")
    assert (y - want).abs().max() < 4 * 1000 * 2**-24


@pytest.mark.parametrize("over", ["batch", "image"])
def test_bits_do_not_depend_on_threads(over):
    x = laid_out(activation((9, 40, 12, 12)), "pixels").requires_grad_()
    weight, bias = parameters(40, torch.float32)

    def bits() -> list[torch.Tensor]:
        inputs = (x, weight, bias)
        y, mean, m2 = ltdd_ext.norm_act(*inputs, over, pool="avg2")
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), inputs)
        return [y, mean, m2, *(one.detach() for one in first), *second]

    assert_threads_change_no_bit(bits)


def test_nan_stays_where_it_is(device):
    x = activation((3, 4, 4, 4), device=device).detach().clone()
    x[1, 2, 0, 0] = float("nan")
    weight, bias = torch.ones(4, device=device), torch.zeros(4, device=device)
    y, _, _ = ltdd_ext.norm_act(x, weight, bias, "image")
    assert y[1, 2].isnan().all()
    assert y.isnan().sum() == 16
    y, _, _ = ltdd_ext.norm_act(x, weight, bias, "batch")
    assert y[:, 2].isnan().all()
    assert y.isnan().sum() == 48


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)], ids=str)
def test_nothing_in_nothing_out(shape, device):
    x = torch.zeros(shape, device=device).requires_grad_()
    weight = torch.ones(shape[1], device=device).requires_grad_()
    bias = torch.zeros(shape[1], device=device).requires_grad_()
    y, mean, m2 = ltdd_ext.norm_act(x, weight, bias)
    assert y.shape == shape
    assert mean.shape == m2.shape == shape[:2]
    y.sum().backward()
    assert x.grad.shape == shape
    assert not weight.grad.any()


@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_opcheck(over, layout, device):
    x = activation((3, 5, 4, 6), torch.float32, layout, device).requires_grad_()
    weight, bias = parameters(5, torch.float32, device)
    switches = (over == "image", 1e-5, 1, 2)
    torch.library.opcheck(torch.ops.ltdd_ext.norm_act.default, (x, weight, bias, *switches))
    with torch.no_grad():
        y, mean, m2 = ltdd_ext.norm_act(x, weight, bias, over, pool="avg2")
        torch.library.opcheck(
            torch.ops.ltdd_ext.norm_act_backward.default,
            (torch.ones_like(y), x, weight, bias, mean, m2, *switches),
        )
        torch.library.opcheck(
            torch.ops.ltdd_ext.norm_act_double_backward.default,
            (x * 2, weight, bias, torch.ones_like(y), x, weight, bias, mean, m2, *switches),
        )


@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_gradcheck(over, layout, device):
    x = activation((3, 3, 4, 4), torch.float64, layout, device).requires_grad_()
    weight, bias = parameters(3, torch.float64, device)

    def output(*inputs: torch.Tensor) -> torch.Tensor:
        return ltdd_ext.norm_act(*inputs, over, pool="avg2")[0]

    assert torch.autograd.gradcheck(output, (x, weight, bias))


def test_compiles_into_one_graph():
    x = activation((2, 5, 4, 4))
    weight, bias = (p.detach() for p in parameters(5, torch.float32))

    def step(x: torch.Tensor) -> torch.Tensor:
        return ltdd_ext.norm_act(x, weight, bias, pool="avg2")[0].sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), step(x))


@pytest.mark.parametrize("ops", [ltdd_ext, reference], ids=["compiled", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(4)}, ValueError, "expected weight of shape (3,), got (4,)"),
        ({"bias": torch.ones(3).double()}, TypeError, "expected bias of dtype float32"),
        ({"over": "class"}, ValueError, "expected over one of ('batch', 'image'), got 'class'"),
        ({"eps": 0.0}, ValueError, "expected eps > 0, got 0.0"),
        ({"act": "gelu"}, ValueError, "expected act one of"),
        ({"x": torch.ones(1, 3, 1, 1)}, ValueError, "several values a channel over the batch"),
        ({"x": torch.ones(2, 3, 4), "pool": "avg2"}, ValueError, "(N, C, H, W) with pool"),
        ({"x": torch.ones(2, 3, 4, 4).int()}, TypeError, "expected x of dtype"),
    ],
    ids=lambda value: "",
)
def test_refuses(ops, change, error, message):
    arguments = {"x": torch.ones(2, 3, 4, 4), "weight": torch.ones(3), "bias": torch.zeros(3)}
    with pytest.raises(error) as caught:
        ops.norm_act(**(arguments | change))
    assert str(caught.value).startswith("norm_act: ")
    assert message in str(caught.value)
