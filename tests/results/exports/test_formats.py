"""Every export read back by the library it is for: the same images, labels and logits."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import ltdd
from ltdd.cli.main import main
from ltdd.engine.storage.files import read_json
from ltdd.errors import UserError
from ltdd.results.distilled_set import DistilledSet, load
from ltdd.results.exports import FORMATS, ddranking, webdataset
from ltdd.results.exports.imagefolder import folder_names

NEEDS = {"parquet": ("pyarrow", "datasets"), "webdataset": ("webdataset",)}


def needs(format: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for package in NEEDS.get(format, ()):
        pytest.importorskip(package)


@pytest.fixture(params=["run", "colour"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def read_back(format: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the loading code that stands in the card."""
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(
        compile(importlib.import_module(f"ltdd.results.exports.{format}").LOAD, format, "exec"),
        names,
    )
    return names


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(
    format: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(format, monkeypatch, tmp_path / "cache")
    distilled = load(folder)
    out = ltdd.export(folder, format, tmp_path / "a" / "b")
    assert [p.name for p in out.parent.iterdir()] == ["b"]
    found = read_back(format, out, monkeypatch)
    order = torch.arange(len(distilled))
    if format in ("imagefolder", "ddranking"):  # these put classes together
        order = torch.argsort(distilled.labels, stable=True)
    images = found["images"]
    if format == "ddranking":  # the only one that does not keep the bytes
        torch.testing.assert_close(images, images.round(), rtol=0, atol=1e-3)
        images = images.round().to(torch.uint8)
    assert images.dtype == torch.uint8
    assert torch.equal(images, distilled.images[order])
    assert torch.equal(found["labels"], distilled.labels[order])
    assert torch.equal(found["logits"], distilled.logits[order])
    for name in ("mean", "std"):
        stated = torch.tensor(getattr(distilled.normalization, name))
        torch.testing.assert_close(found[name], stated)
    info = read_json(out / "info.json")
    assert tuple(info["class_names"]) == distilled.class_names
    assert info["source_sha256"] == {
        name: entry["sha256"] for name, entry in distilled.manifest["files"].items()
    }


def test_image_folders_have_the_order_of_the_classes(
    run: Path, colour: Path, tmp_path: Path
) -> None:
    ltdd.export(run, "imagefolder", tmp_path / "digits")
    assert ImageFolder(tmp_path / "digits/train").classes == [str(c) for c in range(10)]
    ltdd.export(colour, "imagefolder", tmp_path / "colour")
    folder = ImageFolder(tmp_path / "colour/train")
    assert [name[:2] for name in folder.classes] == ["0_", "1_", "2_", "3_"]
    assert folder.classes[0] == "0_zebra - horse-pony"
    numbers = [int(Path(path).stem) for path, _ in folder.samples]
    assert load(colour).labels[numbers].tolist() == folder.targets


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["ant", "bee"], ["ant", "bee"]),
        (["bee", "ant"], ["0_bee", "1_ant"]),
        (["A", "a"], ["0_A", "1_a"]),  # one folder on some file systems
        (["", "b"], ["0_", "1_b"]),
        ([".", ".."], ["0_-", "1_-"]),
        (["../up", "x"], ["0_--up", "1_x"]),
        (["NUL", "b"], ["0_NUL", "1_b"]),
        (["a.", "b"], ["0_a", "1_b"]),
        (["a", "b" * 300], ["0_a", "1_" + "b" * 200]),
    ],
)
def test_folder_names_are_safe_and_sorted(names: list[str], folders: list[str]) -> None:
    assert folder_names(names) == folders


def test_folder_names_of_many_classes_are_sorted() -> None:
    names = folder_names([f"class {i}" for i in range(1000)])
    assert sorted(names) == names
    assert names[7] == "007_class 7"


def test_the_archive_needs_no_pickle(colour: Path, tmp_path: Path) -> None:
    data = np.load(ltdd.export(colour, "npz", tmp_path / "out") / "data.npz", allow_pickle=False)
    assert tuple(data["class_names"].tolist()) == load(colour).class_names
    first = (tmp_path / "out/data.npz").read_bytes()
    ltdd.export(colour, "npz", tmp_path / "again")
    assert (tmp_path / "again/data.npz").read_bytes() == first


