"""align_loss against float64 autograd of the reference, and its corner cases."""

from __future__ import annotations

import pytest
import torch
from ops.cases import alignment, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

import ltdd_ext
from ltdd_ext import reference

CLASS_WEIGHTS = [0.0, 0.7]


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS)
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loss_and_gradient_match_float64(dtype, rows, class_weight, device):
    case = alignment(rows, dtype=dtype, device=device, requires_grad=True)
    loss = ltdd_ext.align_loss(*case.arguments(), class_weight)
    (3.0 * loss).backward()

    exact = alignment(rows, dtype=torch.float64, requires_grad=True)
    for have, want in zip(case.means + case.m2s, exact.means + exact.m2s, strict=True):
        want.data = have.detach().cpu().double()
    for name in ("global_means", "global_vars", "class_means", "class_vars"):
        for have, want in zip(getattr(case, name), getattr(exact, name), strict=True):
            want.copy_(have)
    wanted = reference.align_loss(*exact.arguments(), class_weight)
    (3.0 * wanted).backward()
    assert loss.dtype == dtype
    assert loss.dim() == 0
    assert relative_error(loss.detach(), wanted.detach()) <= 5e-7
    for have, want in zip(case.means + case.m2s, exact.means + exact.m2s, strict=True):
        assert relative_error(have.grad, want.grad) <= 5e-7


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS)
def test_equals_statistics_of_the_pixels(class_weight, device):
    """Through row_moments, the loss is that of the mean and variance over N, H, W."""
    x = torch.randn(6, 5, 4, 4, device=device)
    labels = torch.tensor([0, 2, 2, 0, 0, 2], device=device)
    target = [torch.randn(5, device=device), torch.rand(5, device=device)]
    tables = [torch.randn(3, 5, device=device), torch.rand(3, 5, device=device)]
    mean, m2 = ltdd_ext.row_moments(x)
    got = ltdd_ext.align_loss(
        [mean], [m2], [16], labels, target[:1], target[1:], tables[:1], tables[1:],
        class_weight=class_weight,
    )  # fmt: skip

    def gap(pixels, to_mean, to_var):
        var, mean = torch.var_mean(pixels, [0, 2, 3], correction=0)
        return (mean - to_mean).norm() + (var - to_var).norm()

    want = gap(x, *target)
    for label in (0, 2):
        own = gap(x[labels == label], tables[0][label], tables[1][label])
        want = want + class_weight / 2 * own
    torch.testing.assert_close(got, want.double(), rtol=2e-6, atol=2e-6)


def test_gradient_of_a_norm_at_zero_is_zero(device):
    mean = torch.zeros(4, 3, device=device, requires_grad=True)
    m2 = torch.full((4, 3), 8.0, device=device, requires_grad=True)
    labels = torch.zeros(4, dtype=torch.int64, device=device)
    target_mean, target_var = torch.zeros(3, device=device), torch.full((3,), 2.0, device=device)
    loss = ltdd_ext.align_loss([mean], [m2], [4], labels, [target_mean], [target_var])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert mean.grad is not None
    assert m2.grad is not None
    assert not mean.grad.any()
    assert not m2.grad.any()


@pytest.mark.parametrize("api", [ltdd_ext, reference], ids=["compiled", "reference"])
def test_nan_reaches_the_loss(api, device):
    case = alignment(device=device)
    case.means[1][2, 3] = float("nan")
    assert bool(api.align_loss(*case.arguments(), 1.0).isnan())


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS)
def test_empty_batch_is_nan(class_weight, device):
    case = alignment(rows=0, device=device)
    assert bool(ltdd_ext.align_loss(*case.arguments(), class_weight).isnan())


def test_targets_of_another_dtype(device):
    case = alignment(device=device)
    narrow = ltdd_ext.align_loss(*case.arguments(), 1.0)
    wide = [
        [part.double() for part in group]
        for group in (case.global_means, case.global_vars, case.class_means, case.class_vars)
    ]
    got = ltdd_ext.align_loss(
        case.means, case.m2s, case.sizes, case.labels, *wide, case.weights, 1.0
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, narrow)


def test_more_layers_than_one_launch_may_hold(device):
    case = alignment(rows=3, channels=(5,) * 150, device=device)
    got = ltdd_ext.align_loss(*case.arguments(), 0.5)
    torch.testing.assert_close(
        got, reference.align_loss(*case.arguments(), 0.5), rtol=5e-6, atol=0.0
    )


@pytest.mark.parametrize("api", [ltdd_ext, reference], ids=["compiled", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.means.clear(), ValueError, "means to hold at least one layer, got 0"),
        (lambda c: c.m2s.pop(), ValueError, "m2s to hold 2 entries, one per layer, got 1"),
        (lambda c: c.sizes.append(1), ValueError, "sizes to hold 2 entries, one per layer, got 3"),
        (lambda c: c.sizes.__setitem__(1, 0), ValueError, "sizes[1] >= 1, got 0"),
        (lambda c: c.labels.fill_(4), ValueError, "labels in [0, 4), got 4"),
        (
            lambda c: c.global_vars.__setitem__(1, torch.zeros(71)),
            ValueError,
            "global_vars[1] of shape (70,), got (71,)",
        ),
        (
            lambda c: c.class_means.__setitem__(1, torch.zeros(3, 70)),
            ValueError,
            "class_means[1] of shape (4, 70), got (3, 70)",
        ),
        (
            lambda c: c.m2s.__setitem__(0, c.m2s[0].double()),
            TypeError,
            "m2s[0] of dtype float32, got float64",
        ),
        (
            lambda c: c.means.__setitem__(0, c.means[0].bfloat16()),
            TypeError,
            "means of dtype float32 or float64, got bfloat16",
        ),
        (lambda c: c.class_vars.clear(), ValueError,
         "class_vars to hold 2 entries, one per layer, got 0"),
    ],
)  # fmt: skip
def test_bad_arguments(api, change, error, message):
    case = alignment()
    change(case)
    with pytest.raises(error) as caught:
        api.align_loss(*case.arguments(), 1.0)
    assert str(caught.value) == "align_loss: expected " + message


def test_the_gradients_of_all_layers_are_scaled_by_one_operation() -> None:
    case = alignment(channels=(3, 70, 5, 64, 9), requires_grad=True)
    loss = ltdd_ext.align_loss(*case.arguments(), class_weight=0.5)

    operations = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operations.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.autograd.grad(loss, [*case.means, *case.m2s], torch.tensor(2.0))
    assert operations.count("aten._foreach_mul.Tensor") == 1
    assert not [name for name in operations if name.startswith("aten.mul")]
