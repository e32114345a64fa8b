"""Names of splits, the same for folders, archives, lists, arrays and Hugging Face's data sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.refusal import refused
from helpers.trees import images, png, write

from ltdd.data.long_tailed_data import load_data
from ltdd.data.splitting.splits import split_kind

CLASSES = ("cat", "dog", "emu")
Maker = Callable[[Path, "dict[str, int]"], str]


def as_folder(root: Path, splits: dict[str, int]) -> str:
    for name, count in splits.items():
        write(root / "data" / name, images(*CLASSES, count=count))
    return f"imagefolder:{root / 'data'}"


def as_archive(root: Path, splits: dict[str, int]) -> str:
    as_folder(root, splits)
    return f"imagefolder:{shutil.make_archive(str(root / 'packed'), 'zip', root / 'data')}"


def as_list(root: Path, splits: dict[str, int]) -> str:
    rows = ["split,label,path"]
    for split, count in splits.items():
        for path in images(*CLASSES, count=count):
            rows.append(f"{split},{path.split('/')[0]},{split}/{path}")
            write(root, [f"{split}/{path}"])
    (root / "all.csv").write_text("\n".join(rows))
    return f"list:{root / 'all.csv'}"


def as_arrays(root: Path, splits: dict[str, int]) -> str:
    given = {"class_names": np.array(CLASSES)}
    for split, count in splits.items():
        given[f"{split}_images"] = np.zeros((3 * count, 8, 8), np.uint8)
        given[f"{split}_labels"] = np.repeat([0, 1, 2], count)
    np.savez(root / "all.npz", **given)
    return f"npz:{root / 'all.npz'}"


def as_data_set(root: Path, splits: dict[str, int]) -> str:
    hf = pytest.importorskip("datasets", reason="needs the extra [hf]")
    features = hf.Features({"image": hf.Image(), "label": hf.Value("string")})
    made = {}
    for split, count in splits.items():
        labels = [name for name in CLASSES for _ in range(count)]
        rows = [{"bytes": png(n), "path": None} for n in range(len(labels))]
        made[split] = hf.Dataset.from_dict({"image": rows, "label": labels}, features)
    hf.DatasetDict(made).save_to_disk(str(root / "saved"))
    return f"hf:{root / 'saved'}"


def as_parquet(root: Path, splits: dict[str, int]) -> str:
    pa = pytest.importorskip("pyarrow", reason="needs the extra [hf]")
    pytest.importorskip("datasets", reason="needs the extra [hf]")
    import pyarrow.parquet as pq

    (root / "tables").mkdir()
    for split, count in splits.items():
        labels = [name for name in CLASSES for _ in range(count)]
        rows = [{"bytes": png(n), "path": None} for n in range(len(labels))]
        table = pa.table({"image": rows, "label": labels})
        pq.write_table(table, root / "tables" / f"{split}-00000-of-00001.parquet")
    return f"hf:{root / 'tables'}"


MAKERS = (as_folder, as_archive, as_list, as_arrays, as_data_set, as_parquet)
USED = [
    ({"train": 4, "test": 2}, 2, []),
    ({"Training": 4, "Testing": 2}, 2, []),
    ({"TRAIN": 4, "VALID": 3}, 3, []),
    ({"training": 4, "validation": 3, "TEST": 2}, 2, ["validation"]),
    ({"train": 4, "Val": 3, "Testing": 1, "extra": 2}, 1, ["Val", "extra"]),
    ({"train": 6, "eval": 2}, 1, ["eval"]),
    ({"training_set": 4, "test_set": 2, "unlabeled": 1}, 2, ["unlabeled"]),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("splits", "tested", "unused"), USED)
def test_the_same_splits_in_every_source(
    make: Maker, splits: dict[str, int], tested: int, unused: list[str], tmp_path: Path
) -> None:
    data = load_data(make(tmp_path, splits))
    held_out = tested if not splits.keys() - {"train", *unused} else 0
    assert data.class_names == CLASSES
    assert data.counts == (next(iter(splits.values())) - held_out,) * 3
    assert len(data.test_labels) == 3 * tested
    notes = [note for note in data.notes if note.endswith("neither trained nor tested on")]
    assert len(notes) == len(unused), data.notes
    for name in unused:
        assert any(f"split {name}" in note for note in notes), notes
    assert any("held out" in note for note in data.notes) == bool(held_out)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_two_splits_of_one_kind_are_refused_where_one_is_needed(
    make: Maker, tmp_path: Path
) -> None:
    if make is as_list:
        pytest.skip("rows of one kind are one split")
    refused(make(tmp_path, {"train": 2, "training": 2, "test": 2}), "one split train", "training")


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_without_a_training_split_nothing_is_guessed(make: Maker, tmp_path: Path) -> None:
    refused(make(tmp_path, {"test": 2, "val": 2}), "expected a split train in", "got test, val")


@pytest.mark.parametrize("make", [as_folder, as_archive, as_list], ids=lambda make: make.__name__)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_readable_image_of_every_class_is_wanted_in_both_parts(
    make: Maker, part: str, tmp_path: Path
) -> None:
    spec = make(tmp_path, {"train": 2, "test": 2})
    for path in tmp_path.rglob(f"{part}/dog/*.png"):
        path.write_bytes(b"broken")
    if make is as_archive:
        shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "data")
    with pytest.raises(
        ValueError, match=rf"{part}\w* images of every class, got none of 'dog' .*not such"
    ):
        load_data(spec, on_bad_image="skip")


def test_test_images_without_labels_are_not_tested_on(tmp_path: Path) -> None:
    root = write(tmp_path / "flat", images("train/cat", "train/dog", "test"))
    write(tmp_path / "one", images("train/cat", "train/dog", "test/unknown", "valid/cat"))
    write(tmp_path / "one", images("valid/dog"))
    for name, tested in (("flat", 2), ("one", 8)):
        data = load_data(f"imagefolder:{tmp_path / name}")
        assert len(data.test_labels) == tested
        assert any("split test" in n and "it has no labels" in n for n in data.notes), data.notes
    refused(f"imagefolder:{write(tmp_path / 'no', images('train', 'test'))}", "list:FILE@")
    assert load_data(f"imagefolder:{root / 'train'}").class_names == ("cat", "dog")


def test_splits_below_classes_are_not_mixed(tmp_path: Path) -> None:
    root = write(tmp_path / "a", images("cat/train", "cat/test", "dog/train", "dog/test"))
    refused(f"imagefolder:{root}", "splits above the classes", str(root / "cat" / "train"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Training", "train"),
        ("train2017", "train"),
        ("Test Images", "test"),
        ("VALID", "val"),
        ("validation-data", "val"),
        ("val_set", "val"),
        ("trainer", None),
        ("tests", None),
        ("train_mini", None),
        ("value", None),
        ("eval", None),
        ("trains", None),
    ],
)
def test_only_names_of_splits_are_splits(name: str, kind: str | None) -> None:
    assert split_kind(name) == kind
