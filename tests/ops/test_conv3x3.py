"""conv3x3 against float64 of the reference, over channels, odd sizes and layouts."""

from __future__ import annotations

import pytest
import torch
from ops.cases import LAYOUTS, activation, assert_threads_change_no_bit, relative_error

import ltdd_ext
from ltdd_ext import reference

# (images, input channels, height, width) and output channels
SHAPES = [
    ((3, 128, 16, 16), 128),
    ((13, 32, 8, 8), 48),
    ((2, 5, 9, 6), 7),
    ((1, 33, 4, 13), 40),
    ((5, 1, 1, 1), 1),
    ((2, 3, 32, 32), 17),
    ((1, 9, 40, 51), 8),
    ((60, 8, 4, 4), 8),
    ((2, 128, 32, 32), 3),
    ((3, 35, 5, 7), 4),
]


def parameters(out: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    taps = torch.randn(out, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    return taps.requires_grad_(), torch.randn(out, generator=generator).requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taps_layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("shape", "out"), SHAPES, ids=str)
def test_matches_float64(shape, out, layout, taps_layout):
    x = activation(shape, layout=layout).detach().requires_grad_()
    weight, bias = parameters(out, shape[1])
    weight = weight.detach().contiguous(memory_format=taps_layout).requires_grad_()
    y = ltdd_ext.conv3x3(x, weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = activation(tuple(y.shape), layout=layout, seed=2)
    y.backward(grad)

    inputs = [v.detach().double().requires_grad_() for v in (x, weight, bias)]
    want = torch.nn.functional.conv2d(*inputs, padding=1)
    want.backward(grad.double())
    assert relative_error(y.detach(), want.detach()) <= 4e-5
    for got, wanted in zip((x, weight, bias), inputs, strict=True):
        assert got.grad.shape == got.shape
        assert relative_error(got.grad, wanted.grad) <= 4e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "out"), SHAPES, ids=str)
def test_bfloat16_images_match_float64(shape, out, layout):
    """Sums are of float32: what is left is the rounding of y, dx and, with tiles, of the taps."""
    x = activation(shape, layout=layout).bfloat16().detach().requires_grad_()
    weight, bias = parameters(out, shape[1])
    y = ltdd_ext.conv3x3(x, weight, bias)
    assert y.dtype == torch.bfloat16
    grad = activation(tuple(y.shape), layout=layout, seed=2).bfloat16()
    y.backward(grad)

    inputs = [v.detach().double().requires_grad_() for v in (x, weight, bias)]
    want = torch.nn.functional.conv2d(*inputs, padding=1)
    want.backward(grad.double())
    assert relative_error(y.detach(), want.detach()) <= 2**-7
    assert relative_error(x.grad, inputs[0].grad) <= 2**-7
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    for got, wanted in ((weight, inputs[1]), (bias, inputs[2])):
        assert relative_error(got.grad, wanted.grad) <= 4e-5


def test_the_reference_is_the_layer_of_pytorch():
    x = activation((2, 4, 7, 5)).requires_grad_()
    layer = torch.nn.Conv2d(4, 6, 3, padding=1)
    got = reference.conv3x3(x, layer.weight, layer.bias)
    torch.testing.assert_close(got, layer(x))


def test_gradients_stop_where_nobody_wants_them():
    x = activation((2, 4, 8, 8)).detach()
    weight, bias = parameters(6, 4)
    ltdd_ext.conv3x3(x, weight, bias).sum().backward()
    assert x.grad is None
    # The sum over all outputs: how often each tap meets a pixel, times its value.
    torch.testing.assert_close(bias.grad, torch.full((6,), 128.0))
    torch.testing.assert_close(weight.grad[:, :, 1, 1], x.sum((0, 2, 3)).expand(6, 4))


