"""row_moments against float64, over shapes, layouts, dtypes, and hostile numbers."""

from __future__ import annotations

import pytest
import torch
from ops.cases import (
    DTYPES,
    EMPTY_SHAPES,
    LAYOUTS,
    ROUNDING,
    SHAPES,
    activation,
    laid_out,
    relative_error,
)

import ltdd_ext
from ltdd_ext import reference


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.row_moments(x.detach().cpu().double())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(shape, layout, dtype, device):
    x = activation(shape, dtype, layout, device)
    mean, m2 = ltdd_ext.row_moments(x)
    want_mean, want_m2 = exact(x)
    assert mean.shape == m2.shape == shape[:2]
    assert mean.dtype == m2.dtype == torch.float64
    assert relative_error(mean, want_mean) <= 5e-7
    assert relative_error(m2, want_m2) <= 5e-7


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_matches_float64(shape, layout, dtype, device):
    x = activation(shape, dtype, layout, device).detach().requires_grad_()
    mean, m2 = ltdd_ext.row_moments(x)
    grad_mean = torch.randn(mean.shape, dtype=torch.float64)
    grad_m2 = torch.randn(mean.shape, dtype=torch.float64)
    torch.autograd.backward([mean, m2], [grad_mean.to(mean), grad_m2.to(m2)])

    x64 = x.detach().cpu().double().requires_grad_()
    grads = [grad_mean.to(mean).cpu().double(), grad_m2.to(m2).cpu().double()]
    torch.autograd.backward(list(reference.row_moments(x64)), grads)
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert relative_error(x.grad, x64.grad) <= 5e-7 + ROUNDING[dtype]


@pytest.mark.parametrize("mean_over_sd", [1e2, 1e3, 1e5])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 40, 7, 7), (1, 3, 64, 65)], ids=str)
def test_large_mean_costs_no_digits(shape, layout, mean_over_sd, device):
    x = activation(shape, layout=layout, device=device, shift=1.5 * mean_over_sd)
    _, m2 = ltdd_ext.row_moments(x)
    assert relative_error(m2, exact(x)[1]) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("shape", [(2, 5, 16, 16), (2, 40, 32, 32), (1, 600, 12, 12)], ids=str)
