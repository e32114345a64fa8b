"""The order of classes: whole numbers by value in every source, or a note that it is text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.refusal import refused
from helpers.trees import images, png, write

from ltdd.data.long_tailed_data import load_data

Maker = Callable[[Path, Sequence[str]], str]


def as_folders(root: Path, labels: Sequence[str]) -> str:
    return f"imagefolder:{write(root / 'data', images(*labels))}"


def as_list(root: Path, labels: Sequence[str]) -> str:
    write(root, images(*labels))
    rows = [f"{path},{path.split('/')[0]}" for path in images(*labels)]
    (root / "all.csv").write_text("\n".join(["path,label", *rows]))
    return f"list:{root / 'all.csv'}"


def as_json(root: Path, labels: Sequence[str]) -> str:
    import json

    paths = images(*labels)
    write(root, paths)
    named = [{"id": n, "name": label} for n, label in enumerate(labels)]
    content = {
        "images": [{"id": n, "file_name": path} for n, path in enumerate(paths)],
        "annotations": [
            {"image_id": n, "category_id": labels.index(path.split("/")[0])}
            for n, path in enumerate(paths)
        ],
        "categories": named,
    }
    (root / "all.json").write_text(json.dumps(content))
    return f"list:{root / 'all.json'}"


def as_data_set(root: Path, labels: Sequence[str]) -> str:
    hf = pytest.importorskip("datasets", reason="needs the extra [hf]")
    features = hf.Features({"image": hf.Image(), "label": hf.Value("string")})
    rows = [path.split("/")[0] for path in images(*labels)]
    pictures = [{"bytes": png(n), "path": None} for n in range(len(rows))]
    made = hf.Dataset.from_dict({"image": pictures, "label": rows}, features)
    made.save_to_disk(str(root / "saved"))
    return f"hf:{root / 'saved'}"


MAKERS = (as_folders, as_list, as_json, as_data_set)
ORDERS = [
    (("10", "1", "2"), ("1", "2", "10"), None),
    (("0", "11", "2", "1"), ("0", "1", "2", "11"), None),
    (("cat", "Ant", "bee"), ("Ant", "bee", "cat"), None),
    (("10", "9", "other"), ("10", "9", "other"), "'other' is no whole number"),
    (("-1", "3"), ("-1", "3"), None),
    (("1.5", "10"), ("1.5", "10"), "'1.5' is no whole number"),
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("labels", "ordered", "said"), ORDERS)
def test_one_order_in_every_source(
    make: Maker, labels: Sequence[str], ordered: Sequence[str], said: str | None, tmp_path: Path
) -> None:
    data = load_data(make(tmp_path, labels))
    assert data.class_names == ordered
    texts = [note for note in data.notes if "ordered as text" in note]
    assert [said in note for note in texts] == [True] * bool(said), data.notes


@pytest.mark.parametrize("make", [as_list, as_json, as_data_set], ids=lambda make: make.__name__)
def test_numbers_are_classes_by_value(make: Maker, tmp_path: Path) -> None:
    data = load_data(make(tmp_path, ("10.0", "07", "0", "2.")))
    assert data.class_names == ("0", "2", "7", "10")
    assert any("not 0 to 3 without a gap" in note for note in data.notes)


def test_folders_keep_their_names(tmp_path: Path) -> None:
    data = load_data(as_folders(tmp_path, ("002", "010", "1.0", "1")))
    assert data.class_names == ("1", "1.0", "002", "010")


def test_labels_of_both_parts_meet_by_value(tmp_path: Path) -> None:
    write(tmp_path, [f"{n}.png" for n in range(6)])
    (tmp_path / "train.csv").write_text("path,label\n0.png,0.0\n1.png,1.0\n2.png,10.0\n")
    (tmp_path / "test.csv").write_text("path,label\n3.png,10\n4.png,0\n5.png,1\n")
    data = load_data(f"list:{tmp_path / 'train.csv'},{tmp_path / 'test.csv'}")
    assert data.class_names == ("0", "1", "10")
    assert data.test_labels.tolist() == [2, 0, 1]


def test_arrays_of_numbers_with_gaps(tmp_path: Path) -> None:
    given = {"train_images": np.zeros((8, 8, 8), np.uint8), "train_labels": np.array([9, 1] * 4)}
    np.savez(tmp_path / "a.npz", **given)
    assert load_data(f"npz:{tmp_path / 'a.npz'}").class_names == ("1", "9")
    np.savez(tmp_path / "b.npz", **given, class_names=np.array(list("abcdefghij")))
    refused(f"npz:{tmp_path / 'b.npz'}", "training images of every class, got none of 'a', 'c'")
