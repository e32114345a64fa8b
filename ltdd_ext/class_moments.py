"""Per-class statistics of one layer: of one batch, or running ones (update, merge, finish)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import _check

State = tuple[Tensor, Tensor, Tensor, Tensor]


class FinishedMoments(NamedTuple):
    """Statistics of every class, all (K, C) float64; NaN in the rows of classes never seen."""

    mean: Tensor
    within: Tensor
    between: Tensor
    total: Tensor


def check_state(op: str, state: State, prefix: str = "") -> None:
    """Refuse a state that is not (int64 [K], float64 [K, C] three times), contiguous."""
    mu = state[1]
    _check.tensor(op, prefix + "mu", mu)
    if mu.dim() != 2:
        _check.bad_value(op, prefix + "mu", "of shape (K, C)", tuple(mu.shape))
    table, device = tuple(mu.shape), mu.device
    for name, part in zip(("count", "mu", "within", "between"), state, strict=True):
        if name == "count":
            _check.fits(op, prefix + name, part, (torch.int64,), table[:1], device)
        else:
            _check.fits(op, prefix + name, part, (torch.float64,), table, device)
        if not part.is_contiguous():
            _check.bad_value(op, prefix + name, "contiguous", f"strides {tuple(part.stride())}")


def check_update(
    op: str, state: State, mean: Tensor, m2: Tensor, spatial_size: int, labels: Tensor
) -> None:
    """Refuse rows, a size or labels that do not fit the state.

    The range of the labels is left to :func:`_check.label_range`.
    """
    check_state(op, state)
    mu = state[1]
    _check.tensor(op, "mean", mean)
    _check.dtype_in(op, "mean", mean, (torch.float32, torch.float64))
    if mean.dim() != 2 or mean.shape[1] != mu.shape[1]:
        _check.bad_value(op, "mean", f"of shape (N, {mu.shape[1]})", tuple(mean.shape))
    _check.same_device(op, "mean", mean, mu.device)
    _check.fits(op, "m2", m2, (mean.dtype,), tuple(mean.shape), mu.device)
    _check.whole(op, "spatial_size", spatial_size, 1)
    _check.labels(op, labels, mean.shape[0], mu.device)


def check_batch(op: str, x: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse an activation without pixels, or labels or classes that cannot belong to it."""
    _check.activation(op, "x", x)
    if 0 in x.shape[2:]:
        _check.bad_value(op, "x", "with at least one pixel", tuple(x.shape))
    _check.labels(op, labels, x.shape[0], x.device)
    _check.whole(op, "num_classes", num_classes, 1)


def class_moments(x: Tensor, labels: Tensor, num_classes: int) -> FinishedMoments:
    """Compute the statistics of every class in one batch.

    With m_i and v_i the mean and the biased variance of image i in a channel, and n_k images of
    class k::

        mean[k]    = sum_{i in k} m_i / n_k
        within[k]  = sum_{i in k} v_i / n_k
        between[k] = sum_{i in k} (m_i - mean[k])^2 / n_k
        total[k]   = within[k] + between[k]

    One call for :func:`row_moments`, :func:`class_moments_update_` on an empty state and
    :func:`class_moments_finish`, with the same bits. Data that come in batches need those three.

    Args:
        x: Activation (N, C, H, W) or (N, C, S), float32, bfloat16, float16 or float64, contiguous
            or channels_last (read as it lies; other strides are copied first).
        labels: Class of each sample, int64 (N,), in [0, K).
        num_classes: K >= 1.

    Returns:
        ``mean``, ``within``, ``between``, ``total``, each (K, C) float64; NaN in the rows of
        classes that the batch does not have.

    Raises:
        TypeError: A dtype is another.
        ValueError: A shape, device, label or the number of classes does not fit.

    Note:
        Not differentiable: the result is a constant. Deterministic. On a GPU, labels are looked at
        once; where that cannot be (in a graph under capture), one out of range makes all of the
        result NaN.

    Example:
        >>> import torch, ltdd_ext
        >>> x = torch.randn(8, 3, 4, 4)
        >>> ltdd_ext.class_moments(x, torch.arange(8) % 2, 2).total.shape
        torch.Size([2, 3])
    """
    op = "class_moments"
    check_batch(op, x, labels, num_classes)
    if labels.is_cuda:
        _check.label_range(op, labels, num_classes)
    return FinishedMoments(
        *torch.ops.ltdd_ext.class_moments.default(x.detach(), labels, num_classes)
    )


