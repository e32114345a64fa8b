"""class_moments_* against direct float64 statistics, and what must not change them."""

from __future__ import annotations

import pytest
import torch
from ops.cases import activation, relative_error

import ltdd_ext
from ltdd_ext import ClassMoments, _check, reference

CLASSES, CHANNELS, SIZE = 6, 70, 20


def data(device: str, images: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """Long-tailed: class 4 has one image, class 5 none."""
    x = activation((images, CHANNELS, 4, 5), device=device)
    labels = torch.arange(images, device=device).remainder(4)
    labels[images // 2] = 4
    return x, labels


def collect(x, labels, batches, device, api=ltdd_ext) -> ClassMoments:
    state = ClassMoments.zeros(CLASSES, CHANNELS, device)
    for index in batches:
        mean, m2 = ltdd_ext.row_moments(x[index])
        api.class_moments_update_(*state.state, mean, m2, SIZE, labels[index])
    return state


def direct(x: torch.Tensor, labels: torch.Tensor, label: int) -> list[torch.Tensor]:
    rows = x[labels == label].double().flatten(2)
    image_mean, image_var = rows.mean(2), rows.var(2, unbiased=False)
    mean, within = image_mean.mean(0), image_var.mean(0)
    between = image_mean.var(0, unbiased=False)
    total = rows.transpose(0, 1).flatten(1).var(1, unbiased=False)
    return [mean, within, between, total]


@pytest.mark.parametrize("api", [ltdd_ext, reference], ids=["compiled", "reference"])
def test_matches_direct_statistics(api, device):
    x, labels = data(device)
    state = collect(x, labels, torch.arange(90, device=device).split(32), device, api)
    assert state.count.tolist() == torch.bincount(labels, minlength=CLASSES).tolist()
    finished = api.class_moments_finish(*state.state)
    for label in range(5):
        for got, want in zip(finished, direct(x, labels, label), strict=True):
            if want.abs().max() > 0:
                assert relative_error(got[label], want) <= 5e-7
    assert all(bool(part[5].isnan().all()) for part in finished)
    assert bool((finished.between[4] == 0).all())


@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(90, CHANNELS, 4, 5), (40, 7, 20)], ids=str)
def test_one_call_has_the_bits_of_three(shape, dtype, layout, device):
    x = activation(shape, dtype, layout, device)
    labels = torch.arange(shape[0], device=device).square().remainder(CLASSES - 1)
    state = ClassMoments.zeros(CLASSES, shape[1], device)
    state.update_(*ltdd_ext.row_moments(x), SIZE, labels)
    got = ltdd_ext.class_moments(x.requires_grad_(), labels, CLASSES)
    assert not got.total.requires_grad
    wanted = reference.class_moments(x, labels, CLASSES)
    for one, three, plain in zip(got, state.finish(), wanted, strict=True):
        assert torch.equal(one.nan_to_num(-1), three.nan_to_num(-1))
        torch.testing.assert_close(one, plain, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1]}, TypeError, "x a torch.Tensor, got list"),
        ({"x": torch.zeros(4, 3)}, ValueError, "x of shape (N, C, H, W) or (N, C, S), got (4, 3)"),
        (
            {"x": torch.zeros(4, 3, 0, 5)},
            ValueError,
            "x with at least one pixel, got (4, 3, 0, 5)",
        ),
        ({"labels": torch.tensor([0, 1])}, ValueError, "labels of shape (4,), got (2,)"),
        ({"labels": torch.zeros(4)}, TypeError, "labels of dtype int64, got float32"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, ValueError, "labels in [0, 2), got 2"),
        ({"num_classes": 0}, ValueError, "num_classes >= 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("api", [ltdd_ext, reference], ids=["compiled", "reference"])
def test_bad_batch(api, changes, error, message):
    good = {"x": torch.zeros(4, 3, 2, 2), "labels": torch.tensor([0, 1, 1, 0]), "num_classes": 2}
    with pytest.raises(error) as caught:
        api.class_moments(**(good | changes))
    assert str(caught.value) == "class_moments: expected " + message


def test_batch_without_images(device):
    x, labels = torch.zeros(0, 3, 2, 2, device=device), torch.zeros(0, dtype=torch.int64)
    for api in (ltdd_ext, reference):
        finished = api.class_moments(x, labels.to(device), 2)
        assert finished.total.shape == (2, 3)
        assert bool(finished.total.isnan().all())


def test_batch_size_changes_no_bit(device):
    x, labels = data(device)
    order = torch.arange(90, device=device)
    whole = collect(x, labels, [order], device)
    for size in (1, 7, 64):
        cut = collect(x, labels, order.split(size), device)
        for got, want in zip(cut.state, whole.state, strict=True):
            assert torch.equal(got, want)


def test_order_and_shards_agree_to_1e_12(device):
    x, labels = data(device)
    whole = collect(x, labels, [torch.arange(90, device=device)], device).finish()
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(3)).to(device)
    merged = ClassMoments.zeros(CLASSES, CHANNELS, device)
    for shard in shuffled.split(17):
        merged.merge_(collect(x, labels, shard.split(5), device))
    for got, want in zip(merged.finish(), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13, equal_nan=True)


