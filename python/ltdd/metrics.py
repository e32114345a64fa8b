"""Accuracy overall, per class and per group of classes; mean and spread over several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltdd.data.long_tail import accuracy_groups

GROUPS = ("head", "medium", "tail", "many_shot", "medium_shot", "few_shot")
SCALARS = ("accuracy", *GROUPS)

Report = dict[str, Any]


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count test images by true and predicted class.

    Args:
        predictions: int64 (N,) predicted classes, 0..K-1.
        labels: int64 (N,) true classes, 0..K-1.
        num_classes: K.

    Returns:
        int64 (K, K) on the CPU: rows are true classes, columns are predictions.

    Raises:
        ValueError: shapes differ, or a class is out of range.
    """
    if predictions.shape != labels.shape or predictions.dim() != 1:
        raise ValueError(
            f"confusion_matrix: expected predictions and labels of one shape (N,), got "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    for name, values in (("predictions", predictions), ("labels", labels)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(
                f"confusion_matrix: expected {name} in 0..{num_classes - 1}, got "
                f"{int(values.min())}..{int(values.max())}"
            )
    cells = labels.cpu() * num_classes + predictions.cpu()
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy_report(predictions: Tensor, labels: Tensor, counts: Sequence[int]) -> Report:
    """Return top-1 accuracies as fractions of 1.

    A group's accuracy is the mean of its classes' accuracies, so on a balanced test set it is the
    fraction of the group's images that are right. Groups are those of `accuracy_groups`: thirds of
    the classes by training images, and many, medium and few shot.

    Args:
        predictions: int64 (N,) predicted classes.
        labels: int64 (N,) true classes; every class occurs.
        counts: Training images of every class.

    Returns:
        `accuracy` over all images; `per_class`, K floats; and one value per group of `GROUPS`,
        None when no class belongs to it.

    Raises:
        ValueError: shapes differ, a class is out of range, or a class has no test image.
    """
    confusion = confusion_matrix(predictions, labels, len(counts)).double()
    totals = confusion.sum(dim=1)
    if float(totals.min()) == 0:
        raise ValueError(
            f"accuracy_report: expected test images of every class, got none of class "
            f"{int(totals.argmin())}"
        )
    per_class = (confusion.diagonal() / totals).tolist()
    groups = accuracy_groups(counts)
    report: Report = {
        "accuracy": float(confusion.trace() / totals.sum()),
        "per_class": per_class,
    }
    for name in GROUPS:
        members = getattr(groups, name)
        report[name] = sum(per_class[c] for c in members) / len(members) if members else None
    return report


def summarize(reports: Sequence[Mapping[str, Any]]) -> Report:
    """Summarise the reports of several networks on the same test set.

    Args:
        reports: One result of `accuracy_report` per network.

    Returns:
        For `accuracy` and every group `{"mean", "std", "n"}` with the sample standard deviation
        (0 for one network), or None for an empty group; `per_class` holds means.

    Raises:
        ValueError: no reports.
    """
    if not reports:
        raise ValueError("summarize: expected at least one report, got none")
    summary: Report = {}
    for name in SCALARS:
        values = [report[name] for report in reports]
        summary[name] = None if values[0] is None else _mean_and_std(values)
    per_class = torch.tensor([report["per_class"] for report in reports], dtype=torch.float64)
    summary["per_class"] = per_class.mean(dim=0).tolist()
    return summary


def _mean_and_std(values: Sequence[float]) -> dict[str, float | int]:
    exact = torch.tensor(values, dtype=torch.float64)
    spread = float(exact.std()) if len(values) > 1 else 0.0
    return {"mean": float(exact.mean()), "std": spread, "n": len(values)}
