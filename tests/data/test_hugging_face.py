"""Data sets of Hugging Face's library, from local folders in its formats; nothing is downloaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusal import refused
from PIL import Image

from ltdd.data.long_tailed_data import load_data
from ltdd.data.sources import hugging_face
from ltdd.errors import UserError

hf = pytest.importorskip("datasets", reason="needs the extra [hf]")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and no network."""
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def pictures(count: int, seed: int, mode: str = "RGB") -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    shape = (8, 8, 3) if mode == "RGB" else (8, 8)
    return [
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)
    ]


def split(
    labels: list[Any], seed: int, kind: Any = None, image: str = "img", label: str = "label"
) -> Any:
    kind = kind or hf.ClassLabel(names=["cat", "ant", "bee"])
    features = hf.Features({"id": hf.Value("int64"), label: kind, image: hf.Image()})
    rows = {"id": [*range(len(labels))], label: labels, image: pictures(len(labels), seed)}
    return hf.Dataset.from_dict(rows, features)


@pytest.fixture
def parts() -> Any:
    return hf.DatasetDict(
        train=split([0, 0, 0, 1, 2, 2], 1), validation=split([0, 1, 2], 2), test=split([2, 1, 0], 3)
    )


def same(images: torch.Tensor, expected: list[Image.Image]) -> bool:
    return np.array_equal(images, np.stack([np.asarray(p).transpose(2, 0, 1) for p in expected]))


def test_a_folder_of_save_to_disk(parts: Any, tmp_path: Path) -> None:
    parts.save_to_disk(str(tmp_path / "saved"))
    data = load_data(f"hf:{tmp_path / 'saved'}")
    # In the order of the label's own names, not of the alphabet.
    assert data.class_names == ("cat", "ant", "bee")
    assert data.counts == (3, 1, 2)
    assert same(data.train_images, pictures(6, 1))
    assert same(data.test_images, pictures(3, 3))
    assert data.test_labels.tolist() == [2, 1, 0]
    assert data.notes == (
        f"split validation of {tmp_path / 'saved'} is neither trained nor tested on",
    )
    assert load_data(f"hf:{tmp_path / 'saved'}", 3).counts == (3, 1, 1)


