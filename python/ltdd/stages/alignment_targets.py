"""Class-balanced statistics of the observer's layers, and the targets recovery aims at.

Letters: K classes, C channels of a layer, m images of a class in a batch. The variance of a class
is ``var_k = W_k + B_k``: W the mean over images of the variance inside an image, B the variance
over images of the image mean. V is the variance of the class means over classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ltdd.config import StatisticsConfig


@dataclass(frozen=True)
class LayerStatistics:
    """Class statistics of the input of one layer; float64, on the CPU.

    C counts channels, or the places of patches.

    Attributes:
        count: int64 (K,), images seen per class.
        mean: (K, C), mu_k.
        within: (K, C), W_k.
        between: (K, C), B_k.
        running_mean: (C,), the checkpoint's own, image-weighted; of convolutions `pooled_moments`.
        running_var: (C,), likewise.
    """

    count: Tensor
    mean: Tensor
    within: Tensor
    between: Tensor
    running_mean: Tensor
    running_var: Tensor

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the fields under ``<prefix>.<field>``, for storage."""
        return {f"{prefix}.{spec.name}": getattr(self, spec.name) for spec in fields(self)}

    @classmethod
    def from_tensors(cls, prefix: str, tensors: Mapping[str, Tensor]) -> LayerStatistics:
        """Undo `tensors`."""
        return cls(**{spec.name: tensors[f"{prefix}.{spec.name}"] for spec in fields(cls)})


def pooled_moments(
    count: Tensor, mean: Tensor, within: Tensor, between: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C,) of all images together: ``mean_j x``, ``var_j x``.

    Args:
        count: int64 (K,), images of every class.
        mean, within, between: (K, C), mu_k, W_k, B_k.
    """
    share = (count.double() / count.sum())[:, None]
    whole = (share * mean).sum(0)
    return whole, (share * (within + between + (mean - whole).square())).sum(0)


@dataclass(frozen=True)
class LayerTargets:
    """Targets of one layer for one composition of a batch; float32.

    Attributes:
        mean, var: (C,), of the whole batch.
        class_mean, class_var: (K, C), of the images of each class.
    """

    mean: Tensor
    var: Tensor
    class_mean: Tensor
    class_var: Tensor


def layer_targets(
    statistics: LayerStatistics, images_per_class: Tensor, config: StatisticsConfig
) -> LayerTargets:
    """Return the statistics that a batch of the given composition should have.

    With class shares ``pi_k = m_k / sum_j m_j``:

    * mean: ``sum_k pi_k mu_k``
    * ``mixture``: ``sum_k pi_k (W_k + B_k) + sum_k pi_k (mu_k - mean)^2``, the only variance a
      class-balanced batch can really have
    * ``paper``: ``sum_k pi_k (W_k + B_k)`` (arXiv:2511.18858, Eq. 9); ``edc``: ``sum_k pi_k W_k``
    * ``running``: mean and variance of the checkpoint
    * class-wise ``finite``: ``W_k + (1 - 1/m_k) B_k``, exact in expectation for m_k images;
      ``full``: ``W_k + B_k``; ``edc``: ``W_k``

    Deviation: Eq. 9 averages variances only; without V the target is one that no batch can meet.

    Args:
        statistics: of one layer.
        images_per_class: int64 (K,), m_k, composition of the batch; at least one is positive.
        config: names the two targets.
    """
    share = (images_per_class.double() / images_per_class.sum())[:, None]
    mean = (share * statistics.mean).sum(0)
    within, between = statistics.within, statistics.between
    match config.global_target:
        case "mixture":
            spread = (statistics.mean - mean).square()
            var = (share * (within + between + spread)).sum(0)
        case "paper":
            var = (share * (within + between)).sum(0)
        case "edc":
            var = (share * within).sum(0)
        case "running":
            mean, var = statistics.running_mean, statistics.running_var
    match config.class_target:
        case "finite":
            m = images_per_class.clamp_min(1).double()[:, None]
            class_var = within + (1 - 1 / m) * between
        case "full":
            class_var = within + between
        case "edc":
            class_var = within
    return LayerTargets(mean.float(), var.float(), statistics.mean.float(), class_var.float())


def batch_targets(
    statistics: Sequence[LayerStatistics], labels: Tensor, config: StatisticsConfig
) -> list[LayerTargets]:
    """Return the targets of every layer for a batch with these labels (int64 (N,))."""
    num_classes = len(statistics[0].count)
    images_per_class = torch.bincount(labels.cpu(), minlength=num_classes)
    return [layer_targets(layer, images_per_class, config) for layer in statistics]