def class_moments_update_(
    count: Tensor,
    mu: Tensor,
    within: Tensor,
    between: Tensor,
    mean: Tensor,
    m2: Tensor,
    spatial_size: int,
    labels: Tensor,
) -> None:
    """Add the images of a batch to the statistics of their classes, in place.

    For each image i of class y, in order, with mean m_i and variance v_i = m2_i / S per channel::

        count[y] += 1
        delta     = m_i - mu[y]
        mu[y]     = mu[y] + delta / count[y]
        between[y] += delta * (m_i - mu[y])
        within[y]  += v_i

    Over a batch of B images this is the dynamic momentum alpha = B / (N + B) (arXiv:2511.18858,
    Eq. 8) for the mean. Deviation: the published update of the variance drops
    ``alpha (1 - alpha) (mu_batch - mu)^2``; here it is kept, so the result is the exact statistic
    of all images seen.

    Args:
        count: Images seen, int64 (K,).
        mu: Mean over images of the image mean, float64 (K, C).
        within: Sum over images of the image variance, float64 (K, C).
        between: Sum over images of ``(image mean - mu)^2``, float64 (K, C).
        mean: Row means of the batch, (N, C), float32 or float64.
        m2: Row sums of squared deviations, (N, C), same dtype.
        spatial_size: Elements per row, S = H*W >= 1.
        labels: Class of each sample, int64 (N,), in [0, K).

    Raises:
        TypeError: A dtype is another.
        ValueError: A shape, device, label or the size does not fit.

    Note:
        Not differentiable. Deterministic, and how the images were cut into batches changes no bit
        of the result on one kind of device; their order changes rounding only.
    """
    op = "class_moments_update_"
    state = (count, mu, within, between)
    check_update(op, state, mean, m2, spatial_size, labels)
    if labels.is_cuda:
        _check.label_range(op, labels, mu.shape[0])
    torch.ops.ltdd_ext.class_moments_update_.default(
        *state, mean.detach(), m2.detach(), spatial_size, labels
    )


def class_moments_merge_(
    count: Tensor,
    mu: Tensor,
    within: Tensor,
    between: Tensor,
    other_count: Tensor,
    other_mu: Tensor,
    other_within: Tensor,
    other_between: Tensor,
) -> None:
    """Add the images of another state (a shard, a process) to the first one, in place.

    Args:
        count: First state as in :func:`class_moments_update_`; ``mu``, ``within``, ``between`` too.
        mu: See ``count``.
        within: See ``count``.
        between: See ``count``.
        other_count: Second state, same shapes and device, left as it is; the rest likewise.
        other_mu: See ``other_count``.
        other_within: See ``other_count``.
        other_between: See ``other_count``.

    Raises:
        TypeError: A dtype is another.
        ValueError: The states differ in K, C or device.

    Note:
        Not differentiable. Deterministic: merging in the same order gives the same bits.
    """
    op = "class_moments_merge_"
    state = (count, mu, within, between)
    other = (other_count, other_mu, other_within, other_between)
    check_merge(op, state, other)
    torch.ops.ltdd_ext.class_moments_merge_.default(*state, *other)


def check_merge(op: str, state: State, other: State) -> None:
    """Refuse two states of different K, C or device."""
    check_state(op, state)
    check_state(op, other, "other_")
    _check.shape(op, "other_mu", other[1], tuple(state[1].shape))
    _check.same_device(op, "other_mu", other[1], state[1].device)


