"""What a GPU keeps of a forward pass: where the ReLU behind a residual passed, where maxima lie.

Its kernels are called for by shape and device alone, so most of this needs none: what they would be
called with is looked at, and their answers are given in Python.
"""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
import torch.nn.functional as F
from ops.cases import DTYPES, ROUNDING, activation, coefficients, laid_out, relative_error
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ltdd_ext
from ltdd_ext import reference
from ltdd_ext.bn_act_moments import _takes_max_pool, bn_act_moments_shared

# --- where the ReLU passed, kept for a backward pass on a GPU ---


class KeepsWhatPassed(TorchDispatchMode):
    """Answers as the kernels of a GPU: with what passed, and to it in place of a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.read = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ltdd_ext.bn_act_moments.default:
            y, mean, m2, passed = function(*args)
            if len(args) > 6 and args[6] and args[3] is not None:
                self.kept += 1
                passed = (y > 0).to(torch.uint8)  # a byte an element will do here
            return y, mean, m2, passed
        if function is torch.ops.ltdd_ext.bn_act_moments_backward.default and len(args) > 11:
            grads, (x, k, h, residual), rest, passed = args[:3], args[3:7], args[7:11], args[11]
            self.read += 1
            assert residual is None
            decides = torch.where(passed > 0, 1e3, -1e3).to(x).expand_as(x)
            return function(*grads, x, k, h, decides.contiguous(), *rest)
        return function(*args, **(kwargs or {}))


def shared_once(*inputs):
    y, shortcut, mean, m2 = bn_act_moments_shared(*inputs)
    return y + shortcut.square(), mean, m2


@pytest.mark.parametrize("call", [ltdd_ext.bn_act_moments, shared_once], ids=["one", "two"])
@pytest.mark.parametrize("order", [1, 2])
def test_what_passed_stands_for_the_residual(call, order):
    x, residual = (activation((2, 8, 4, 5), torch.float64, seed=seed) for seed in (0, 1))
    k, h = coefficients(8, torch.float64, "cpu")
    results, mode = [], KeepsWhatPassed()
    for context in (contextlib.nullcontext(), mode):
        with context:
            own = [one.clone().requires_grad_() for one in (x, residual)]
            loss = sum(out.square().sum() for out in call(*own[:1], k, h, own[1], "relu"))
            grads = torch.autograd.grad(loss, own, create_graph=order == 2)
            if order == 2:
                grads = torch.autograd.grad(sum(one.sin().sum() for one in grads), own)
            results.append(grads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (mode.kept, mode.read) == (1, 1)


def test_what_passed_is_kept_for_a_gradient_alone():
    x, residual = (activation((2, 8, 4, 5), seed=seed) for seed in (0, 1))
    k, h = coefficients(8, torch.float32, "cpu")
    for wants, kept in ((None, 0), (x, 1), (residual, 1)):
        if wants is not None:
            wants.requires_grad_()
        with KeepsWhatPassed() as mode:
            ltdd_ext.bn_act_moments(x, k, h, residual)
            bn_act_moments_shared(x, k, h, residual, "relu")
            with torch.no_grad():
                ltdd_ext.bn_act_moments(x, k, h, residual)
                bn_act_moments_shared(x, k, h, residual, "relu")
        assert mode.kept == 2 * kept


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 4 * 5 * 7),  # a byte for four numbers of float32
        ({"dtype": torch.bfloat16}, 2 * 5 * 7),
        ({"dtype": torch.float64}, 0),
        ({"channels": 3}, 0),
        ({"act": 0}, 0),
        ({"pool": 2}, 0),
        ({"residual": False}, 0),
        ({"keep": False}, 0),
        ({"pool": 3, "residual": False}, 2 * 8 * 3 * 4),  # a position for each output
        ({"pool": 3, "residual": False, "keep": False}, 0),
        ({"device": "cpu"}, 0),
    ],
    ids=str,
)
def test_bytes_of_what_passed(changes, count):
    """As compilers see them, of NHWC."""
    case = {"dtype": torch.float32, "channels": 8, "act": 1, "pool": 1, "device": "cuda"}
    case |= {"residual": True, "keep": True} | changes
    with FakeTensorMode():
        x = torch.empty(2, case["channels"], 5, 7, dtype=case["dtype"], device=case["device"])
        x = x.to(memory_format=torch.channels_last)
        k = x.new_empty(case["channels"])
        given = (x, k, k, x if case["residual"] else None, case["act"], case["pool"], case["keep"])
        passed = torch.ops.ltdd_ext.bn_act_moments(*given)[3]
    assert (passed.dtype, passed.numel()) == (torch.uint8, count)


def test_what_passed_does_not_stand_beside_a_residual(device):
    x, (k, h) = activation((2, 8, 4, 4), device=device), coefficients(8, torch.float32, device)
    y, mean, m2 = ltdd_ext.bn_act_moments(x, k, h, x)
    passed = torch.zeros(64, dtype=torch.uint8, device=device)
    rest = (mean, 1, 1, None, passed)
    with pytest.raises(ValueError, match=r"expected (residual|passed)"):
        torch.ops.ltdd_ext.bn_act_moments_backward(y, mean, m2, x, k, h, x, *rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize(
    "shape", [(2, 8, 9, 6), (3, 40, 7, 7), (1, 3, 4, 4), (8, 64, 32, 32)], ids=str
)
def test_what_passed_gives_the_gradients_of_the_residual(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str
) -> None:
    x, residual = (activation(shape, dtype, layout, device, seed=seed) for seed in (0, 1))
    x.requires_grad_(), residual.requires_grad_()
    k = torch.linspace(0.5, 1.5, shape[1], device=device)
    k = k.double() if dtype == torch.float64 else k
    results = []
    for operator in (ltdd_ext.bn_act_moments, torch.ops.ltdd_ext.bn_act_moments):
        switches = () if operator is ltdd_ext.bn_act_moments else (1, 1)
        outputs = operator(x, k, k, residual, *switches)[:3]
        grads = torch.autograd.grad(outputs, (x, residual), [out.detach() for out in outputs])
        results.append([*outputs, *grads])
    for got, wanted in zip(*results, strict=True):
        assert relative_error(got.detach(), wanted.detach()) <= 1e-6 + ROUNDING[dtype]


# --- the max pool of a network's stem ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    "shape", [(2, 8, 9, 6), (1, 4, 1, 5), (2, 3, 7, 7), (1, 64, 20, 31)], ids=str
)
def test_max_pool_matches_float64(shape, with_residual, act, layout, dtype, device):
    x = activation(shape, dtype, layout, device).requires_grad_()
    residual = activation(shape, dtype, layout, device, seed=1) if with_residual else None
    k, h = coefficients(shape[1], dtype, device)
    outputs = ltdd_ext.bn_act_moments(x, k, h, residual, act, "max3")
    x64 = x.detach().cpu().double().requires_grad_()
    residual64 = None if residual is None else residual.cpu().double()
    given = (x64, k.cpu().double(), h.cpu().double(), residual64, act, "max3")
    wanted = reference.bn_act_moments(*given)
    for got, want, least in zip(outputs, wanted, (ROUNDING[dtype], 0, 0), strict=True):
        assert relative_error(got.detach(), want.detach()) <= 5e-7 + least
    assert outputs[0].stride() == laid_out(outputs[0], layout).stride()
    grads = [torch.randn(out.shape, dtype=torch.float64) for out in outputs]
    (got,) = torch.autograd.grad(
        outputs, x, [one.to(out) for one, out in zip(grads, outputs, strict=True)]
    )
    (want,) = torch.autograd.grad(
        wanted, x64, [one.to(out).cpu().double() for one, out in zip(grads, outputs, strict=True)]
    )
    if dtype in (torch.float32, torch.float64):  # elsewhere rounding makes maxima equal
        assert relative_error(got, want) <= 5e-7


def test_max_pool_of_equal_values_and_of_nan(device):
    x = torch.ones(1, 4, 6, 6, device=device).to(memory_format=torch.channels_last)
    x[0, 1, 3, 3] = float("nan")
    k, leaf = torch.ones(4, device=device), x.requires_grad_()
    y, mean, _ = ltdd_ext.bn_act_moments(leaf, k, 0 * k, pool="max3")
    assert y.isnan().sum() == 4
    assert mean.isnan().tolist() == [[False, True, False, False]]
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    wanted = torch.autograd.grad(F.max_pool2d(F.relu(leaf), 3, 2, 1).sum(), leaf)[0]
    whole = [0, 2, 3]  # the mean of the other channel is no number
    assert torch.equal(grad[:, whole], wanted[:, whole])


class PoolsInKernels(TorchDispatchMode):
    """Answers as the kernels of a GPU, which keep a position for each output."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.read = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ltdd_ext.bn_act_moments.default and args[5] == 3:
            x, k, h = args[:3]
            y, mean, m2, _ = function(x, k, h, None, 1, 1)
            self.kept.append(len(args) > 6 and args[6])
            y, place = F.max_pool2d(y, 3, 2, 1, return_indices=True)
            passed = (place + 1) * (y > 0) if self.kept[-1] else place[:0]
            return y, mean, m2, passed.to(torch.uint8)
        if function is torch.ops.ltdd_ext.bn_act_moments_backward.default and args[9] == 3:
            (grad_y, *rest), (residual, mean, _, _, shortcut, passed) = args[:6], args[6:]
            assert residual is None
            assert shortcut is None
            self.read += 1
            grad = torch.zeros(*rest[2].shape[:2], rest[2][0, 0].numel() + 1).to(grad_y)
            grad.scatter_add_(2, passed.flatten(2).long(), grad_y.flatten(2))
            return function(grad[..., 1:].view_as(rest[2]), *rest, None, mean, 0, 1)
        return function(*args, **(kwargs or {}))


