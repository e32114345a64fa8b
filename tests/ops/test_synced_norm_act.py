"""synced_norm_act, its batch in two parts, against float64 of the reference of norm_act."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from ops.cases import DTYPES, ROUNDING, activation, laid_out, relative_error

import ltdd_ext
from ltdd_ext import reference

GATHERED = torch.float64


def on_both(work: Callable[[int, Callable[[torch.Tensor], torch.Tensor]], object]) -> list[object]:
    """Do a work on two threads that pass vectors to each other, and return what each found."""
    meeting, given, found = threading.Barrier(2, timeout=30), [None, None], [None, None]

    def run(rank: int) -> None:
        def gather(own: torch.Tensor) -> torch.Tensor:
            assert own.dtype == GATHERED
            given[rank] = own
            meeting.wait()
            both = torch.stack(given)
            meeting.wait()
            return both

        found[rank] = work(rank, gather)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("pool", ["none", "avg2"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (3, 70, 7, 5), (9, 2, 4, 150)], ids=str)
def test_is_norm_act_of_all_images(shape, act, pool, layout, dtype):
    """Parts of one and of more images; weights' gradients are parts of the sum."""
    x = activation(shape, dtype, layout)
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = torch.randn(2, shape[1], generator=torch.manual_seed(5), dtype=row_dtype)
    inputs = [v.double().requires_grad_() for v in (x, weight, bias)]
    want, means, m2s = reference.norm_act(*inputs, "batch", 1e-3, act, pool)
    grad = torch.randn(want.shape, generator=torch.manual_seed(6), dtype=torch.float64).to(dtype)
    want.backward(grad.double())
    cut = 1
    parts = (slice(0, cut), slice(cut, None))

    def work(rank, gather):
        own = laid_out(x[parts[rank]], layout).detach().requires_grad_()
        leaves = (own, weight.clone().requires_grad_(), bias.clone().requires_grad_())
        out = ltdd_ext.synced_norm_act(*leaves, gather, 1e-3, act, pool)
        assert out[0].dtype == dtype
        return out, torch.autograd.grad(out[0], leaves, grad[parts[rank]])

    (one, one_grads), (other, other_grads) = on_both(work)
    tolerance = 1e-6 + ROUNDING[dtype]
    assert relative_error(torch.cat([one[0], other[0]]).detach(), want.detach()) <= tolerance
    dx = torch.cat([one_grads[0], other_grads[0]])
    assert relative_error(dx, inputs[0].grad) <= 4 * tolerance
    terms = grad.double().abs().sum((0, 2, 3))
    for index in (1, 2):
        total = one_grads[index].double() + other_grads[index]
        assert ((total - inputs[index].grad).abs() / terms).max() <= 1e-6
    size = shape[2] * shape[3]
    mean = means.mean(0)
    m2 = (m2s + size * (means - mean).square()).sum(0)
    for _, got_mean, got_m2, count in (one, other):
        assert float(count) == shape[0] * size
        assert relative_error(got_mean, mean) <= 5e-7
        assert relative_error(got_m2, m2) <= 5e-7


@pytest.mark.parametrize("ops", [ltdd_ext, reference], ids=["compiled", "reference"])
def test_alone_it_is_norm_act(ops):
    x = activation((4, 6, 8, 8)).requires_grad_()
    weight, bias = torch.randn(2, 6, generator=torch.manual_seed(1)).requires_grad_()
    leaves = (x, weight, bias)
    got, mean, _, _ = ops.synced_norm_act(*leaves, lambda own: own[None], pool="avg2")
    want, _, _ = ltdd_ext.norm_act(*leaves, pool="avg2")
    torch.testing.assert_close(got, want)
    assert not mean.requires_grad
    for one, other in zip(
        *(torch.autograd.grad(y.square().sum(), leaves) for y in (got, want)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_refused():
    x = activation((2, 3, 4, 4)).requires_grad_()
    y = ltdd_ext.synced_norm_act(x, torch.ones(3), torch.zeros(3), lambda own: own[None])[0]
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_batch_of_one_value_is_refused():
    with pytest.raises(ValueError, match="synced_norm_act: expected x with several values"):
        ltdd_ext.synced_norm_act(
            torch.ones(1, 3, 1, 1), torch.ones(3), torch.zeros(3), lambda own: own[None]
        )
