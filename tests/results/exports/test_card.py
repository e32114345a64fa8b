"""Dataset cards: their code runs, their figures are those of the run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ltdd
from ltdd.cli.main import main
from ltdd.engine.storage.files import read_json
from ltdd.errors import UserError
from ltdd.results.card import own_layout, render_card, write_card
from ltdd.results.distilled_set import load
from ltdd.results.exports import FORMATS

PARTS, SHARES = ("median", "q05", "min"), ("nearer", "same_class")
NEEDS = {"parquet": ("pyarrow", "datasets"), "webdataset": ("webdataset",)}


def matter(card: str) -> dict[str, Any]:
    values = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(values, dict)
    return values


def run_blocks(card: str) -> dict[str, Any]:
    """Run the Python of a card from top to bottom; return its names."""
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_code_of_the_card_runs_from_published_files(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(published, folder)
    distilled = load(folder)
    card = write_card(distilled, folder).read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    names = run_blocks(card)
    # The code without this package unpacks labels as the package does.
    assert torch.equal(names["logits"], distilled.logits)
    assert names["pixels"].shape == distilled.images.shape


@pytest.mark.parametrize("format", FORMATS)
def test_the_code_of_every_format_runs_without_this_package(
    format: str, colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for package in NEEDS.get(format, ()):
        pytest.importorskip(package)
    out = ltdd.export(colour, format, tmp_path / "out")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "import ltdd" not in card
    monkeypatch.chdir(out)
    names = run_blocks(card)
    assert names["pixels"].isfinite().all()
    assert len(names["pixels"]) == len(names["logits"]) == len(names["labels"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": "muon", "learning_rate": 0.002}, "muon with a learning rate of 0.002"),
        ({"logit_std_norm": True}, "divided by their standard deviation over classes"),
        ({"horizontal_flip": True}, "mirrored or not"),
        ({"randaugment": True}, "RandAugment"),
        ({"epochs": 77, "batch_size": 9}, "batches of 9 for 77 epochs"),
    ],
)
def test_the_card_says_how_students_are_trained(
    change: dict[str, Any], said: str, colour: Path
) -> None:
    distilled = load(colour)
    training = distilled.manifest["student_training"] | change
    manifest = distilled.manifest | {"student_training": training}
    other = dataclasses.replace(distilled, manifest=manifest)
    card = " ".join(render_card(other, None, own_layout(distilled)).split())
    assert said in card


def test_figures_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    results, manifest = read_json(run / "results.json"), read_json(run / "manifest.json")
    card = write_card(load(run), tmp_path).read_text(encoding="utf-8")
    student = results["student"]
    assert f"| **the distilled images** | {100 * student['accuracy']['mean']:.1f} |" in card
    assert f"| the teacher itself | {100 * results['teacher']['accuracy']['mean']:.1f} |" in card
    assert "as many random real images" in card
    assert manifest["split_sha256"] in card
    assert f"{manifest['counts'][-1]} a class" in card
    static = manifest["soft_labels"]["static"]
    assert static == {"shape": [20, 10], "packing": "topk", "bytes": 20 * (4 * 3 + 2)}
    assert f"{static['bytes']} bytes" in card


def test_the_card_says_how_near_the_images_are_to_real_ones(
    run: Path, colour: Path, tmp_path: Path
) -> None:
    distilled = load(run)
    nearest = read_json(run / "results.json")["nearest"]
    card = write_card(distilled, tmp_path).read_text(encoding="utf-8")
    row = nearest["features"]["any_class"]["overall"]
    distances = [row[of][part] for of in ("distilled", "training") for part in PARTS]
    cells = [*(f"{d:.3g}" for d in distances), *(f"{100 * row[p]:.3g} %" for p in SHARES)]
    assert f"| features, any class | {' | '.join(cells)} |" in card
    assert (
        f"{nearest['pixels']['any_class']['overall']['distilled']['min']:.3g} away from it" in card
    )
    tables = [line.count("|") for line in card.split("## How near")[1].splitlines() if "|" in line]
    # Every row has nine cells: four distances, and ten classes by each, below two lines of head.
    assert set(tables[: 2 + 4 + 4 * (2 + 10)]) == {10}
    for folder in ("stages/", "report/", "report.html"):
        assert f"`{folder}`" in card.split("hold **real images**")[0]
    results = {k: v for k, v in (distilled.results or {}).items() if k != "nearest"}
    older = dataclasses.replace(distilled, results=results)
    assert "How near" not in render_card(older, None, own_layout(older))
    assert "How near" not in write_card(load(colour), tmp_path).read_text(encoding="utf-8")


def test_the_front_matter(run: Path, colour: Path, tmp_path: Path) -> None:
    own = matter(write_card(load(run), tmp_path).read_text(encoding="utf-8"))
    assert own["license"] == "unknown"
    assert own["size_categories"] == ["n<1K"]
    assert own["pretty_name"] == "digits, distilled to 2 images per class"
    assert own["task_categories"] == ["image-classification"]
    pytest.importorskip("pyarrow")
    ltdd.export(colour, "parquet", tmp_path / "out", license="cc-by-4.0")
    exported = matter((tmp_path / "out/README.md").read_text(encoding="utf-8"))
    assert exported["license"] == "cc-by-4.0"
    assert exported["pretty_name"] == "animals, distilled to 3 images per class"  # no folders
    label = exported["dataset_info"]["features"][1]["dtype"]["class_label"]
    assert tuple(label["names"].values()) == load(colour).class_names


def test_names_of_classes_cannot_break_the_card(colour: Path, tmp_path: Path) -> None:
    card = write_card(load(colour), tmp_path).read_text(encoding="utf-8")
    assert r"| 0 | zebra \| horse/pony | 9 |" in card
    assert r"| 1 | \_ant\_ \<b\> | 5 |" in card
    assert "It has not been measured yet." in card


def test_distill_writes_a_card_and_leaves_an_edited_one(run: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", tmp_path / "config.yaml"
    shutil.copytree(run, folder)
    config.write_text(json.dumps(read_json(run / "run.json")["config"]))
    words = ["distill", "--config", str(config), "--out", str(folder), "--quiet"]
    for text in (None, "mine\n"):
        if text is not None:
            (folder / "README.md").write_text(text)
        assert main(words) == 0
        content = (folder / "README.md").read_text(encoding="utf-8")
        assert content == text if text else content.startswith("---\nlicense: unknown")


def test_the_command_sets_the_licence(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(published, folder)
    assert main(["card", str(folder), "--license", "cc-by-sa-4.0"]) == 0
    assert matter((folder / "README.md").read_text(encoding="utf-8"))["license"] == "cc-by-sa-4.0"
    with pytest.raises(UserError, match="a licence such as"):
        write_card(load(folder), folder, "x: y\n")
    assert main(["card", str(folder), "--license", "two words"]) == 2
    assert "two words" in capsys.readouterr().err