def test_parquet_has_the_features_of_datasets(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("parquet", monkeypatch, tmp_path / "cache")
    import datasets

    out = ltdd.export(colour, "parquet", tmp_path / "set")
    for loaded in (
        datasets.load_dataset(str(out), split="train"),  # with the features of the card
        datasets.Dataset.from_parquet(str(out / "data/train-00000-of-00001.parquet")),
    ):
        assert isinstance(loaded.features["image"], datasets.Image)
        assert tuple(loaded.features["label"].names) == load(colour).class_names
        assert loaded[0]["image"].size == (10, 12)


def test_parquet_read_by_pyarrow_alone(folder: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    distilled = load(folder)
    out = ltdd.export(folder, "parquet", tmp_path / "set")
    table = pq.read_table(out / "data/train-00000-of-00001.parquet")
    columns = table.to_pydict()
    pictures = [Image.open(io.BytesIO(row["bytes"])) for row in columns["image"]]
    assert torch.equal(torch.stack([pil_to_tensor(p) for p in pictures]), distilled.images)
    assert columns["label"] == distilled.labels.tolist()
    assert torch.equal(torch.tensor(columns["logits"]), distilled.logits)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"_type": "ClassLabel", "names": list(distilled.class_names)}
    assert features["image"] == {"_type": "Image"}


def test_parquet_names_the_extra_that_is_missing(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'ltdd\[hf\]'"):
        ltdd.export(colour, "parquet", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_shards_are_streamed_in_order(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("webdataset", monkeypatch, tmp_path)
    monkeypatch.setattr(webdataset, "SHARD", 5)
    out = ltdd.export(colour, "webdataset", tmp_path / "out")
    assert sorted(p.name for p in out.glob("*.tar")) == [f"train-{i:06}.tar" for i in range(3)]
    found = read_back("webdataset", out, monkeypatch)
    assert torch.equal(found["images"], load(colour).images)


def test_the_ddranking_triple(run: Path, tmp_path: Path) -> None:
    out = ltdd.export(run, "ddranking", tmp_path / "out")
    images, labels, rate = (
        torch.load(out / f"{name}.pt", weights_only=True) for name in ("images", "labels", "lr")
    )
    assert images.dtype == labels.dtype == torch.float32
    assert (len(images), len(labels)) == (20, 20)
    assert rate.item() == pytest.approx(1e-3)
    evaluator = read_json(out / "evaluator.json")
    assert evaluator["ipc"] == 2
    assert evaluator["dataset"] is None  # it has no digits: normalised with the set's own numbers
    assert evaluator["mean"] == list(load(run).normalization.mean)


def renamed(distilled: DistilledSet, **changes: Any) -> DistilledSet:
    return DistilledSet(**(vars(distilled) | changes))


def test_ddranking_normalises_cifar_as_its_test_images(run: Path, tmp_path: Path) -> None:
    distilled = load(run)
    names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    images = torch.arange(256).repeat(20 * 12).view(20, 3, 32, 32).to(torch.uint8)
    cifar = renamed(distilled, class_names=names, images=images)
    ddranking.write(cifar, tmp_path)
    evaluator = read_json(tmp_path / "evaluator.json")
    assert (evaluator["dataset"], evaluator["std"]) == ("CIFAR10", [0.2023, 0.1994, 0.2010])
    stored = torch.load(tmp_path / "images.pt", weights_only=True)
    assert stored[0, 0, 0, 0].item() == pytest.approx(-0.4914 / 0.2023)
    few = renamed(distilled, labels=distilled.labels.clone().fill_(3))
    with pytest.raises(UserError, match="equally many images"):
        ddranking.write(few, tmp_path)


def test_a_target_with_data_is_refused_and_untouched(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UserError, match="a new or an empty folder"):
            ltdd.export(run, "npz", tmp_path / name)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    ltdd.export(run, "npz", tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == [
        "README.md", "data.npz", "info.json",
    ]  # fmt: skip


def test_a_failed_export_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(webdataset, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        ltdd.export(run, "webdataset", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(run), "--to", str(tmp_path / "out")]
    assert main(words) == 2
    assert "expected --format" in capsys.readouterr().err
    assert main([*words, "--format", "zip"]) == 2
    assert "imagefolder, npz, ddranking, parquet, webdataset; got 'zip'" in capsys.readouterr().err
    assert main([*words, "--format", "npz", "--license", "cc0-1.0"]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'out'}\n"
    assert "license: cc0-1.0" in (tmp_path / "out/README.md").read_text()
