"""A finished run without the hours: what the pages are tested with."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from helpers.saved_set import save_set
from ltdd.config import DistillConfig, EvaluationConfig, StatisticsConfig
from ltdd.data.image_spec import ImageSet, ImageSpec, Normalization
from ltdd.data.splitting.long_tail import accuracy_groups
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.files import fingerprint, write_json
from ltdd.engine.storage.stage_store import StageStore
from ltdd.engine.watching.events import EventLog
from ltdd.models import build_model
from ltdd.models.observer import watched_layers
from ltdd.results.distilled_set import record_files
from ltdd.stages.metrics import accuracy_report, confusion_matrix, sparse_rows, summarize
from ltdd.stages.nearest_images import feature_rows, nearest_images, summarize_nearness
from ltdd.stages.statistics import synthetic_statistics
from ltdd.stages.statistics_drift import layer_drift

IPC = 10
COUNTS = (126, 81, 53, 34, 22, 14, 9, 6, 4, 2)
NORMALIZATION = Normalization((0.3,), (0.37,))


@dataclass(frozen=True)
class _Sample:
    """Digits, cut to a long tail, and what simple classifiers make of them."""

    labels: Tensor
    start: Tensor
    distilled: Tensor
    logits: Tensor
    real_examples: Tensor
    scores: dict[str, dict[str, Any]]
    confusion: dict[str, Any]
    drift: list[dict[str, Any]]
    nearest: dict[str, Tensor]
    train_labels: Tensor


@functools.cache
def _sample() -> _Sample:
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    members = [torch.nonzero(labels == c).flatten() for c in range(10)]
    train = torch.cat([rows[:n] for rows, n in zip(members, COUNTS, strict=True)])
    test = torch.cat([rows[-40:] for rows in members])
    chosen = torch.cat(
        [rows[torch.arange(IPC) % n] for rows, n in zip(members, COUNTS, strict=True)]
    )
    flat = digits.data / 16

    def score(model: Any, rows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model.fit(flat[rows], labels[rows].numpy()).predict(flat[test]))

    predictions = {
        "student": [score(LogisticRegression(C=c), chosen) for c in (0.1, 1, 10)],
        "random_real": [score(KNeighborsClassifier(n), chosen) for n in (5, 6, 7)],
        "full_long_tailed": [score(KNeighborsClassifier(9), train)],
        "teacher": [score(LogisticRegression(C=100), train)],
    }
    noise = torch.Generator().manual_seed(0)
    start = images[chosen]
    noisy = (start + 40 * torch.randn(start.shape, generator=noise)).clamp(0, 255)
    distilled = noisy.to(torch.uint8)
    teacher = LogisticRegression().fit(flat[train], labels[train])
    return _Sample(
        labels[chosen],
        start,
        distilled,
        torch.from_numpy(teacher.decision_function(flat[chosen])).float(),
        torch.stack([images[rows[-5:]] for rows in members]),
        {
            who: summarize([accuracy_report(p, labels[test], COUNTS) for p in rows])
            for who, rows in predictions.items()
        },
        {
            who: sparse_rows(confusion_matrix(torch.cat(rows), labels[test].repeat(len(rows)), 10))
            for who, rows in predictions.items()
        },
        _drift(images[train], labels[train], start, distilled, labels[chosen]),
        _nearest(ImageSet(distilled, labels[chosen]), ImageSet(images[train], labels[train])),
        labels[train],
    )


def finished_run(out: Path, names: tuple[str, ...] = tuple("0123456789"), **settings: Any) -> Path:
    """Write what a run on long-tailed digits leaves, with simple classifiers for the networks.

    Args:
        out: the folder.
        names: of the classes.
        settings: fields of the configuration that differ.
    """
    sample = _sample()
    scores = sample.scores
    config = DistillConfig(**{"ipc": IPC, "imbalance_factor": 50} | settings)
    save_set(
        out,
        ImageSet(sample.distilled, sample.labels),
        sample.logits,
        names,
        COUNTS,
        normalization=NORMALIZATION,
        config=config.to_dict(),
        student_training=dataclasses.asdict(EvaluationConfig())
        | {"labels": "fkd", "horizontal_flip": False},
    )
    store, key = StageStore(out), fingerprint("initialization")
    store.put(
        "initialization",
        key,
        {
            "images": sample.start.float() / 255,
            "labels": sample.labels,
            "real_examples": sample.real_examples,
        },
        {},
    )
    store.put("nearest", key, sample.nearest, {})
    log = EventLog(out / "events.jsonl")
    for epoch in range(60):
        log.write("train", stage="experts", role="observer", epoch=epoch, loss=2.3 * 0.95**epoch)
    for i in range(500):
        alignment = 30 / (1 + i / 40)
        parts = {"alignment": alignment, "cross_entropy": 1 / (1 + i)}
        log.write("recover", iteration=i, batch=0, loss=0.05 * alignment + 1 / (1 + i), **parts)
    for who in ("student", "random_real"):
        for seed in range(3):
            for epoch in range(100):
                log.write("student", who=who, seed=seed, epoch=epoch, loss=3 / (1 + epoch + seed))
    write_json(
        out / "results.json",
        {
            "student": scores["student"] | {"arch": "convnet3", "labels": "fkd", "epochs": 100},
            "teacher": scores["teacher"],
            "observer": scores["teacher"],
            "baselines": {k: scores[k] for k in ("random_real", "full_long_tailed")},
            "stages": {
                "experts": {"seconds": 71.3, "peak_bytes": 410_000_000},
                "statistics": {"seconds": 0.4, "peak_bytes": 410_000_000},
                "recovery": {"seconds": 9.2, "peak_bytes": 520_000_000},
                "evaluation": {"seconds": 33.0, "peak_bytes": 530_000_000},
            },
            "files": {store.path(stage, key).name: 0.1 for stage in ("initialization", "nearest")},
            "bytes": {"images": sample.distilled.numel(), "labels": 4 * 1000},
            "groups": {k: list(v) for k, v in vars(accuracy_groups(COUNTS)).items()},
            "counts": list(COUNTS),
            "class_names": list(names),
            "confusion": sample.confusion,
            "drift": sample.drift,
            "nearest": {"features_of": "features"}
            | summarize_nearness(sample.nearest, sample.labels, sample.train_labels, 10),
            "provenance": {
                "command": "ltdd distill --data digits --imbalance-factor 50 --out runs/demo",
                "preset": "demo",
                "commit": "0123456789ab",
                "date": "2026-11-25T00:00:00+00:00",
                "python": "3.11.7",
                "machine": "some processor, 2 cores",
            },
        },
    )
    record_files(out, ["results.json"])
    return out


def _drift(
    real: Tensor, real_labels: Tensor, start: Tensor, distilled: Tensor, labels: Tensor
) -> list[dict[str, Any]]:
    """Measure the statistics with an untrained observer."""
    torch.manual_seed(0)
    observer = build_model("convnet3_bn", 10, 8, 1).eval()
    runtime = Runtime(torch.device("cpu"), quiet=True)
    spec = ImageSpec(8, 1, 10, NORMALIZATION, flip=False)
    measure = functools.partial(
        synthetic_statistics, observer, spec=spec, config=StatisticsConfig(), runtime=runtime
    )
    return layer_drift(
        [entry.name for entry in watched_layers(observer)],
        measure(ImageSet(real, real_labels), crops=None),
        {
            "start": measure(ImageSet(start, labels), crops=(0.6, False)),
            "distilled": measure(ImageSet(distilled, labels), crops=(0.6, False)),
            "published": measure(ImageSet(distilled, labels), crops=None),
        },
    )


def _nearest(shown: ImageSet, training: ImageSet) -> dict[str, Tensor]:
    """Find nearest images with an untrained teacher."""
    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"), quiet=True)
    features = feature_rows(build_model("convnet3", 10, 8, 1), NORMALIZATION, runtime)
    return nearest_images(shown, training, 10, features, runtime)


class Page(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f" {data} "