def test_a_frozen_layer_passes_the_gradient_on():
    x = activation((2, 40, 8, 8)).detach().requires_grad_()
    weight, bias = (p.detach() for p in parameters(6, 40))
    (got,) = torch.autograd.grad(ltdd_ext.conv3x3(x, weight, bias).square().sum(), x)
    (want,) = torch.autograd.grad(reference.conv3x3(x, weight, bias).square().sum(), x)
    assert relative_error(got, want) <= 4e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "out"), [(40, 3), (40, 24), (3, 24)])
def test_bits_do_not_depend_on_threads_or_batch(channels, out, dtype):
    x = activation((21, channels, 12, 12), layout="pixels").to(dtype).detach().requires_grad_()
    weight, bias = parameters(out, channels)

    def bits() -> list[torch.Tensor]:
        y = ltdd_ext.conv3x3(x, weight, bias)
        return [y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))]

    together = assert_threads_change_no_bit(bits)[0]
    alone = ltdd_ext.conv3x3(x[7:8].detach(), weight, bias)
    assert torch.equal(alone, together[7:8])


def test_nan_reaches_the_tiles_that_see_it():
    x = torch.zeros(2, 3, 16, 16)
    x[0, 1, 8, 8] = float("nan")
    y = ltdd_ext.conv3x3(x, *(p.detach() for p in parameters(5, 3)))
    assert y[0, :, 7:10, 7:10].isnan().all()
    assert not y[1].isnan().any()
    assert not y[0, :, :4].isnan().any()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)], ids=str)
def test_nothing_in(shape):
    x = torch.zeros(shape).requires_grad_()
    weight, bias = parameters(5, shape[1]) if shape[1] else (torch.zeros(5, 0, 3, 3), torch.ones(5))
    y = ltdd_ext.conv3x3(x, weight, bias)
    assert y.shape == (shape[0], 5, *shape[2:])
    torch.testing.assert_close(y, bias.view(5, 1, 1).expand_as(y))
    y.sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    x = activation((3, 5, 8, 6), layout="pixels").to(dtype).detach().requires_grad_()
    weight, bias = parameters(7, 5)
    torch.library.opcheck(torch.ops.ltdd_ext.conv3x3.default, (x, weight, bias))
    grad = activation((3, 7, 8, 6), layout="pixels").to(dtype)
    torch.library.opcheck(torch.ops.ltdd_ext.conv3x3_backward.default, (grad, x.detach()))


def test_compiles_into_one_graph():
    x = activation((2, 5, 8, 8))
    weight, bias = (p.detach() for p in parameters(5, 5))

    def step(x: torch.Tensor) -> torch.Tensor:
        return ltdd_ext.conv3x3(x, weight, bias).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), step(x))


@pytest.mark.parametrize("ops", [ltdd_ext, reference], ids=["compiled", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 3, 4)}, ValueError, "expected x of shape (N, C, H, W), got (2, 3, 4)"),
        ({"weight": torch.ones(5, 3, 5, 5)}, ValueError, "expected weight of shape (O, 3, 3, 3)"),
        ({"weight": torch.ones(5, 4, 3, 3)}, ValueError, "expected weight of shape (O, 3, 3, 3)"),
        ({"bias": torch.ones(4)}, ValueError, "expected bias of shape (5,), got (4,)"),
        (
            {"x": torch.ones(2, 3, 4, 4).double()},
            TypeError,
            "expected x of dtype float32 or bfloat16",
        ),
        ({"bias": None}, TypeError, "expected bias a torch.Tensor, got NoneType"),
    ],
    ids=lambda value: "",
)
def test_refuses(ops, change, error, message):
    arguments = {
        "x": torch.ones(2, 3, 4, 4),
        "weight": torch.ones(5, 3, 3, 3),
        "bias": torch.zeros(5),
    }
    with pytest.raises(error) as caught:
        ops.conv3x3(**(arguments | change))
    assert str(caught.value).startswith("conv3x3: ")
    assert message in str(caught.value)
