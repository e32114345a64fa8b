"""Lists of files: CSV and ImageNet-LT's form, where paths point, every kind of bad line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.refusal import refused
from PIL import Image

from ltdd.data.long_tailed_data import load_data


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folder with 0.png to 11.png, each of one grey value of its own."""
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def values(tensor: torch.Tensor) -> list[int]:
    return [int(image.flatten()[0]) // 10 for image in tensor]


def lines(path: Path, *text: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in text))
    return path


def test_imagenet_lt_lists(images: Path, tmp_path: Path) -> None:
    train = lines(
        tmp_path / "train.txt",
        "images/3.png 1",
        "images/1.png 0",
        "images/2.png 0",
        "",
        "images/4.png 10",
    )
    train.write_text(train.read_text().replace(" 10", " 2"))
    test = lines(tmp_path / "test.txt", "images/7.png 2", "images/5.png 0", "images/6.png 1")
    data = load_data(f"list:{train},{test}")
    assert data.class_names == ("0", "1", "2")
    assert data.train_labels.tolist() == [1, 0, 0, 2]
    assert values(data.train_images) == [3, 1, 2, 4]
    assert data.test_labels.tolist() == [2, 0, 1]
    assert values(data.test_images) == [7, 5, 6]
    assert data.counts == (2, 1, 1)