def class_moments_finish(
    count: Tensor, mu: Tensor, within: Tensor, between: Tensor
) -> FinishedMoments:
    """Turn sums into statistics: mean, within-image, between-image and total variance per class.

    ``within / count``, ``between / count`` and their sum, which is the biased variance over all
    pixels of all images of the class (images of equal size).

    Args:
        count: State as in :func:`class_moments_update_`; ``mu``, ``within``, ``between`` too.
        mu: See ``count``.
        within: See ``count``.
        between: See ``count``.

    Returns:
        ``mean``, ``within``, ``between``, ``total``, each (K, C) float64. Rows of classes with
        ``count == 0`` are NaN: ask ``count`` before using them.

    Raises:
        TypeError: A dtype is another.
        ValueError: The shapes or devices differ.

    Note:
        Not differentiable: the result is a constant. Deterministic.
    """
    state = (count, mu, within, between)
    check_state("class_moments_finish", state)
    return FinishedMoments(*torch.ops.ltdd_ext.class_moments_finish.default(*state))


@dataclass(eq=False)
class ClassMoments:
    """Per-class statistics of one layer, as four tensors that can be saved as they are.

    Attributes:
        count: Images seen of each class, int64 (K,).
        mu: Mean over images of the image mean, float64 (K, C).
        within: Sum over images of the image variance, float64 (K, C).
        between: Sum over images of ``(image mean - mu)^2``, float64 (K, C).

    Note:
        Not differentiable: the statistics are constants.

    Example:
        >>> import torch, ltdd_ext
        >>> state = ltdd_ext.ClassMoments.zeros(num_classes=2, channels=3)
        >>> x = torch.randn(8, 3, 4, 4)
        >>> state.update_(*ltdd_ext.row_moments(x), 16, torch.arange(8) % 2)
        >>> state.finish().total.shape
        torch.Size([2, 3])
    """

    count: Tensor
    mu: Tensor
    within: Tensor
    between: Tensor

    @classmethod
    def zeros(
        cls, num_classes: int, channels: int, device: torch.device | str = "cpu"
    ) -> ClassMoments:
        """Return the state before any image; K and C are 1 or more."""
        _check.whole("ClassMoments.zeros", "num_classes", num_classes, 1)
        _check.whole("ClassMoments.zeros", "channels", channels, 1)
        parts = [
            torch.zeros(num_classes, channels, dtype=torch.float64, device=device) for _ in range(3)
        ]
        return cls(torch.zeros(num_classes, dtype=torch.int64, device=device), *parts)

    @property
    def state(self) -> State:
        """The four tensors in the order of the functional forms."""
        return (self.count, self.mu, self.within, self.between)

    def update_(self, mean: Tensor, m2: Tensor, spatial_size: int, labels: Tensor) -> None:
        """Add a batch; see :func:`class_moments_update_`."""
        class_moments_update_(*self.state, mean, m2, spatial_size, labels)

    def merge_(self, other: ClassMoments) -> None:
        """Add the images of another state; see :func:`class_moments_merge_`."""
        if not isinstance(other, ClassMoments):
            _check.bad_type("ClassMoments.merge_", "other", "a ClassMoments", type(other).__name__)
        class_moments_merge_(*self.state, *other.state)

    def finish(self) -> FinishedMoments:
        """Return the statistics; see :func:`class_moments_finish`."""
        return class_moments_finish(*self.state)


def _fake(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = x.new_empty((num_classes, x.shape[1]), dtype=torch.float64)
    return _fake_finish(labels, table, table, table)


def _fake_update(
    count: Tensor,
    mu: Tensor,
    within: Tensor,
    between: Tensor,
    mean: Tensor,
    m2: Tensor,
    spatial_size: int,
    labels: Tensor,
) -> None:
    return None


def _fake_merge(
    count: Tensor,
    mu: Tensor,
    within: Tensor,
    between: Tensor,
    other_count: Tensor,
    other_mu: Tensor,
    other_within: Tensor,
    other_between: Tensor,
) -> None:
    return None


def _fake_finish(
    count: Tensor, mu: Tensor, within: Tensor, between: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(mu),
        torch.empty_like(mu),
        torch.empty_like(mu),
        torch.empty_like(mu),
    )


torch.library.register_fake("ltdd_ext::class_moments", _fake)
torch.library.register_fake("ltdd_ext::class_moments_update_", _fake_update)
torch.library.register_fake("ltdd_ext::class_moments_merge_", _fake_merge)
torch.library.register_fake("ltdd_ext::class_moments_finish", _fake_finish)
