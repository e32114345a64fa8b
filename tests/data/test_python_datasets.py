"""Data given in Python: tensors, arrays, any map-style data set, and runs on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_run import QUIET, TINY
from PIL import Image
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder

import ltdd
from ltdd.data import LongTailedData, from_datasets, from_tensors, load_data
from ltdd.engine.storage.files import read_json
from ltdd.engine.watching.events import read_events
from ltdd.errors import UserError
from ltdd.studies.evaluate import evaluate

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (24, 3, 10, 10), dtype=np.uint8)
LABELS = np.array([0] * 12 + [1] * 6 + [2] * 6)


def made(**changes: Any) -> LongTailedData:
    given = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": 255 - IMAGES[::4],
        "test_labels": LABELS[::4],
    }
    return from_tensors(**given | changes)


def test_tensors_and_arrays_of_any_layout_are_the_same_data() -> None:
    data = made()
    assert data.counts == (12, 6, 6)
    assert data.class_names == ("0", "1", "2")
    assert np.array_equal(data.train_images, IMAGES)
    # Not copied: it may be a map of a larger file.
    assert data.train_images.data_ptr() == IMAGES.ctypes.data
    for images in (
        torch.from_numpy(IMAGES),
        torch.from_numpy(IMAGES).float() / 255,
        (IMAGES / 255).transpose(0, 2, 3, 1),
        IMAGES.transpose(0, 2, 3, 1),
    ):
        other = made(train_images=images, train_labels=torch.from_numpy(LABELS).int())
        assert other.split_sha256 == data.split_sha256
        assert other.content_sha256 == data.content_sha256
    assert made(train_images=IMAGES[:, 0], test_images=IMAGES[::4, 0]).channels == 1


def test_the_split_is_named_by_the_content() -> None:
    digest = made().split_sha256
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] ^= 1
    others = [
        made(train_images=changed),
        made(test_images=IMAGES[::4]),
        made(train_labels=LABELS[::-1].copy()),
        made(class_names=["a", "b", "c"]),
        made(imbalance_factor=3),
    ]
    assert len({digest, *(other.split_sha256 for other in others)}) == 6
    assert made(class_names=["a", "b", "c"]).class_names == ("a", "b", "c")


def test_arrays_can_be_cut_and_resized() -> None:
    data = made(imbalance_factor=6, image_size=16)
    assert data.counts == (12, 4, 2)
    assert data.train_images.shape == (18, 3, 16, 16)
    kept = np.random.RandomState(42).permutation(12)
    whole = made(image_size=16)
    assert torch.equal(data.train_images[:12], whole.train_images[kept])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": IMAGES[:5]}, "one label for each of the 5 train_images, got 24"),
        (
            {"train_images": IMAGES.astype(int)},
            "train_images as uint8 or .* got pixels of type int",
        ),
        ({"train_images": IMAGES * 1.0}, r"train_images .* from 0 to 255, not in \[0, 1\]"),
        ({"train_images": IMAGES * np.nan}, r"train_images .* from nan to nan, not in \[0, 1\]"),
        ({"train_images": IMAGES[0]}, r"one label for each of the 3 train_images"),
        ({"train_images": IMAGES[0, 0]}, r"train_images of shape \(N, H, W\)"),
        ({"test_images": np.zeros((6, 10, 10, 5), np.uint8)}, "test_images with 1 or 3 channels"),
        ({"train_labels": LABELS / 1}, "train_labels as whole numbers"),
        ({"train_labels": LABELS - 1}, "train_labels as whole numbers"),
        ({"train_labels": LABELS * 2}, "no training images of '1', '3' and no test images of '4'"),
        ({"test_labels": LABELS[::4] + 1}, "test labels 0 to 2, got 3"),
        ({"test_labels": LABELS[::4] * 0}, "test images of every class, got none of '1', '2'"),
        ({"class_names": ["a", "b"]}, r"labels in 0\.\.1, got 0\.\.2"),
        ({"class_names": ["a", "b", "a"]}, "different class names"),
        ({"image_size": 7}, "image size between 8 and 224, got 7"),
        ({"imbalance_factor": 0.5}, "imbalance factor >= 1"),
    ],
)
def test_bad_tensors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        made(**changes)
    assert "\n" not in str(caught.value)


def test_any_map_style_data_set(class_folder: Any, tmp_path: Path) -> None:
    class_folder("train", {"cat": 9, "dog": 3}, size=16)
    class_folder("test", {"cat": 2, "dog": 2}, size=16)
    by_folder = load_data(f"imagefolder:{tmp_path}")
    train, test = ImageFolder(str(tmp_path / "train")), ImageFolder(str(tmp_path / "test"))
    data = from_datasets(train, test)
    assert data.class_names == ("cat", "dog")
    assert data.content_sha256 == by_folder.content_sha256
    assert data.mean == by_folder.mean
    assert from_datasets(train, test, imbalance_factor=9).counts == (9, 1)
    # A subset has no names, tensors instead of pictures, and labels in tensors.
    tensors = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    subset = from_datasets(Subset(tensors, range(1, 24)), Subset(tensors, range(0, 24, 4)))
    assert np.array_equal(subset.train_images, IMAGES[1:])
    assert subset.train_labels.tolist() == LABELS[1:].tolist()
    assert subset.duplicates.leaked == 5


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (Image.new("L", (9, 9), 51), True),
        (Image.new("RGBA", (9, 9), (51, 51, 51, 255)), False),
        (np.full((9, 9), 51, np.uint8), True),
        (np.full((9, 9, 1), 51, np.uint8), True),
        (np.full((9, 9, 3), 0.2), False),
        (torch.full((1, 9, 9), 0.2), True),
        (torch.full((3, 9, 9), 51, dtype=torch.uint8), False),
    ],
)
def test_images_of_many_kinds(image: Any, grey: bool) -> None:
    items = [(image, 0), (image, 1), (image, 1)]
    data = from_datasets(items, items)  # a list is a map-style data set, too
    assert data.channels == (1 if grey else 3)
    assert data.train_images.shape == (3, data.channels, 9, 9)
    assert bool((data.train_images == 51).all())


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "images in the train data, got none"),
        (iter([]), "train data with a length and an item at every position, got a list_i"),
        ([IMAGES[0]], r"\(image, class\) pairs in the train data, got a uint8 ndarray of .* at 0"),
        ([(IMAGES[0, 0], "cat")], "a class 0 or more, a whole number, .* at 0, got 'cat'"),
        ([(IMAGES[0, 0], 0.5)], "a whole number"),
        ([(IMAGES[0, 0], 0), (IMAGES[0], 1)], r"train image 1 \(an array of shape \(3, 10, 10\)\)"),
        ([(IMAGES[0, 0], 0), ("a.png", 1)], r"train image 1 \(a str, not an image"),
        ([(IMAGES[0, 0], 0), (IMAGES[0, 0] * 9.0, 1)], "train image 1 .floating-point pixels from"),
        ([(IMAGES[0, 0], 0)], "expected at least 2 classes, got 1"),
    ],
)
def test_bad_items(items: Any, message: str) -> None:
    good = [(IMAGES[0, 0], 0), (IMAGES[1, 0], 1)]
    with pytest.raises(UserError, match=message) as caught:
        from_datasets(items, good)
    assert "\n" not in str(caught.value)


def test_a_run_on_given_data_can_be_resumed_and_evaluated(tmp_path: Path) -> None:
    digits = load_data("digits", 100)
    data = ltdd.data.from_tensors(
        digits.train_images, digits.train_labels, digits.test_images, digits.test_labels
    )
    config = dataclasses.replace(
        TINY,
        data="digits",
        imbalance_factor=None,
        experts=dataclasses.replace(TINY.experts, epochs=1),
        evaluation=dataclasses.replace(TINY.evaluation, baselines=(), seeds=1, epochs=1),
    )
    results = ltdd.distill(config, tmp_path / "run", data=data, options=QUIET)
    assert results["counts"] == list(digits.counts)
    stored = read_json(tmp_path / "run" / "run.json")
    assert stored["config"]["data"] == "tensors"
    before = (tmp_path / "run" / "data.safetensors").read_bytes()
    ltdd.distill(config, tmp_path / "run", data=data, options=QUIET)
    assert (tmp_path / "run" / "data.safetensors").read_bytes() == before
    events = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "data"]
    assert [e["smallest_class"] for e in events] == [1, 1]
    distilled = ltdd.load(tmp_path / "run")
    again = evaluate(distilled, ["convnet3"], 1, "hard", options=QUIET, data=data)["convnet3"]
    assert again["student"]["labels"] == "hard"
    with pytest.raises(UserError, match="got 'tensors': this run was made from data given in Py"):
        evaluate(distilled, ["convnet3"], 1, "hard", options=QUIET)
    with pytest.raises(UserError, match="imbalance_factor None with data= given, got 100"):
        ltdd.distill(TINY, tmp_path / "other", data=data)