def test_paths_are_relative_to_the_list_or_to_a_given_root(images: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    train = lines(tmp_path / "lists/train.txt", "1.png 0", "2.png 1")
    test = lines(tmp_path / "lists/test.txt", "3.png 1", "4.png 0")
    refused(f"list:{train},{test}", f"{train} line 1: expected an image at", "got nothing")
    data = load_data(f"list:{train},{test}@{images}")
    assert values(data.train_images) == [1, 2]
    absolute = lines(tmp_path / "lists/a.txt", f"{images}/1.png 0", f"{images}/2.png 1")
    assert values(load_data(f"list:{absolute},{test}@{images}").train_images) == [1, 2]
    refused(f"list:{train}@{tmp_path / 'no'}", "expected the folder of the images at", "no folder")


def test_a_path_may_hold_spaces_commas_and_at_signs(images: Path, tmp_path: Path) -> None:
    for number in range(4):
        (images / f"{number}.png").rename(images / f"a b, {number}@x.png")
    rows = [f"images/a b, {n}@x.png {n % 2}" for n in range(4)]
    data = load_data(f"list:{lines(tmp_path / 'my, list@home.txt', *rows)}")
    assert sorted(values(data.train_images) + values(data.test_images)) == [0, 1, 2, 3]
    one, other = (lines(tmp_path / f"{n}@home.txt", *rows[n::2], *rows) for n in (0, 1))
    assert len(load_data(f"list:{one},{other}").test_labels) == 6
    assert len(load_data(f"list:{one},{other}@{tmp_path}").test_labels) == 6


def test_csv_with_names_and_splits(images: Path, tmp_path: Path) -> None:
    rows = ["label,Path,split,size", "emu,images/1.png,train,9", '"cat",images/2.png,TRAIN,9']
    rows += ["emu,images/3.png,test,9", "cat,images/4.png,test,9", "cat,images/5.png,val,9"]
    path = tmp_path / "all.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    data = load_data(f"list:{path}")
    assert data.class_names == ("cat", "emu")
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([1, 0], [1, 0])
    assert data.notes == (f"split val of {path} is neither trained nor tested on",)
    path.write_text("\n".join(row for row in rows if ",test," not in row).replace("val", "train"))
    refused(
        f"list:{path}",
        "expected test images of every class, got none of 'emu'",
        "with one image; or give",
    )
    lines(path, *rows[:3], "emu,images/3.png,validation,9", "cat,images/4.png,val,9")
    assert values(load_data(f"list:{path}").test_images) == [3, 4]


def test_one_list_without_splits_holds_a_part_out(images: Path, tmp_path: Path) -> None:
    path = lines(
        tmp_path / "all.csv", "path,label", *(f"images/{n}.png,{n % 2}" for n in range(12))
    )
    data = load_data(f"list:{path}")
    assert torch.bincount(data.test_labels).tolist() == [1, 1]
    assert data.counts == (5, 5)
    assert data.notes == (f"{path} has no test part: 1 of every class held out for it",)
    assert load_data(f"list:{path}").split_sha256 == data.split_sha256


def test_numbers_are_ordered_as_numbers(images: Path, tmp_path: Path) -> None:
    rows = [f"images/{n % 12}.png {n % 11:02}" for n in range(22)]
    data = load_data(f"list:{lines(tmp_path / 'all.txt', *rows)}")
    assert data.class_names == tuple(str(n) for n in range(11))
    assert data.class_names[10] == "10"


def test_unreadable_images_can_be_left_out(images: Path, tmp_path: Path) -> None:
    rows = [f"images/{n}.png {n % 2}" for n in range(12)]
    path = lines(tmp_path / "all.txt", *rows, "images/missing.png 1")
    (images / "7.png").write_bytes(b"broken")
    data = load_data(f"list:{path}", on_bad_image="skip")
    assert [Path(text.split(" (")[0]).name for text in data.left_out] == ["7.png", "missing.png"]
    assert sum(data.counts) + len(data.test_labels) == 11
    for n in range(1, 12, 2):
        (images / f"{n}.png").write_bytes(b"broken")
    with pytest.raises(
        ValueError, match=r"training images of every class, got none of '1' .*1\.png \(not such an"
    ):
        load_data(f"list:{path}", on_bad_image="skip")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["expected images in", "got none"]),
        ("images/1.png\n", ["line 1: expected a path, a space and a label", "'images/1.png'"]),
        ("images/1.png 0\nimages/2.png 0\n", ["at least 2 classes", "got only 0"]),
        (
            "images/1.png 0\nimages/no.png 1\n" * 2,
            ["line 2: expected an image at", "images/no.png"],
        ),
        ("path,split\nimages/1.png,train\n", ["columns path and label", "got path, split"]),
        ("path,label,label\nimages/1.png,0,1\n", ["columns path and label"]),
        ("path,label\nimages/1.png,0\nimages/2.png\n", ["line 3: expected 2 columns, got 1"]),
        ("path,label\n,0\n", ["line 2: expected a path and a label, got ''"]),
        ("path,label,split\nimages/1.png,0,\n", ["line 2: expected split train", "''"]),
        ("path,label,split\nimages/1.png,0,dev\n", ["a split train in", "got dev"]),
        ("path,label,split\nimages/1.png,0,test\n", ["a split train in", "got test"]),
        (
            "path,label,split\nimages/1.png,a,train\nimages/2.png,b,train\nimages/3.png,a,test\n",
            ["test images of every class, got none of 'b'", "--incomplete-classes keep"],
        ),
        (
            "path,label,split\nimages/1.png,a,train\nimages/2.png,b,test\n",
            ["got no training images of 'b' and no test images of 'a'"],
        ),
    ],
)
def test_bad_lists(images: Path, tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    refused(f"list:{path}", *parts)


def test_things_that_are_no_lists(images: Path, tmp_path: Path) -> None:
    refused("list:", "expected list:TRAIN[,TEST][@ROOT], got nothing behind list:")
    refused(f"list:{tmp_path / 'no.txt'}", "expected a list of images at", "got nothing there")
    refused(f"list:{images}", "expected a list of images at", "got a folder")
    path = lines(tmp_path / "a.txt", "images/1.png 0")
    refused(f"list:{path},{path},{path}", "got 3 lists")
    path.write_bytes(b"images/\xff.png 0\n")
    refused(f"list:{path}", "expected UTF-8 text in")
    path.write_bytes(np.random.default_rng(0).bytes(300))
    refused(f"list:{path}", "UTF-8")
