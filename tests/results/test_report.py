"""The report: complete, self-contained, small and safe, from the files of a run alone."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.finished_pages import Page, finished_run
from helpers.saved_set import save_set
from PIL import Image

from ltdd.config import DistillConfig
from ltdd.data.image_spec import ImageSet
from ltdd.data.splitting.long_tail import accuracy_groups
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.files import fingerprint, read_json, write_json
from ltdd.engine.storage.stage_store import StageStore
from ltdd.errors import UserError
from ltdd.results.distilled_set import record_files
from ltdd.results.pages.charts import Point, step_lines
from ltdd.results.pages.report import write_report
from ltdd.results.pages.svg import ticks
from ltdd.stages.metrics import accuracy_report, confusion_matrix, sparse_rows, summarize
from ltdd.stages.nearest_images import nearest_images, summarize_nearness

PARTS = ("median", "q05", "min")


def test_the_page_shows_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    path = write_report(finished_run(tmp_path))
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert path == tmp_path / "report.html"
    assert len(text) < 5_000_000
    # self-contained: pictures are inline, no script, style sheet, font or frame is fetched
    assert not re.search(r"https?://|@import|url\(", text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object"})
    links = [attrs["href"] for tag, attrs in page.tags if tag in ("link", "a")]
    assert all(link and link.startswith(("data:,", "#")) for link in links)
    targets = {attrs.get("id") for _, attrs in page.tags}
    assert {link[1:] for link in links if link and link.startswith("#")} <= targets
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 30 + 16  # three strips a class, four pairs of either distance
    assert all((a["src"] or "").startswith("data:image/png;base64,") for a in pictures)
    assert all(a["alt"] for a in pictures)
    drawings = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    # counts, two accuracies, labels, four confusions, two drifts, three losses
    assert len(drawings) == 13
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert page.words.count("The numbers of:") == 13
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
        "abababab",
        "3 head, 4 medium and 3 tail classes",
        "% on 1 class with more than 100 images",
    ):
        assert words in page.words


def test_accuracies_are_those_of_results(tmp_path: Path) -> None:
    finished_run(tmp_path)
    student = json.loads((tmp_path / "results.json").read_text())["student"]
    page = Page(write_report(tmp_path).read_text())
    row = page.words.split("overall head medium tail ")[1]
    cells = [
        f"{100 * student[group]['mean']:.1f} ± {100 * student[group]['std']:.1f}"
        for group in ("accuracy", "head", "medium", "tail")
    ]
    assert row.startswith(f"distilled images {' '.join(cells)} random real images")


def test_drift_is_that_of_results(tmp_path: Path) -> None:
    drift = read_json(finished_run(tmp_path) / "results.json")["drift"]
    words = Page(write_report(tmp_path).read_text()).words
    running = sum(layer["running"]["mean"] for layer in drift) / len(drift)
    assert f"running means are {running:.2g} standard deviations away" in words
    percent = [100 * (layer["distilled"]["spread"] - 1) for layer in drift]
    for layer, value in zip(drift, percent, strict=True):
        assert f"{layer['layer']} {value:.4g} " in words


def test_the_nearest_pairs_stand_side_by_side_with_their_distances(tmp_path: Path) -> None:
    nearest = read_json(finished_run(tmp_path) / "results.json")["nearest"]
    page = Page(write_report(tmp_path).read_text())
    assert "How near to real images" in page.words
    row = nearest["pixels"]["any_class"]["overall"]
    cells = [f"{row[of][part]:.3g}" for of in ("distilled", "training") for part in PARTS]
    shares = [f"{100 * row[part]:.3g} %" for part in ("nearer", "same_class")]
    assert f"pixels, any class {' '.join([*cells, *shares])}" in " ".join(page.words.split())
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    for measure in ("pixels", "features"):
        for pair in nearest[measure]["pairs"]:
            ours = alts.index(
                f"distilled image {pair['distilled']} of class {pair['distilled'] // 10}"
            )
            theirs = f"training image {pair['training']} of class {pair['training_class']}"
            assert f"{theirs}, the nearest to it in {measure}" in alts[ours + 1 :]
            assert f"{pair['distance']:.3g} in {measure} from distilled image" in page.words
        with Image.open(tmp_path / "report" / f"nearest_{measure}.png") as picture:
            assert picture.width > picture.height > 2 * 32


def test_a_class_without_another_image_has_dashes(tmp_path: Path) -> None:
    results = read_json(finished_run(tmp_path) / "results.json")
    row = results["nearest"]["pixels"]["same_class"]["classes"][9]
    row |= {"training": None, "nearer": None}
    write_json(tmp_path / "results.json", results)
    record_files(tmp_path, ["results.json"])
    words = Page(write_report(tmp_path).read_text()).words
    cells = " ".join(f"{row['distilled'][part]:.3g}" for part in PARTS)
    assert f"9 {cells} - - - - -" in words


def test_a_run_that_has_not_measured_nearness_has_a_report(tmp_path: Path) -> None:
    results = read_json(finished_run(tmp_path) / "results.json")
    del results["nearest"]
    write_json(tmp_path / "results.json", results)
    record_files(tmp_path, ["results.json"])
    page = Page(write_report(tmp_path).read_text())
    assert sum(tag == "img" for tag, _ in page.tags) == 30
    assert "nearest" not in {attrs.get("id") for _, attrs in page.tags}
    assert not list((tmp_path / "report").glob("nearest_*"))


def test_every_figure_is_a_file_too(tmp_path: Path) -> None:
    write_report(finished_run(tmp_path))
    drawings = sorted(path.stem for path in (tmp_path / "report").glob("*.svg"))
    assert drawings == [
        "class_accuracy", "class_counts", "confusion_full_long_tailed", "confusion_random_real",
        "confusion_student", "confusion_teacher", "drift_means", "drift_variances",
        "expert_losses", "group_accuracy", "recovery_losses", "soft_labels", "student_losses",
    ]  # fmt: skip
    for path in (tmp_path / "report").glob("*.svg"):
        root = ET.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "url(" not in path.read_text()
    for kind in ("start", "distilled", "real"):
        with Image.open(tmp_path / "report" / f"images_{kind}.png") as picture:
            assert picture.height > 10 * 32


def test_class_names_cannot_add_markup(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", '"><img src=x>', *(f"class & {i}" for i in range(8)))
    text = write_report(finished_run(tmp_path, names)).read_text()
    page = Page(text)
    assert page.open == []
    for path in (tmp_path / "report").glob("*.svg"):
        assert not list(ET.parse(path).iter("{http://www.w3.org/2000/svg}script"))
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


def large_run(out: Path, classes: int, ipc: int, side: int) -> Path:
    """Write a run of noise, which no compression shrinks, with no stage but the nearest images."""
    generator = torch.Generator().manual_seed(0)
    count = classes * ipc
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    logits = torch.randn(count, classes, generator=generator)
    counts = [int(500 * 0.01 ** (c / classes)) for c in range(classes)]
    shown = ImageSet(images, torch.arange(classes).repeat_interleave(ipc))
    names, config = [f"class {c}" for c in range(classes)], DistillConfig(ipc=ipc).to_dict()
    save_set(out, shown, logits, names, counts, config=config)
    kinds = torch.arange(classes).repeat(2)
    real = torch.randint(0, 256, (2 * classes, *images.shape[1:]), generator=generator)
    training, runtime = (
        ImageSet(real.to(torch.uint8), kinds),
        Runtime(torch.device("cpu"), quiet=True),
    )
    tensors = nearest_images(
        shown, training, classes, lambda batch: batch[:, 0, 0].float() / 255, runtime
    )
    store, key = StageStore(out), fingerprint("nearest")
    store.put("nearest", key, tensors, {})
    truth = torch.arange(classes).repeat(5)
    guesses = torch.randint(0, classes, (len(truth),), generator=generator)
    report = summarize([accuracy_report(guesses, truth, counts)])
    matrix = sparse_rows(confusion_matrix(guesses, truth, classes))
    write_json(
        out / "results.json",
        {
            "student": report | {"arch": "convnet3", "labels": "static", "epochs": 1},
            "teacher": report,
            "baselines": {"random_real": report, "full_long_tailed": report},
            "stages": {},
            "files": {store.path("nearest", key).name: 1.0},
            "nearest": {"features_of": "features"}
            | summarize_nearness(tensors, shown.labels, kinds, classes),
            "bytes": {"images": images.numel(), "labels": logits.numel() * 4},
            "groups": {k: list(v) for k, v in vars(accuracy_groups(counts)).items()},
            "confusion": dict.fromkeys(
                ("student", "random_real", "full_long_tailed", "teacher"), matrix
            ),
        },
    )
    return out


@pytest.mark.parametrize(("classes", "ipc", "side"), [(100, 50, 64), (300, 2, 96), (1000, 1, 64)])
def test_many_classes_of_large_images_stay_below_five_megabytes(
    tmp_path: Path, classes: int, ipc: int, side: int
) -> None:
    path = write_report(large_run(tmp_path, classes, ipc, side))
    assert path.stat().st_size < 5_000_000
    page = Page(path.read_text())
    assert f"of {classes} classes, evenly from the largest to the smallest" in page.words
    assert ("The first 5 of 50 images of a class are shown" in page.words) == (ipc == 50)
    assert f"{side}-pixel images are shrunk to 48 pixels here" in page.words
    # too many classes for a table of numbers: the largest confusion of each instead
    results = read_json(tmp_path / "results.json")
    row = results["confusion"]["student"][7]
    largest = max(images for predicted, images in row.items() if predicted != "7")
    assert re.search(rf"class 7 \d+\.0 % class \d+ {20 * largest}\.0 %", page.words)
    pictures = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert any(f"images of class class {classes - 1}," in (alt or "") for alt in pictures)
    assert sum("the nearest to it in" in (alt or "") for alt in pictures) == 8


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 5400) == [0, 2000, 4000]
    assert np.allclose(ticks(0.0, 0.37), [0, 0.1, 0.2, 0.3])
    assert ticks(1, 1) == [1]


def test_lines_skip_what_is_not_finite() -> None:
    points = [Point(0, 1.0), Point(1, float("nan")), Point(2, 3.0)]
    drawn = step_lines("losses", "losses", {"loss": points}, "epoch", "loss")
    assert drawn is not None
    assert "nan" not in drawn.inline
    assert len(re.findall(r'points="([^"]+)"', drawn.inline)[0].split()) == 2
    assert drawn.rows == [["0", "1"], ["2", "3"]]
    assert step_lines("losses", "losses", {"loss": []}, "epoch", "loss") is None