def test_a_misleading_sample_costs_no_digits(shape, layout, dtype, device):
    """Whatever few elements are taken for typical of a row may be far from all the others."""
    generator = torch.Generator().manual_seed(0)
    size = shape[2] * shape[3]
    rows = torch.randn(*shape[:2], size, generator=generator, dtype=torch.float64)
    for period in (size // 8, size // 4, (size - 8) // 3):
        for first in (0, 3):
            x = rows.clone()
            x[:, ::2, first::period] = 3e3 + 0.01 * x[:, ::2, first::period]
            x = laid_out(x.reshape(shape).to(dtype).to(device), layout)
            mean, m2 = ltdd_ext.row_moments(x)
            want_mean, want_m2 = exact(x)
            assert float(((mean.cpu() - want_mean) / (want_m2 / size).sqrt()).abs().max()) <= 1e-6
            # Equal numbers, summed in float32, round one way.
            tolerance = 1e-6 if dtype == torch.float32 else 3e-6
            assert float(((m2.cpu() - want_m2) / want_m2).abs().max()) <= tolerance


@pytest.mark.parametrize(("center", "sd"), [(1e3, 1.0), (1e4, 0.1), (1e6, 1.0), (1e5, 1.0)])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_statistics_over_images_are_as_good_as_within_one(layout, center, sd, device):
    """Merged over images far from zero: value and gradient, however many digits x spends on it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 64, 16, 16, generator=generator, dtype=torch.float64) * sd + center
    x = laid_out(values.float().to(device), layout).requires_grad_()
    labels = torch.arange(64, device=device) % 4
    mean, m2 = ltdd_ext.row_moments(x)
    state = ltdd_ext.ClassMoments.zeros(4, 64, device)
    state.update_(mean.detach(), m2.detach(), 256, labels)
    x64 = x.detach().cpu().double().requires_grad_()
    own = x64.detach().unflatten(0, (16, 4))
    want = own.var([0, 3, 4], correction=0)
    got = state.finish().total.cpu()
    assert float(((got - want) / want).abs().max()) <= 1e-6

    target = [torch.full((64,), center, dtype=torch.float64, device=device)] * 2
    loss = ltdd_ext.align_loss([mean], [m2], [256], labels, target[:1], target[1:])
    (grad,) = torch.autograd.grad(loss, x)
    cpu = [one.cpu() for one in target]
    rows = reference.row_moments(x64)
    exact_loss = reference.align_loss([rows[0]], [rows[1]], [256], labels.cpu(), cpu[:1], cpu[1:])
    (want_grad,) = torch.autograd.grad(exact_loss, x64)
    assert relative_error(grad, want_grad) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("shape", [(2**20 + 1, 8, 16, 16), (3, 2**15, 150, 150)], ids=str)
def test_more_than_2_to_the_31_elements(shape, layout):
    """Zeros that the system need not store, up to the last image, whose offset needs 64 bits."""
    if layout == "rows":
        x = torch.zeros(shape, dtype=torch.bfloat16)
    else:
        images, channels, height, width = shape
        x = torch.zeros(images, height, width, channels, dtype=torch.bfloat16).movedim(-1, 1)
    assert x.numel() > 2**31
    x[-1, -3:] = torch.randn(3, *shape[2:], generator=torch.Generator().manual_seed(0)).bfloat16()
    mean, m2 = ltdd_ext.row_moments(x)
    want_mean, want_m2 = exact(x[-1:, -3:])
    assert relative_error(mean[-1:, -3:], want_mean) <= 1e-6
    assert relative_error(m2[-1:, -3:], want_m2) <= 1e-6
    assert int(mean.count_nonzero()) == int(m2.count_nonzero()) == 3


@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_empty(shape, device):
    x = torch.zeros(shape, device=device, requires_grad=True)
    mean, m2 = ltdd_ext.row_moments(x)
    assert mean.shape == m2.shape == shape[:2]
    assert bool((m2 == 0).all())
    assert bool(mean.isnan().all())
    (mean.sum() + m2.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_non_finite_stays_in_its_row(layout, bad, device):
    x = activation((2, 20, 6, 6), layout=layout, device=device)
    clean_mean, clean_m2 = ltdd_ext.row_moments(x)
    x[1, 4, 2, 3] = bad
    mean, m2 = ltdd_ext.row_moments(x)
    assert not mean[1, 4].isfinite()
    assert m2[1, 4].isnan()
    keep = torch.ones(2, 20, dtype=torch.bool, device=device)
    keep[1, 4] = False
    assert torch.equal(mean[keep], clean_mean[keep])
    assert torch.equal(m2[keep], clean_m2[keep])


@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_gradient_keeps_the_layout(layout, device):
    x = activation((2, 5, 4, 6), layout=layout, device=device).requires_grad_()
    torch.stack(ltdd_ext.row_moments(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("shape", [(5, 33, 9, 9), (3, 64, 40, 40), (9, 130, 4, 4)], ids=str)
def test_a_sample_does_not_depend_on_its_batch(shape, layout, device):
    x = activation(shape, layout=layout, device=device)
    together = torch.stack(ltdd_ext.row_moments(x))
    alone = [torch.stack(ltdd_ext.row_moments(x[i : i + 1])) for i in range(shape[0])]
    assert torch.equal(together, torch.cat(alone, dim=1))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "row_moments: expected x a torch.Tensor, got list"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.int64),
            TypeError,
            "row_moments: expected x of dtype float32, bfloat16, float16 or float64, "
            "got torch.int64",
        ),
        (
            torch.zeros(2, 3),
            ValueError,
            "row_moments: expected x of shape (N, C, H, W) or (N, C, S), got (2, 3)",
        ),
        (
            torch.zeros(2, 3, 4).to_sparse(),
            TypeError,
            "row_moments: expected x a strided tensor, got torch.sparse_coo",
        ),
    ],
    ids=["list", "int", "2d", "sparse"],
)
@pytest.mark.parametrize("function", [ltdd_ext.row_moments, reference.row_moments])
def test_bad_arguments(function, x, error, message):
    with pytest.raises(error) as caught:
        function(x)
    assert str(caught.value) == message