def test_a_gpu_pools_in_its_kernels(monkeypatch):
    """Without a GPU: what its kernels are called with, and what is made of their answers."""
    k, h = coefficients(8, torch.float64, "cpu")
    results, mode = [], PoolsInKernels()
    for inside in (False, True):
        module = sys.modules["ltdd_ext.bn_act_moments"]
        monkeypatch.setattr(module, "_takes_max_pool", lambda _, inside=inside: inside)
        with mode if inside else contextlib.nullcontext():
            x = activation((2, 8, 6, 7), torch.float64).requires_grad_()
            outputs = ltdd_ext.bn_act_moments(x, k, h, pool="max3")
            (grad,) = torch.autograd.grad(sum(one.square().sum() for one in outputs), x)
            with torch.no_grad():
                again = ltdd_ext.bn_act_moments(x, k, h, pool="max3")[0]
            results.append((*outputs, grad, again))
            ltdd_ext.bn_act_moments(x, k, h, x, pool="max3")  # no kernel takes this
            ltdd_ext.bn_act_moments(x, k, h, act="none", pool="max3")
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert (mode.kept, mode.read) == ([True, False], 1)


def test_which_activations_are_pooled_in_kernels():
    with FakeTensorMode():
        x = torch.empty(2, 12, 5, 7, device="cuda")
        pixels = x.to(memory_format=torch.channels_last)
        assert [
            _takes_max_pool(one)
            for one in (x, pixels, pixels[:, :6].contiguous(memory_format=torch.channels_last))
        ] == [False, True, False]
        assert not _takes_max_pool(pixels.double())
        assert not _takes_max_pool(pixels[:0])
        assert _takes_max_pool(pixels.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4, 64, 112, 112), (3, 12, 7, 9), (2, 40, 1, 5)], ids=str)
def test_the_pool_of_a_stem_is_that_of_the_layers(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    x = activation(shape, dtype, "pixels", device).requires_grad_()
    k = torch.linspace(0.5, 1.5, shape[1], device=device)
    y, mean, m2 = ltdd_ext.bn_act_moments(x, k, -k, pool="max3")
    before, *again = ltdd_ext.bn_act_moments(x, k, -k)
    wanted = torch.nn.functional.max_pool2d(before, 3, 2, 1)
    assert torch.equal(y, wanted)
    assert y.stride() == wanted.stride()
    for got, want in zip((mean, m2), again, strict=True):
        assert relative_error(got.detach(), want.detach()) <= 1e-6
    grad = torch.randn_like(y)
    (dx,), (want,) = (torch.autograd.grad(one, x, grad) for one in (y, wanted))
    if dtype == torch.float32:  # elsewhere rounding makes maxima equal
        assert relative_error(dx, want) <= 1e-6
