"""``results.json``: how well networks learn from a distilled set and from its baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ltdd.data.image_spec import ImageSet
from ltdd.data.splitting.long_tail import accuracy_groups
from ltdd.stages.metrics import (
    accuracy_report,
    augmentation_robust_score,
    confusion_matrix,
    label_robust_score,
    sparse_rows,
    summarize,
)
from ltdd.stages.relabeling import SoftLabels
from ltdd.stages.run import Run

LRS_BASELINES = ("full_long_tailed", "distilled_hard", "random_real_soft")
ARS_BASELINES = ("random_real_soft", "distilled_bare", "random_real_bare")


def score(
    run: Run, images: ImageSet, labels: SoftLabels, predictions: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the content of ``results.json``, without drift, nearest images and provenance.

    Args:
        run: the run.
        images: the distilled ones.
        labels: the teacher's.
        predictions: classes (networks, N) of the test images, by who gave them.
    """
    config, data = run.config, run.data
    reports = {
        who: [accuracy_report(row, data.test_labels, data.counts) for row in rows]
        for who, rows in predictions.items()
    }
    scores = {who: summarize(rows) for who, rows in reports.items()}
    order = ["student", "teacher", "observer", *config.evaluation.baselines]
    label_bytes = {"static": labels.static.value.nbytes}
    if labels.views is not None:
        label_bytes["fkd"] = labels.views.value.nbytes
    evaluation = config.evaluation
    described = {
        "arch": evaluation.student,
        "labels": config.relabeling.labels,
        "epochs": evaluation.epochs,
    }
    return {
        "student": scores["student"] | described,
        "teacher": scores["teacher"] | {"arch": config.experts.teacher_name},
        "observer": scores["observer"] | {"arch": config.experts.observer},
        "baselines": {name: scores[name] for name in evaluation.baselines},
        "robustness": robustness(
            {who: [report["accuracy"] for report in rows] for who, rows in reports.items()}
        ),
        "calibration": {
            "method": config.relabeling.calibration,
            "tau": labels.calibration.tau,
        },
        "stages": run.stages.costs,
        "files": run.stages.files,
        "bytes": {"images": images.images.numel(), "labels": sum(label_bytes.values())},
        "label_bytes": label_bytes,
        "ipc": config.ipc,
        "groups": dataclasses.asdict(accuracy_groups(data.counts)),
        "counts": list(data.counts),
        "class_names": list(data.class_names),
        "confusion": {
            who: sparse_rows(
                confusion_matrix(
                    predictions[who].flatten(),
                    data.test_labels.repeat(len(predictions[who])),
                    data.num_classes,
                )
            )
            for who in order
        },
    }


def robustness(accuracies: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return LRS and ARS as far as the baselines that they compare with were trained.

    Deviation from DD-Ranking: "real" is the long-tailed training set the images were distilled
    from; class labels come with the schedule's augmentation; all networks share the students'
    learning rate and are measured after the last epoch instead of at their best.
    """
    known, student = accuracies, accuracies["student"]
    scores: dict[str, Any] = {}
    if all(name in known for name in LRS_BASELINES):
        scores["lrs"] = label_robust_score(
            known["full_long_tailed"] * len(student),
            known["distilled_hard"],
            student,
            known["random_real_soft"],
        )
    if all(name in known for name in ARS_BASELINES):
        scores["ars"] = augmentation_robust_score(
            student,
            known["random_real_soft"],
            known["distilled_bare"],
            known["random_real_bare"],
        )
    return scores
