"""Every operator is a good citizen: opcheck, gradcheck, torch.compile, threads, backends."""

from __future__ import annotations

import pytest
import torch
from ops.cases import activation, alignment, assert_threads_change_no_bit, laid_out

import ltdd_ext
from ltdd_ext import ClassMoments

OPS = torch.ops.ltdd_ext


def state_arguments(device: str, images: int = 4) -> tuple[torch.Tensor, ...]:
    state = ClassMoments.zeros(3, 5, device)
    mean, m2 = ltdd_ext.row_moments(torch.randn(images, 5, 4, 4, device=device))
    state.update_(mean, m2, 16, torch.arange(images, device=device) % 2)
    return state.state


@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_row_moments(layout, dtype, device):
    x = activation((2, 5, 4, 6), dtype, layout, device).requires_grad_()
    torch.library.opcheck(OPS.row_moments.default, (x,))
    rows = torch.randn(3, 2, 5, device=device).unbind()
    torch.library.opcheck(OPS.row_moments_backward.default, (*rows[:2], x.detach(), rows[2]))


def test_opcheck_class_moments(device):
    mean, m2 = ltdd_ext.row_moments(torch.randn(4, 5, 4, 4, device=device))
    labels = torch.tensor([0, 2, 0, 1], device=device)
    torch.library.opcheck(
        OPS.class_moments_update_.default, (*state_arguments(device), mean, m2, 16, labels)
    )
    torch.library.opcheck(
        OPS.class_moments_merge_.default, (*state_arguments(device), *state_arguments(device, 6))
    )
    filled = state_arguments(device, 6)
    for part in filled:
        part[2] = 1  # NaN rows of empty classes never compare equal
    torch.library.opcheck(OPS.class_moments_finish.default, filled)
    x = torch.randn(4, 5, 4, 4, device=device)
    torch.library.opcheck(OPS.class_moments.default, (x, labels, 3))


@pytest.mark.parametrize("class_weight", [0.0, 0.5])
def test_opcheck_align_loss(class_weight, device):
    case = alignment(device=device, requires_grad=True)
    torch.library.opcheck(OPS.align_loss.default, (*case.arguments(), class_weight))


@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_gradcheck_row_moments(layout, device):
    x = activation((2, 3, 3, 3), torch.float64, layout, device).requires_grad_()
    assert torch.autograd.gradcheck(ltdd_ext.row_moments, (x,))


@pytest.mark.parametrize("name", ["row_moments", "bn_act_moments", "norm_act"])
def test_direct_calls_follow_the_registered_formula(name):
    """With a gradient and without, the same bits as the operator that compilers see."""
    x = activation((2, 5, 4, 6)).requires_grad_()
    k = torch.linspace(0.5, 1.5, 5)
    scale = k.clone().requires_grad_()
    calls = {
        "row_moments": (lambda: ltdd_ext.row_moments(x), lambda: OPS.row_moments(x)),
        "bn_act_moments": (
            lambda: ltdd_ext.bn_act_moments(x, k, k, x),
            lambda: OPS.bn_act_moments(x, k, k, x, 1, 1)[:3],
        ),
        "norm_act": (
            lambda: ltdd_ext.norm_act(x, scale, k, "image", pool="avg2"),
            lambda: OPS.norm_act(x, scale, k, True, 1e-5, 1, 2),
        ),
    }
    results = []
    for call in calls[name]:
        outputs = call()
        loss = sum(out.square().sum() for out in outputs)
        grads = torch.autograd.grad(loss, [x, scale], materialize_grads=True, allow_unused=True)
        with torch.no_grad():
            constant = call()
        assert not any(out.requires_grad for out in constant)
        results.append([*outputs, *constant, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("class_weight", [0.0, 0.5])
def test_gradcheck_align_loss(class_weight, device):
    case = alignment(
        rows=5, channels=(2, 3), dtype=torch.float64, device=device, requires_grad=True
    )
    layers = len(case.means)

    def loss(*rows: torch.Tensor) -> torch.Tensor:
        return ltdd_ext.align_loss(
            rows[:layers], rows[layers:], *case.arguments()[2:], class_weight
        )

    assert torch.autograd.gradcheck(loss, (*case.means, *case.m2s))


def objective(x, labels, target, table, state):
    mean, m2 = ltdd_ext.row_moments(x)
    ltdd_ext.class_moments_update_(*state, mean, m2, 24, labels)
    finished = ltdd_ext.class_moments_finish(*state)
    loss = ltdd_ext.align_loss(
        [mean], [m2], [24], labels, [target], [target], [table], [table], class_weight=0.5
    )
    batch = ltdd_ext.class_moments(x, labels, 3)
    return loss + (finished.mean[labels].sum() + batch.total[labels].sum()).float()


def test_compiles_as_one_graph(device):
    """Forward, backward and the in-place state, without a graph break."""
    x = activation((4, 5, 4, 6), device=device)
    labels = torch.tensor([0, 2, 0, 1], device=device)
    target, table = torch.ones(5, device=device), torch.ones(3, 5, device=device)
    results = []
    for function in (objective, torch.compile(objective, fullgraph=True)):
        state, leaf = state_arguments(device), x.clone().requires_grad_()
        torch.manual_seed(0)
        for part in state:
            part.zero_()
        loss = function(leaf, labels, target, table, state)
        loss.backward()
        results.append([loss.detach(), leaf.grad, *state])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_threads_and_runs_change_no_bit(layout):
    x = activation((6, 70, 30, 30), layout=layout)
    labels = torch.arange(6) % 3
    case = alignment(rows=40, channels=(300, 130), requires_grad=True)

    def results() -> list[torch.Tensor]:
        mean, m2 = ltdd_ext.row_moments(x)
        dx = OPS.row_moments_backward(mean, m2, x, mean)
        state = ClassMoments.zeros(3, 70)
        state.update_(mean, m2, 900, labels)
        loss = ltdd_ext.align_loss(*case.arguments(), 0.5)
        grads = torch.autograd.grad(loss, case.means)
        batch = ltdd_ext.class_moments(x, labels, 3)
        return [mean, m2, dx, *state.state, *state.finish(), *batch, loss, *grads]

    assert_threads_change_no_bit(results)


def test_meta_tensors_have_shapes():
    x = torch.empty(2, 3, 4, 4, device="meta")
    mean, m2 = ltdd_ext.row_moments(x)
    assert mean.shape == m2.shape == (2, 3)
    assert mean.device.type == "meta"


def test_ambiguous_strides_agree():
    """A tensor that is dense both ways (C = 1 or S = 1) gives the same numbers either way."""
    for shape in [(3, 1, 4, 4), (3, 6, 1, 1)]:
        x = activation(shape)
        for one, other in zip(
            ltdd_ext.row_moments(x), ltdd_ext.row_moments(laid_out(x, "pixels")), strict=True
        ):
            assert torch.equal(one, other)


def test_backends_name_every_operator():
    backends = ltdd_ext.backends()
    assert all(devices[:1] == ["cpu"] for devices in backends.values()), backends
    info = ltdd_ext.build_info()
    assert info["torch_target"] == "2.11"
