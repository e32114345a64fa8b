"""The report: complete, self-contained, small and safe, from the files of a run alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ltdd.artifacts import (
    EventLog,
    StageStore,
    fingerprint,
    record_files,
    save_distilled,
    write_json,
)
from ltdd.charts import Point, loss_lines, ticks
from ltdd.config import DistillConfig
from ltdd.data.long_tail import accuracy_groups
from ltdd.errors import UserError
from ltdd.metrics import accuracy_report, confusion_matrix, summarize
from ltdd.report import write_report

IPC = 10
COUNTS = (126, 81, 53, 34, 22, 14, 9, 6, 4, 2)


def finished_run(out: Path, names: tuple[str, ...] = tuple("0123456789")) -> Path:
    """Write what a run on long-tailed digits leaves, with simple classifiers for the networks."""
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
    scores = {
        who: summarize([accuracy_report(p, labels[test], COUNTS) for p in rows])
        for who, rows in predictions.items()
    }
    noise = torch.Generator().manual_seed(0)
    distilled = (images[chosen] + 40 * torch.randn(images[chosen].shape, generator=noise)).clamp(
        0, 255
    )
    config = DistillConfig(ipc=IPC, imbalance_factor=50)
    save_distilled(
        out,
        distilled.to(torch.uint8),
        labels[chosen],
        torch.from_numpy(
            LogisticRegression().fit(flat[train], labels[train]).decision_function(flat[chosen])
        ).float(),
        class_names=names,
        counts=COUNTS,
        split_sha256="5f" * 32,
        normalization=([0.3], [0.37]),
        config=config.to_dict(),
        student_recipe={"student": "convnet3", "seeds": 3, "labels": "fkd"},
    )
    StageStore(out).put(
        "initialization",
        fingerprint("initialization"),
        {
            "images": images[chosen].float() / 255,
            "labels": labels[chosen],
            "real_examples": torch.stack([images[rows[-5:]] for rows in members]),
        },
        {},
    )
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
            "bytes": {"images": distilled.numel(), "labels": 4 * 1000},
            "groups": {k: list(v) for k, v in vars(accuracy_groups(COUNTS)).items()},
            "counts": list(COUNTS),
            "class_names": list(names),
            "confusion": {
                "student": confusion_matrix(
                    torch.cat(predictions["student"]), labels[test].repeat(3), 10
                ).tolist()
            },
            "provenance": {
                "command": "ltdd distill --data digits --imbalance-factor 50 --out runs/demo",
                "preset": "demo",
                "commit": "0123456789ab",
                "python": "3.11.7",
                "machine": "some processor, 2 cores",
            },
        },
    )
    record_files(out, ["results.json"])
    return out


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
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f" {data} "


def test_the_page_shows_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    path = write_report(finished_run(tmp_path))
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert path == tmp_path / "report.html"
    assert len(text) < 5_000_000
    # self-contained: pictures are inline, no script, style sheet, font or frame is fetched
    assert not re.search(r"https?://|@import|url\(", text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 30
    assert all((a["src"] or "").startswith("data:image/png;base64,") for a in pictures)
    assert all(a["alt"] for a in pictures)
    drawings = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert len(drawings) == 6
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    for words in (
        "351 images distilled into 100",
        "trained on overall head medium tail distilled images",
        "random real images",
        "all long-tailed data",
        "the teacher itself",
        "ltdd distill --data digits --imbalance-factor 50 --out runs/demo",
        "Expert training",
        "Recovery of the images",
        "Student training",
        "1 min 54 s",
        "5f5f5f5f",
        "3 head, 4 medium and 3 tail classes",
        "% on 1 class with more than 100 images",
    ):
        assert words in page.words


def test_accuracies_are_those_of_results(tmp_path: Path) -> None:
    finished_run(tmp_path)
    student = json.loads((tmp_path / "results.json").read_text())["student"]
    page = Page(write_report(tmp_path).read_text())
    row = page.words.split("overall head medium tail ")[1]
    for group in ("accuracy", "head", "medium", "tail"):
        cell = f"{100 * student[group]['mean']:.1f} ± {100 * student[group]['std']:.1f}"
        assert cell in row


def test_class_names_cannot_add_markup(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", '"><img src=x>', *(f"class & {i}" for i in range(8)))
    text = write_report(finished_run(tmp_path, names)).read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert "x" not in {attrs.get("src") for _, attrs in page.tags}
    assert "&lt;script&gt;alert(1)" in text


def test_events_and_initial_images_may_be_missing(tmp_path: Path) -> None:
    finished_run(tmp_path)
    (tmp_path / "events.jsonl").unlink()
    for file in (tmp_path / "stages").iterdir():
        file.unlink()
    page = Page(write_report(tmp_path).read_text())
    assert sum(tag == "img" for tag, _ in page.tags) == 10
    assert "Expert training" not in page.words


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got no manifest\.json"):
        write_report(tmp_path)
    finished_run(tmp_path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(UserError, match=r"results\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_many_classes_of_large_images_stay_below_five_megabytes(tmp_path: Path) -> None:
    classes, side = 120, 96
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (classes * 2, 3, side, side), generator=generator, dtype=torch.uint8
    )
    labels = torch.arange(classes).repeat_interleave(2)
    logits = torch.randn(classes * 2, classes, generator=generator)
    counts = [int(500 * 0.97**c) for c in range(classes)]
    save_distilled(
        tmp_path,
        images,
        labels,
        logits,
        class_names=[f"class {c}" for c in range(classes)],
        counts=counts,
        split_sha256="0" * 64,
        normalization=([0.5] * 3, [0.25] * 3),
        config=DistillConfig(ipc=2).to_dict(),
        student_recipe={},
    )
    truth = torch.arange(classes).repeat(5)
    guesses = torch.randint(0, classes, (len(truth),), generator=generator)
    report = summarize([accuracy_report(guesses, truth, counts)])
    write_json(
        tmp_path / "results.json",
        {
            "student": report | {"arch": "convnet3", "labels": "static", "epochs": 1},
            "teacher": report,
            "baselines": {},
            "stages": {},
            "bytes": {"images": images.numel(), "labels": logits.numel() * 4},
            "groups": {k: list(v) for k, v in vars(accuracy_groups(counts)).items()},
            "confusion": {"student": confusion_matrix(guesses, truth, classes).tolist()},
        },
    )
    path = write_report(tmp_path)
    assert path.stat().st_size < 5_000_000
    page = Page(path.read_text())
    assert "of 120 classes, evenly from the largest to the smallest" in page.words
    assert "class 0" in page.words
    assert "class 119" in page.words


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 5400) == [0, 2000, 4000]
    assert np.allclose(ticks(0.0, 0.37), [0, 0.1, 0.2, 0.3])
    assert ticks(1, 1) == [1]


def test_loss_lines_skip_what_is_not_finite() -> None:
    points = [Point(0, 1.0), Point(1, float("nan")), Point(2, 3.0)]
    drawn = loss_lines({"loss": points}, "epoch", "losses")
    assert "nan" not in drawn
    assert len(re.findall(r'points="([^"]+)"', drawn)[0].split()) == 2
    assert loss_lines({"loss": []}, "epoch", "losses") == ""
