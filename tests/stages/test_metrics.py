"""Accuracy reports against scikit-learn, groups, spread over seeds, bad input."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from ltdd.stages.metrics import (
    GROUPS,
    accuracy_report,
    augmentation_robust_score,
    confusion_matrix,
    label_robust_score,
    sparse_rows,
    summarize,
)

COUNTS = [500, 300, 150, 90, 50, 21, 20, 9, 3, 1]


def draw(seed: int, images: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat(images // 10)
    guesses = torch.randint(0, 10, (images,), generator=generator)
    right = torch.rand(images, generator=generator) < 0.5
    return torch.where(right, labels, guesses), labels


def test_report_agrees_with_scikit_learn() -> None:
    predictions, labels = draw(0)
    report = accuracy_report(predictions, labels, COUNTS)
    assert report["accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    recalls = recall_score(labels, predictions, average=None)
    assert report["per_class"] == pytest.approx(recalls.tolist())
    expected = {
        "head": [0, 1, 2],
        "medium": [3, 4, 5, 6],
        "tail": [7, 8, 9],
        "many_shot": [0, 1, 2],
        "medium_shot": [3, 4, 5],
        "few_shot": [6, 7, 8, 9],
    }
    assert set(expected) == set(GROUPS)
    for name, members in expected.items():
        assert report[name] == pytest.approx(recalls[members].mean()), name


def test_confusion_agrees_with_scikit_learn() -> None:
    predictions, labels = draw(1)
    ours = confusion_matrix(predictions, labels, 10)
    assert ours.dtype == torch.int64
    assert np.array_equal(ours.numpy(), sklearn_confusion(labels, predictions))


def test_counts_take_no_more_cells_than_there_are_test_images() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000).repeat(5)
    predictions = torch.randint(0, 1000, (5000,), generator=generator)
    matrix = confusion_matrix(predictions, labels, 1000)
    rows = sparse_rows(matrix)
    assert len(rows) == 1000
    assert sum(map(len, rows)) == int((matrix > 0).sum()) <= 5000
    back = torch.zeros_like(matrix)
    for label, row in enumerate(json.loads(json.dumps(rows))):
        for predicted, images in row.items():
            back[label, int(predicted)] = images
    assert torch.equal(back, matrix)


def test_groups_weigh_classes_equally_on_an_unbalanced_test_set() -> None:
    labels = torch.tensor([0] * 9 + [1] + [2])
    predictions = torch.tensor([0] * 9 + [0] + [2])
    report = accuracy_report(predictions, labels, [200, 150, 5])
    assert report["accuracy"] == pytest.approx(10 / 11)
    assert report["per_class"] == [1.0, 0.0, 1.0]
    assert report["many_shot"] == 0.5


def test_empty_groups_are_none() -> None:
    predictions, labels = draw(2)
    report = accuracy_report(predictions, labels, [5000] * 10)
    assert report["few_shot"] is None
    assert report["medium_shot"] is None
    assert report["many_shot"] == pytest.approx(report["accuracy"])
    assert summarize([report])["few_shot"] is None


def test_classes_without_test_images_are_left_out_of_every_mean() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 5])
    predictions = torch.tensor([0, 0, 1, 2, 3, 5])
    counts = [500, 300, 150, 90, 50, 21]
    report = accuracy_report(predictions, labels, counts)
    assert report["per_class"] == [pytest.approx(2 / 3), None, 0.5, None, None, 1.0]
    assert report["accuracy"] == pytest.approx(4 / 6)
    assert (report["head"], report["medium"], report["tail"]) == (pytest.approx(2 / 3), 0.5, 1.0)
    assert report["few_shot"] is None
    other = accuracy_report(labels, labels, counts)
    summary = summarize([report, other])
    assert summary["per_class"] == [pytest.approx(5 / 6), None, 0.75, None, None, 1.0]
    assert summary["head"]["mean"] == pytest.approx(5 / 6)
    alone = accuracy_report(torch.tensor([1]), torch.tensor([1]), counts)
    assert (alone["medium"], summarize([alone])["tail"]) == (None, None)


def test_summary_is_mean_and_sample_deviation() -> None:
    reports = [accuracy_report(*draw(seed), COUNTS) for seed in range(3)]
    summary = summarize(reports)
    for name in ("accuracy", *GROUPS):
        values = [report[name] for report in reports]
        assert summary[name] == {
            "mean": pytest.approx(np.mean(values)),
            "std": pytest.approx(np.std(values, ddof=1)),
            "n": 3,
        }
    assert summary["per_class"] == pytest.approx(
        np.mean([report["per_class"] for report in reports], axis=0).tolist()
    )


def test_one_network_has_no_spread() -> None:
    summary = summarize([accuracy_report(*draw(0), COUNTS)])
    assert (summary["accuracy"]["std"], summary["accuracy"]["n"]) == (0.0, 1)


def test_robust_scores_run_from_0_to_1() -> None:
    best = label_robust_score([0.0], [1.0], [1.0], [0.0])
    worst = label_robust_score([1.0], [0.0], [0.0], [1.0])
    assert (best["lrs"]["mean"], worst["lrs"]["mean"]) == (pytest.approx(1), pytest.approx(0))
    best = augmentation_robust_score([1.0], [0.0], [1.0], [0.0])
    worst = augmentation_robust_score([0.0], [1.0], [0.0], [1.0])
    assert (best["ars"]["mean"], worst["ars"]["mean"]) == (pytest.approx(1), pytest.approx(0))


def test_robust_scores_by_hand() -> None:
    # a = 0.5 * 0.2 - 0.5 * 0.5 = -0.15 and b = 0.3 * 0.2 + 0.7 * 0.1 = 0.13
    scores = label_robust_score([0.9, 0.9], [0.4, 0.4], [0.6, 0.6], [0.4, 0.4])
    assert scores["lrs"]["mean"] == pytest.approx((np.e**-0.15 - 1 / np.e) / (np.e - 1 / np.e))
    assert scores["lrs"]["n"] == 2
    assert scores["hlr"]["mean"] == pytest.approx(0.5)
    assert scores["ior"]["mean"] == pytest.approx(0.2)
    scores = augmentation_robust_score([0.6], [0.4], [0.5], [0.4], weight=0.3)
    assert scores["ars"]["mean"] == pytest.approx((np.e**0.13 - 1 / np.e) / (np.e - 1 / np.e))
    with pytest.raises(ValueError, match="at least one round"):
        label_robust_score([], [], [], [])
    with pytest.raises(ValueError, match="longer"):
        label_robust_score([0.5], [0.5, 0.4], [0.5, 0.4], [0.5, 0.4])


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0, 1, 1], "one shape"),
        ([0, 2], [0, 1], r"predictions in 0\.\.1, got 0\.\.2"),
        ([0, 1], [0, -1], r"labels in 0\.\.1, got -1\.\.0"),
        ([], [], "expected test images, got none"),
    ],
)
def test_bad_input(predictions: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_report(torch.tensor(predictions), torch.tensor(labels), [3, 4])


def test_nothing_to_summarise() -> None:
    with pytest.raises(ValueError, match="at least one report"):
        summarize([])