def test_merge_matches_reference_and_leaves_the_other(device):
    x, labels = data(device)
    parts = [collect(x, labels, [torch.arange(a, a + 45, device=device)], device) for a in (0, 45)]
    wanted = ClassMoments(*[part.clone() for part in parts[0].state])
    other = [part.clone() for part in parts[1].state]
    reference.class_moments_merge_(*wanted.state, *parts[1].state)
    parts[0].merge_(parts[1])
    for got, want in zip(parts[0].state, wanted.state, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip(other, parts[1].state, strict=True))


def test_empty_batch_and_empty_state(device):
    state = ClassMoments.zeros(CLASSES, CHANNELS, device)
    none = torch.zeros(0, CHANNELS, device=device)
    state.update_(none, none, SIZE, torch.zeros(0, dtype=torch.int64, device=device))
    state.merge_(ClassMoments.zeros(CLASSES, CHANNELS, device))
    assert int(state.count.sum()) == 0
    assert bool(state.finish().total.isnan().all())


@pytest.mark.parametrize("api", [ltdd_ext, reference], ids=["compiled", "reference"])
def test_nan_stays_in_its_class(api, device):
    x, labels = data(device)
    mean, m2 = ltdd_ext.row_moments(x)
    mean[0, 3] = float("nan")
    state = ClassMoments.zeros(CLASSES, CHANNELS, device)
    api.class_moments_update_(*state.state, mean, m2, SIZE, labels)
    assert int(state.mu.isnan().sum()) == 1
    assert bool(state.mu[labels[0], 3].isnan())


def arguments(**changes: object) -> dict[str, object]:
    """A good call of class_moments_update_, with changes."""
    good = {
        "count": torch.zeros(2, dtype=torch.int64),
        "mu": torch.zeros(2, 3, dtype=torch.float64),
        "within": torch.zeros(2, 3, dtype=torch.float64),
        "between": torch.zeros(2, 3, dtype=torch.float64),
        "mean": torch.zeros(4, 3),
        "m2": torch.zeros(4, 3),
        "spatial_size": 16,
        "labels": torch.tensor([0, 1, 1, 0]),
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 0])}, ValueError, "labels in [0, 2), got 2"),
        ({"labels": torch.tensor([0, -1, 1, 0])}, ValueError, "labels in [0, 2), got -1"),
        ({"labels": torch.tensor([9, 2, -1, -3])}, ValueError, "labels in [0, 2), got -3"),
        ({"labels": torch.tensor([0, 1])}, ValueError, "labels of shape (4,), got (2,)"),
        (
            {"labels": torch.zeros(4, dtype=torch.int32)},
            TypeError,
            "labels of dtype int64, got int32",
        ),
        ({"spatial_size": 0}, ValueError, "spatial_size >= 1, got 0"),
        ({"mean": torch.zeros(4, 5)}, ValueError, "mean of shape (N, 3), got (4, 5)"),
        ({"m2": torch.zeros(3, 3)}, ValueError, "m2 of shape (4, 3), got (3, 3)"),
        (
            {"m2": torch.zeros(4, 3, dtype=torch.float64)},
            TypeError,
            "m2 of dtype float32, got float64",
        ),
        (
            {"count": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            "count of shape (2,), got (3,)",
        ),
        ({"mu": torch.zeros(2, 3)}, TypeError, "mu of dtype float64, got float32"),
        (
            {"within": torch.zeros(3, 2, dtype=torch.float64).t()},
            ValueError,
            "within contiguous, got strides (1, 2)",
        ),
        ({"labels": None}, TypeError, "labels a torch.Tensor, got NoneType"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("api", [ltdd_ext, reference], ids=["compiled", "reference"])
def test_bad_update(api, changes, error, message):
    call = arguments(**changes)
    before = {name: value.clone() for name, value in call.items() if torch.is_tensor(value)}
    with pytest.raises(error) as caught:
        api.class_moments_update_(**call)
    assert str(caught.value) == "class_moments_update_: expected " + message
    for name, value in before.items():
        assert torch.equal(call[name], value)


def test_bad_merge_and_unchecked_call():
    state, other = ClassMoments.zeros(2, 3), ClassMoments.zeros(2, 4)
    with pytest.raises(ValueError, match=r"expected other_mu of shape \(2, 3\), got \(2, 4\)"):
        state.merge_(other)
    with pytest.raises(ValueError, match=r"labels in \[0, 2\), got 9"):
        torch.ops.ltdd_ext.class_moments_update_(
            *state.state, torch.zeros(1, 3), torch.zeros(1, 3), 16, torch.tensor([9])
        )
    assert int(state.count.sum()) == 0


class OnAGpu(torch.Tensor):
    """Labels that say they lie on a GPU and count how often they are read from there."""

    is_cuda = True
    read = 0

    def cpu(self) -> torch.Tensor:
        OnAGpu.read += 1
        return self.as_subclass(torch.Tensor)


def test_labels_on_a_gpu_are_read_once_for_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    labels = torch.tensor([0, 3, 1]).as_subclass(OnAGpu)
    OnAGpu.read = 0
    for _ in range(3):
        _check.label_range("op", labels, 4)
    assert OnAGpu.read == 1
    _check.label_range("op", labels, 5)
    assert OnAGpu.read == 2
    for _ in range(2):
        with pytest.raises(ValueError, match=r"labels in \[0, 3\), got 3"):
            _check.label_range("op", labels, 3)
    labels.add_(1)
    with pytest.raises(ValueError, match=r"labels in \[0, 4\), got 4"):
        _check.label_range("op", labels, 4)
