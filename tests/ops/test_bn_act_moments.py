"""bn_act_moments against float64 of the reference, over switches, layouts and odd sizes."""

from __future__ import annotations

import pytest
import torch
from ops.cases import (
    DTYPES,
    LAYOUTS,
    ROUNDING,
    activation,
    assert_threads_change_no_bit,
    coefficients,
    laid_out,
    relative_error,
)

import ltdd_ext
from ltdd_ext import reference
from ltdd_ext.bn_act_moments import bn_act_moments_shared

SHAPES = [
    (2, 3, 8, 8),
    (3, 70, 7, 7),
    (2, 5, 4, 4),
    (2, 33, 9, 6),
    (1, 4, 40, 51),
    (1, 1, 3, 2),
    (2, 16, 2, 5),
    (20, 17, 2, 2),
    (2, 600, 3, 4),
    (1, 2, 4, 1500),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("pool", ["none", "avg2"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape, with_residual, act, pool, layout, dtype, device):
    x = activation(shape, dtype, layout, device).requires_grad_()
    k, h = coefficients(shape[1], dtype, device)
    residual = None
    if with_residual:
        residual = activation(shape, dtype, layout, device, seed=1).requires_grad_()
    outputs = ltdd_ext.bn_act_moments(x, k, h, residual, act, pool)
    assert outputs[0].dtype == dtype
    grads = [torch.randn(out.shape, dtype=torch.float64).to(out) for out in outputs]
    torch.autograd.backward(outputs, grads)

    x64 = x.detach().cpu().double().requires_grad_()
    residual64 = None if residual is None else residual.detach().cpu().double().requires_grad_()
    wanted = reference.bn_act_moments(
        x64, k.cpu().double(), h.cpu().double(), residual64, act, pool
    )
    torch.autograd.backward(wanted, [grad.cpu().double() for grad in grads])
    tolerance = 5e-7 + ROUNDING[dtype]
    assert relative_error(outputs[0].detach(), wanted[0].detach()) <= tolerance
    assert relative_error(outputs[1].detach(), wanted[1].detach()) <= 5e-7
    assert relative_error(outputs[2].detach(), wanted[2].detach()) <= 5e-7
    assert relative_error(x.grad, x64.grad) <= tolerance
    if residual is not None:
        assert relative_error(residual.grad, residual64.grad) <= tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual_layout", LAYOUTS)
@pytest.mark.parametrize("pool", ["none", "avg2"])
def test_layouts_may_differ(layout, residual_layout, pool, device):
    """x, the residual and the incoming gradient each in its own strides."""
    shape = (3, 20, 6, 6)
    x = activation(shape, layout=layout, device=device).detach().requires_grad_()
    residual = activation(shape, layout=residual_layout, device=device, seed=1).detach()
    k, h = coefficients(20, torch.float32, device)
    y, _, _ = ltdd_ext.bn_act_moments(x, k, h, residual, "relu", pool)
    want, _, _ = reference.bn_act_moments(x, k, h, residual, "relu", pool)
    torch.testing.assert_close(y, want)
    assert y.stride() == laid_out(y, "pixels" if layout == "pixels" else "rows").stride()
    grad = activation(tuple(y.shape), layout=residual_layout, device=device, seed=2)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(want, x, grad)[0]
    )


@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_moments_are_those_of_row_moments(layout, device):
    x = activation((3, 70, 20, 20), layout=layout, device=device)
    k, h = coefficients(70, torch.float32, device)
    _, mean, m2 = ltdd_ext.bn_act_moments(x, k, h)
    want_mean, want_m2 = ltdd_ext.row_moments(x)
    assert torch.equal(mean, want_mean)
    assert torch.equal(m2, want_m2)


def test_three_dimensions(device):
    x = activation((3, 4, 37), device=device)
    k, h = coefficients(4, torch.float32, device)
    for got, want in zip(
        ltdd_ext.bn_act_moments(x, k, h), reference.bn_act_moments(x, k, h), strict=True
    ):
        assert relative_error(got, want) <= 5e-7


@pytest.mark.parametrize("pool", ["none", "avg2"])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_nan_passes_the_relu(layout, pool, device):
    x = activation((2, 20, 6, 6), layout=layout, device=device)
    x[1, 4, 2, 3] = float("nan")
    k, h = coefficients(20, torch.float32, device)
    leaf = x.requires_grad_()
    y, mean, _ = ltdd_ext.bn_act_moments(leaf, k, h, pool=pool)
    assert int(y.isnan().sum()) == 1
    assert int(mean.isnan().sum()) == 1
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    assert float(grad[1, 4, 2, 3]) != 0.0


@pytest.mark.parametrize(
    ("shape", "pool"),
    [
        ((0, 3, 4, 4), "none"),
        ((0, 3, 4, 4), "avg2"),
        ((2, 0, 4, 4), "none"),
        ((2, 0, 4, 4), "avg2"),
        ((2, 3, 0, 4), "none"),
    ],
    ids=str,
)
def test_empty(shape, pool, device):
    x = torch.zeros(shape, device=device, requires_grad=True)
    k, h = coefficients(shape[1], torch.float32, device)
    y, mean, _ = ltdd_ext.bn_act_moments(x, k, h, pool=pool)
    side = 2 if pool == "avg2" else 1
    assert y.shape == (*shape[:2], shape[2] // side, shape[3] // side)
    assert bool(mean.isnan().all())
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("pool", ["none", "avg2"])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_large_outputs_past_the_caches(layout, pool, device):
    """Large enough for streaming stores, in sizes that are and are not whole vectors."""
    for shape in [(8, 64, 48, 48), (8, 65, 47, 49)]:
        x = activation(shape, layout=layout, device=device).requires_grad_()
        k, h = coefficients(shape[1], torch.float32, device)
        got = ltdd_ext.bn_act_moments(x, k, h, pool=pool)
        want = reference.bn_act_moments(x, k, h, pool=pool)
        torch.testing.assert_close(got[0], want[0])
        grad = torch.randn_like(got[0])
        torch.testing.assert_close(
            torch.autograd.grad(got[0], x, grad), torch.autograd.grad(want[0], x, grad)
        )


def test_opcheck(device):
    k, h = coefficients(5, torch.float32, device)
    op = torch.ops.ltdd_ext
    for layout in ("rows", "pixels"):
        for residual in (None, activation((2, 5, 4, 6), layout=layout, device=device)):
            for pool in (1, 2):
                x = activation((2, 5, 4, 6), layout=layout, device=device).requires_grad_()
                torch.library.opcheck(op.bn_act_moments.default, (x, k, h, residual, 1, pool))
                y, mean, m2, _ = op.bn_act_moments(x.detach(), k, h, residual, 1, pool)
                torch.library.opcheck(
                    op.bn_act_moments_backward.default,
                    (y, mean, m2, x.detach(), k, h, residual, mean, 1, pool),
                )
        given = (x.detach(), mean, m2, x.detach(), k, h, residual, mean, 1, 1, x.detach())
        torch.library.opcheck(op.bn_act_moments_backward.default, given)


@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("pool", ["none", "avg2"])
def test_gradcheck(layout, act, pool, device):
    x = activation((2, 3, 3, 4), torch.float64, layout, device).requires_grad_()
    residual = activation((2, 3, 3, 4), torch.float64, layout, device, seed=1).requires_grad_()
    k, h = coefficients(3, torch.float64, device)
    assert torch.autograd.gradcheck(
        lambda x, residual: ltdd_ext.bn_act_moments(x, k, h, residual, act, pool), (x, residual)
    )


def test_compiles_as_one_graph(device):
    x = activation((2, 5, 4, 6), device=device).requires_grad_()
    k, h = coefficients(5, torch.float32, device)

    def fused(x):
        y, mean, m2 = ltdd_ext.bn_act_moments(x, k, h, x, "relu", "avg2")
        return y.sum() + (mean * m2).sum()

    want = torch.autograd.grad(fused(x), x)
    got = torch.autograd.grad(torch.compile(fused, fullgraph=True)(x), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("pool", ["none", "avg2"])
def test_threads_change_no_bit(layout, pool):
    x = activation((6, 70, 30, 30), layout=layout).requires_grad_()
    k, h = coefficients(70, torch.float32, "cpu")

    def results() -> list[torch.Tensor]:
        out = ltdd_ext.bn_act_moments(x, k, h, x, "relu", pool)
        loss = sum(part.square().mean() for part in out)
        return [*out, *torch.autograd.grad(loss, x)]

    assert_threads_change_no_bit(results)


@pytest.mark.parametrize("api", [ltdd_ext, reference], ids=["compiled", "reference"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"act": "gelu"}, ValueError, "act one of ('none', 'relu'), got 'gelu'"),
        ({"pool": "max2"}, ValueError, "pool one of ('none', 'avg2', 'max3'), got 'max2'"),
        ({"k": torch.ones(4)}, ValueError, "k of shape (3,), got (4,)"),
        ({"h": torch.ones(3).double()}, TypeError, "h of dtype float32, got float64"),
        (
            {"residual": torch.ones(2, 3, 4, 5)},
            ValueError,
            "residual of shape (2, 3, 4, 4), got (2, 3, 4, 5)",
        ),
        (
            {"residual": torch.ones(2, 3, 4, 4).half()},
            TypeError,
            "residual of dtype float32, got float16",
        ),
        (
            {"x": torch.ones(2, 3, 8), "pool": "avg2"},
            ValueError,
            "x of shape (N, C, H, W) with pool, got (2, 3, 8)",
        ),
        (
            {"x": torch.ones(2, 3, 1, 4), "pool": "avg2"},
            ValueError,
            "x of height >= 2 and width in [2, 8192] with pool, got (2, 3, 1, 4)",
        ),
        ({"k": torch.ones(3, device="meta")}, ValueError, "k on cpu, got meta"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(api, changes, error, message):
    call = {"x": torch.ones(2, 3, 4, 4), "k": torch.ones(3), "h": torch.ones(3)} | changes
    with pytest.raises(error) as caught:
        api.bn_act_moments(**call)
    assert str(caught.value) == "bn_act_moments: expected " + message


# --- an output that two layers read ---


def readers_and_sum(x, residual, k, h, act, order):
    """Gradients by way of two outputs, and by way of one that autograd has to add up."""
    inputs = [one for one in (x, residual) if one is not None]
    grads = [
        torch.randn(x.shape, dtype=torch.float64).to(x).contiguous(memory_format=one)
        for one in order
    ]
    rows = [torch.randn(x.shape[:2], dtype=torch.float64, device=x.device) for _ in range(2)]
    y, shortcut, *moments = bn_act_moments_shared(x, k, h, residual, act)
    got = torch.autograd.grad([y, shortcut, *moments], inputs, [*grads, *rows])
    one, *again = ltdd_ext.bn_act_moments(x, k, h, residual, act)
    assert torch.equal(y, one)
    assert y.data_ptr() == shortcut.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(moments, again, strict=True))
    wanted = torch.autograd.grad([one, *again], inputs, [grads[0] + grads[1], *rows])
    return got, wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_two_readers_have_the_bits_of_their_sum(
    shape, with_residual, act, layout, dtype, device
):
    x = activation(shape, dtype, layout, device).requires_grad_()
    k, h = coefficients(shape[1], dtype, device)
    residual = None
    if with_residual:
        residual = activation(shape, dtype, layout, device, seed=1).requires_grad_()
    orders = (torch.contiguous_format, torch.channels_last)
    for got, wanted in zip(
        *readers_and_sum(x, residual, k, h, act, orders if len(shape) == 4 else orders[:1] * 2),
        strict=True,
    ):
        assert torch.equal(got, wanted)
        assert got.stride() == wanted.stride()


def test_two_readers_are_differentiated_any_number_of_times(device):
    x = activation((2, 3, 3, 4), torch.float64, "rows", device).requires_grad_()
    residual = activation((2, 3, 3, 4), torch.float64, "pixels", device, seed=1).requires_grad_()
    k, h = coefficients(3, torch.float64, device)

    def read(x, residual):
        y, shortcut, mean, m2 = bn_act_moments_shared(x, k, h, residual, "relu")
        return y.sin(), shortcut.square(), mean, m2

    assert torch.autograd.gradcheck(read, (x, residual))
    assert torch.autograd.gradgradcheck(read, (x, residual))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        for output in bn_act_moments_shared(dual, k, h, None, "relu"):
            assert torch.autograd.forward_ad.unpack_dual(output).tangent is not None


def test_one_of_two_readers_may_want_nothing(device):
    x = activation((2, 3, 4, 4), device=device).requires_grad_()
    k, h = coefficients(3, torch.float32, device)
    shortcut = bn_act_moments_shared(x, k, h, None, "relu")[1]
    (got,) = torch.autograd.grad(shortcut.square().sum(), x)
    (wanted,) = torch.autograd.grad(ltdd_ext.bn_act_moments(x, k, h)[0].square().sum(), x)
    assert torch.equal(got, wanted)
    constants = bn_act_moments_shared(x.detach(), k, h, None, "relu")
    assert not any(one.requires_grad for one in constants)


def test_readers_of_a_pooled_output_are_not_two(device):
    x, (k, h) = activation((2, 5, 4, 6), device=device), coefficients(5, torch.float32, device)
    y, mean, m2 = ltdd_ext.bn_act_moments(x, k, h, pool="avg2")
    with pytest.raises(ValueError, match="expected no grad_shortcut with pool"):
        torch.ops.ltdd_ext.bn_act_moments_backward(y, mean, m2, x, k, h, None, mean, 1, 2, y)