def test_the_second_time_nothing_is_decoded(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.save_to_disk(str(tmp_path / "saved"))
    split([0, 1, 2] * 5, 1).to_parquet(str(tmp_path / "all.parquet"))
    specs = [f"hf:{tmp_path / name}" for name in ("saved", "all.parquet")]
    before = [load_data(spec).content_sha256 for spec in specs]
    monkeypatch.setattr(hugging_face, "opened", None)
    assert [load_data(spec).content_sha256 for spec in specs] == before
    split([0, 1, 2] * 5, 2).to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(UserError, match="train row 0"):
        load_data(specs[1])


def test_a_folder_of_parquet_files(parts: Any, tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        parts[name].to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    data = load_data(f"hf:{tmp_path / 'repository'}")
    assert data.class_names == ("cat", "ant", "bee")
    assert same(data.train_images, pictures(6, 1))
    assert data.test_labels.tolist() == [2, 1, 0]
    assert data.notes == ()


def test_one_parquet_file_holds_a_part_out(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    split([0, 1, 2] * 5, 1).to_parquet(str(path))
    data = load_data(f"hf:{path}")
    assert torch.bincount(data.test_labels).tolist() == [1, 1, 1]
    assert data.counts == (4, 4, 4)
    assert "1 of every class held out" in data.notes[0]


def test_labels_without_names(tmp_path: Path) -> None:
    for kind, labels, names in (
        ("string", ["b", "a", "b", "c"], ("a", "b", "c")),
        ("int64", [10, 9, 10, 30], ("9", "10", "30")),
    ):
        made = hf.DatasetDict(
            train=split(labels, 1, hf.Value(kind)), test=split(labels, 2, hf.Value(kind))
        )
        made.save_to_disk(str(tmp_path / kind))
        data = load_data(f"hf:{tmp_path / kind}")
        assert data.class_names == names
        assert data.train_labels.tolist() == [1, 0, 1, 2]


def test_a_column_may_be_chosen(tmp_path: Path) -> None:
    def both(seed: int) -> Any:
        made = split([0, 1, 2], seed, label="fine")
        return made.add_column("coarse", [0, 1, 1]).cast_column(
            "coarse", hf.ClassLabel(names=["x", "y"])
        )

    hf.DatasetDict(train=both(1), test=both(2)).save_to_disk(str(tmp_path / "two"))
    refused(f"hf:{tmp_path / 'two'}", "one column of labels", "fine, coarse", "two#COLUMN")
    assert load_data(f"hf:{tmp_path / 'two'}#coarse").counts == (1, 2)
    refused(f"hf:{tmp_path / 'two'}#finest", "expected a column 'finest' in", "fine, img, coarse")


def test_a_test_split_without_labels_gives_way_to_validation(parts: Any, tmp_path: Path) -> None:
    parts["test"] = split([-1, -1, -1], 3)
    parts.save_to_disk(str(tmp_path / "hidden"))
    data = load_data(f"hf:{tmp_path / 'hidden'}")
    assert same(data.test_images, pictures(3, 2))
    unused = f"split test of {tmp_path / 'hidden'} is neither trained nor tested on"
    assert data.notes == (f"{unused}: it has no labels",)


def test_broken_pictures_are_named_and_can_be_left_out(parts: Any, tmp_path: Path) -> None:
    def broken(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {"img": {"bytes": b"broken", "path": None}} if number == 4 else row

    raw = split([0, 0, 1, 1, 2, 2], 1).cast_column("img", hf.Image(decode=False))
    parts["train"] = raw.map(broken, with_indices=True).cast_column("img", hf.Image())
    parts.save_to_disk(str(tmp_path / "saved"))
    refused(f"hf:{tmp_path / 'saved'}", "expected readable", "train row 4 (not such an image)")
    data = load_data(f"hf:{tmp_path / 'saved'}", on_bad_image="skip")
    assert data.left_out == ("train row 4 (not such an image)",)
    assert data.counts == (2, 2, 1)


def test_only_our_decoders_see_the_bytes(parts: Any, tmp_path: Path) -> None:
    file = io.BytesIO()
    pictures(1, 0)[0].save(file, "TGA")
    raw = parts["test"].cast_column("img", hf.Image(decode=False))
    as_tga = {"img": {"bytes": file.getvalue(), "path": None}}
    parts["test"] = raw.map(lambda _: as_tga).cast_column("img", hf.Image())
    parts.save_to_disk(str(tmp_path / "saved"))
    refused(f"hf:{tmp_path / 'saved'}", "test row 0 (not such an image)")


def test_bad_data_sets(parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(name: str, **splits: Any) -> str:
        hf.DatasetDict(**splits).save_to_disk(str(tmp_path / name))
        return f"hf:{tmp_path / name}"

    refused(saved("no_train", dev=parts["train"]), "expected a split train in", "got dev")
    plain = hf.Dataset.from_dict({"text": ["a"], "label": [0]})
    refused(saved("text", train=plain), "one column of images in", "got only text, label")
    unlabelled = parts["train"].remove_columns("label")
    refused(saved("unlabelled", train=unlabelled), "one column of labels in", "got id, img")
    gap = split([0, 1, -1], 1)
    refused(saved("gap", train=gap, test=gap), "one of 3 classes", "got -1 in row 2")
    floats = split([0.5, 1.5], 1, hf.Value("float32"))
    refused(saved("floats", train=floats), "numbers or names in the column 'label', got float")
    # The library itself cannot read what it wrote for no rows at all.
    refused(saved("empty", train=parts["train"], test=split([], 1)), "expected a data set of")
    (tmp_path / "nothing").mkdir()
    refused(f"hf:{tmp_path / 'nothing'}", "expected a data set of Hugging Face's datasets at")
    refused("hf:nobody/nothing_of_this_name", "expected a data set of Hugging Face's datasets at")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    refused(f"hf:{tmp_path / 'x.parquet'}", "expected a data set of Hugging Face's datasets at")
    refused("hf:", "expected hf:NAME_OR_PATH, got nothing behind hf:")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused("hf:mnist", "expected the package datasets", "pip install 'ltdd[hf]'")


# --- files without the library's metadata ---


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    found = []
    for picture in pictures(count, seed):
        file = io.BytesIO()
        picture.save(file, "PNG")
        found.append({"bytes": file.getvalue(), "path": None})
    return found


def parquet(path: Path, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("alone", [False, True])
def test_pictures_as_bytes_are_found(alone: bool, tmp_path: Path) -> None:
    given = [row["bytes"] for row in rows(6, 1)] if alone else rows(6, 1)
    path = parquet(tmp_path / "a.parquet", image=given, label=[0, 1] * 3)
    data = load_data(f"hf:{path}")
    assert (data.class_names, data.counts) == (("0", "1"), (2, 2))
    folder = parquet(tmp_path / "one" / "0000.parquet", image=given, label=[0, 1] * 3).parent
    assert load_data(f"hf:{folder}").content_sha256 == data.content_sha256


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Testing", "extra"),
        ("train-00000-of-00001", "test-00000-of-00001", "extra-00000-of-00001"),
        ("train/0000", "test/0000", "extra/0000"),
        ("data/TRAIN_0", "data/Test_0", "data/extra_0"),
    ],
)
def test_no_file_of_a_folder_is_read_into_another_split(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    for seed, name in enumerate(names):
        file = tmp_path / "set" / f"{name}.parquet"
        parquet(file, image=rows(4, seed), label=["a", "b"] * 2)
    data = load_data(f"hf:{tmp_path / 'set'}")
    assert same(data.train_images, pictures(4, 0))
    assert same(data.test_images, pictures(4, 1))
    assert data.notes == (f"split extra of {tmp_path / 'set'} is neither trained nor tested on",)


def test_columns_are_chosen_as_for_lists(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        image=rows(4, 1),
        mask=rows(4, 2),
        label=[0, 1] * 2,
        kind=["a", "b"] * 2,
        several=[[0, 1]] * 4,
    )
    asked = f"'hf:{path}[columns=IMAGE,LABEL]'"
    refused(f"hf:{path}", "one column of images", "got image, mask", asked)
    masks = load_data(f"hf:{path}[columns=mask,kind]")
    assert masks.class_names == ("a", "b")
    seen = {image.numpy().tobytes() for image in (*masks.train_images, *masks.test_images)}
    assert seen == {np.asarray(p).transpose(2, 0, 1).tobytes() for p in pictures(4, 2)}
    assert load_data(f"hf:{path}[columns=mask]").class_names == ("0", "1")
    assert load_data(f"hf:{path}[columns=mask]#kind").class_names == ("a", "b")
    refused(f"hf:{path}[columns=mask,kind]#label", "got both")
    refused(f"hf:{path}[columns=mask,no]", "a column 'no' in", "image, mask, label")
    refused(f"hf:{path}[columns=kind,label]", "expected images in the column 'kind'")
    refused(f"hf:{path}[columns=mask,image]", "one class for every image in the column 'image'")
    refused(f"hf:{path}[columns=mask,several]", "one class for every image", "got lists")


def test_folders_of_images_have_a_source_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    pictures(1, 0)[0].save(tmp_path / "set" / "cat" / "0.png")
    refused(f"hf:{tmp_path / 'set'}", "got images", f"give imagefolder:{tmp_path / 'set'}")
