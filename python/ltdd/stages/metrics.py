"""Accuracy overall, per class and per group of classes; mean and spread over several networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltdd.data.splitting.long_tail import accuracy_groups

THIRDS = ("head", "medium", "tail")
GROUPS = (*THIRDS, "many_shot", "medium_shot", "few_shot")
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


def sparse_rows(matrix: Tensor) -> list[dict[str, int]]:
    """Return the counts (K, L) that are not 0, as JSON holds them: for every row column -> count.

    A thousand classes make a million cells, of which there are at most as many as test images.
    """
    rows: list[dict[str, int]] = [{} for _ in matrix]
    for row, column in matrix.nonzero().tolist():
        rows[row][str(column)] = int(matrix[row, column])
    return rows


def accuracy_report(predictions: Tensor, labels: Tensor, counts: Sequence[int]) -> Report:
    """Return top-1 accuracies as fractions of 1.

    A group's accuracy is the mean of its classes' accuracies, so on a balanced test set it is the
    fraction of the group's images that are right. Groups are those of `accuracy_groups`: thirds of
    the classes by training images, and many, medium and few shot.

    Args:
        predictions: int64 (N,) predicted classes.
        labels: int64 (N,) true classes; those that do not occur are not measured.
        counts: Training images of every class.

    Returns:
        `accuracy` over all images; `per_class`, K floats, None for a class without test images;
        and one value per group of `GROUPS`, None when no measured class belongs to it.

    Raises:
        ValueError: shapes differ, a class is out of range, or there is no test image.
    """
    if not len(labels):
        raise ValueError("accuracy_report: expected test images, got none")
    confusion = confusion_matrix(predictions, labels, len(counts)).double()
    totals = confusion.sum(dim=1)
    right = confusion.diagonal().tolist()
    per_class = [
        correct / total if total else None
        for correct, total in zip(right, totals.tolist(), strict=True)
    ]
    groups = accuracy_groups(counts)
    report: Report = {
        "accuracy": float(confusion.trace() / totals.sum()),
        "per_class": per_class,
    }
    for name in GROUPS:
        report[name] = mean_of(per_class[c] for c in getattr(groups, name))
    return report


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that were measured; None if none was."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def usual_floor(num_classes: int) -> float:
    """Return the accuracy below which a network has probably not learned: a tenth above chance.

    A tenth of the way from chance, ``1 / K`` on a balanced test set, to perfect.
    """
    chance = 1 / num_classes
    return chance + 0.1 * (1 - chance)


def summarize(reports: Sequence[Mapping[str, Any]]) -> Report:
    """Summarise the reports of several networks on the same test set.

    Args:
        reports: One result of `accuracy_report` per network.

    Returns:
        For `accuracy` and every group `{"mean", "std", "n"}` with the sample standard deviation
        (0 for one network), or None for an empty group; `per_class` holds means, and None for
        classes without test images.

    Raises:
        ValueError: no reports.
    """
    if not reports:
        raise ValueError("summarize: expected at least one report, got none")
    summary: Report = {}
    for name in SCALARS:
        values = [report[name] for report in reports]
        summary[name] = None if values[0] is None else _mean_and_std(values)
    classes = zip(*(report["per_class"] for report in reports), strict=True)
    summary["per_class"] = [mean_of(of_networks) for of_networks in classes]
    return summary


def label_robust_score(
    real_hard: Sequence[float],
    distilled_hard: Sequence[float],
    distilled: Sequence[float],
    random: Sequence[float],
    weight: float = 0.5,
) -> Report:
    """Return the label-robust score LRS of DD-Ranking (arXiv:2505.13300).

    ::

        HLR = real_hard - distilled_hard        hard-label recovery, the smaller the better
        IOR = distilled - random                improvement over random images
        LRS = (e^a - e^-1) / (e - e^-1),  a = weight * IOR - (1 - weight) * HLR

    It asks how much of an accuracy comes from the images and not from the teacher's labels.

    Args:
        real_hard: Accuracies, fractions of 1, of networks trained on all real images with class
            labels; one per round, as all that follow.
        distilled_hard: Trained on the distilled images with class labels.
        distilled: Trained on the distilled images as the method wants it.
        random: Trained in the same way on as many random real images, labelled likewise.
        weight: Share of IOR, 0..1.

    Returns:
        `lrs` between 0 and 1, `hlr` and `ior`, each `{"mean", "std", "n"}` over the rounds.

    Raises:
        ValueError: the numbers of rounds differ, or there is none.
    """
    rounds = list(zip(real_hard, distilled_hard, distilled, random, strict=True))
    hlr = [real - hard for real, hard, _, _ in rounds]
    ior = [ours - theirs for _, _, ours, theirs in rounds]
    lrs = [_unit(weight * i - (1 - weight) * h) for h, i in zip(hlr, ior, strict=True)]
    return _summaries("label_robust_score", lrs=lrs, hlr=hlr, ior=ior)


def augmentation_robust_score(
    distilled: Sequence[float],
    random: Sequence[float],
    distilled_unaugmented: Sequence[float],
    random_unaugmented: Sequence[float],
    weight: float = 0.5,
) -> Report:
    """Return the augmentation-robust score ARS of DD-Ranking (arXiv:2505.13300).

    ::

        ARS = (e^b - e^-1) / (e - e^-1)
        b = weight * (distilled - random) + (1 - weight) * (the same without augmentation)

    Args:
        distilled: Accuracies, fractions of 1, of networks trained on the distilled images, one per
            round, as all that follow.
        random: Trained in the same way on as many random real images.
        distilled_unaugmented: As `distilled`, without augmentation.
        random_unaugmented: As `random`, without augmentation.
        weight: Share of the augmented difference, 0..1.

    Returns:
        `ars` between 0 and 1, and the differences `augmented` and `unaugmented`, each
        `{"mean", "std", "n"}` over the rounds.

    Raises:
        ValueError: the numbers of rounds differ, or there is none.
    """
    augmented = [ours - theirs for ours, theirs in zip(distilled, random, strict=True)]
    bare = [a - b for a, b in zip(distilled_unaugmented, random_unaugmented, strict=True)]
    pairs = zip(augmented, bare, strict=True)
    ars = [_unit(weight * with_ + (1 - weight) * without) for with_, without in pairs]
    return _summaries("augmentation_robust_score", ars=ars, augmented=augmented, unaugmented=bare)


def _unit(advantage: float) -> float:
    """Map -1..1 to 0..1, steeper towards the top."""
    return (math.exp(advantage) - math.exp(-1)) / (math.e - math.exp(-1))


def _summaries(what: str, **values: Sequence[float]) -> Report:
    if not all(values.values()):
        raise ValueError(f"{what}: expected at least one round, got none")
    return {name: _mean_and_std(rounds) for name, rounds in values.items()}


def _mean_and_std(values: Sequence[float]) -> dict[str, float | int]:
    exact = torch.tensor(values, dtype=torch.float64)
    spread = float(exact.std()) if len(values) > 1 else 0.0
    return {"mean": float(exact.mean()), "std": spread, "n": len(values)}
