"""Classes and labels that cannot be right, and rare ones that can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.test_images import picture
from helpers.saved_set import save_set

from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import load_data
from ltdd.data.splitting.long_tail import exponential_counts, long_tailed_indices
from ltdd.errors import UserError
from ltdd.results.distilled_set import load
from ltdd.stages.metrics import accuracy_report, confusion_matrix

Tree = dict[str, int]


def build(root: Path, tree: Tree) -> Path:
    for name, count in tree.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(picture("PNG", number))
    return root


FOLDERS: dict[str, tuple[Tree, str]] = {
    "no class": ({}, "nothing there|got no folder"),
    "one class": ({"cat": 3}, "at least 2 class folders"),
    "an empty class": ({"cat": 3, "dog": 0}, "training images of every class, got none of 'dog'"),
    "one image of a class to share": (
        {"cat": 3, "dog": 1},
        "test images of every class, got none of 'dog'",
    ),
    "a class only in test": (
        {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1, "test/emu": 1},
        "training images of every class, got none of 'emu'",
    ),
    "a class only in train": (
        {"train/cat": 2, "train/dog": 2, "train/emu": 2, "test/cat": 1, "test/dog": 1},
        "test images of every class, got none of 'emu'",
    ),
    "an empty test class": (
        {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 0},
        "test images of every class, got none of 'dog'",
    ),
    "one class in both": ({"train/cat": 2, "test/cat": 1}, "at least 2 class folders"),
    "a class beside a split": (
        {"train/cat": 2, "train/dog": 2, "emu": 2},
        "test or val with class folders",
    ),
    "no train": ({"test/cat": 2, "test/dog": 2}, "expected a split train in .*, got test"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_no_classes(name: str, tmp_path: Path) -> None:
    tree, said = FOLDERS[name]
    with pytest.raises(UserError, match=said):
        load_data(f"imagefolder:{build(tmp_path / 'data', tree)}")


def test_one_image_of_every_class_is_enough(tmp_path: Path) -> None:
    tree = {"train/cat": 1, "train/dog": 1, "test/cat": 1, "test/dog": 1}
    data = load_data(f"imagefolder:{build(tmp_path / 'data', tree)}", 100.0)
    assert data.counts == (1, 1)


def test_names_that_differ_only_in_case_are_two_classes(tmp_path: Path) -> None:
    data = load_data(f"imagefolder:{build(tmp_path / 'data', {'Cat': 3, 'cat': 3})}")
    assert data.class_names == ("Cat", "cat")


def distilled(out: Path, **changes: Any) -> None:
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    shown = ImageSet(changes.pop("images", images), changes.pop("labels", labels))
    parts = {"shown": shown, "logits": torch.zeros(4, 2)}
    classes = {"class_names": ["cat", "dog"], "counts": [2, 2]}
    save_set(out, **(parts | classes | changes))  # type: ignore[arg-type]


SETS: dict[str, tuple[dict[str, object], str]] = {
    "a negative label": ({"labels": torch.tensor([0, -1, 1, 1])}, "labels from 0 to 1, got -1"),
    "a label too large": ({"labels": torch.tensor([0, 0, 1, 2])}, "got 0 to 2"),
    "a label of 2^40": ({"labels": torch.tensor([0, 0, 1, 2**40])}, "got 0 to 1099511627776"),
    "labels of another type": ({"labels": torch.zeros(4)}, "labels int64"),
    "too few labels": ({"labels": torch.tensor([0, 1])}, "labels int64 \\(4,\\)"),
    "labels as columns": ({"labels": torch.zeros(4, 1, dtype=torch.int64)}, "labels int64"),
    "a name twice": ({"class_names": ["cat", "cat"]}, "different class names"),
    "a class too many in the logits": ({"logits": torch.zeros(4, 3)}, "logits float32 \\(4, 2\\)"),
    "infinite logits": ({"logits": torch.full((4, 2), torch.inf)}, "finite logits"),
    "no images": ({"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)}, "M > 0"),
}


@pytest.mark.parametrize("name", SETS)
def test_sets_whose_labels_do_not_fit_are_not_written(name: str, tmp_path: Path) -> None:
    change, said = SETS[name]
    with pytest.raises(UserError, match=said):
        distilled(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_another_order_of_classes_is_refused(tmp_path: Path) -> None:
    distilled(tmp_path)
    with pytest.raises(UserError, match="expected class 0 to be 'dog', the set has 'cat'"):
        load(tmp_path, class_names=["dog", "cat"])


@pytest.mark.parametrize(
    "call",
    [
        lambda: confusion_matrix(torch.tensor([0]), torch.tensor([-1]), 2),
        lambda: confusion_matrix(torch.tensor([5]), torch.tensor([0]), 2),
        lambda: accuracy_report(torch.tensor([0, 0]), torch.tensor([0, 2]), [3, 3]),
    ],
)
def test_impossible_test_labels_raise(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()


def test_there_are_many_cases() -> None:
    assert len(FOLDERS) + len(SETS) + 6 >= 20


def test_a_profile_leaves_no_class_empty() -> None:
    labels = np.repeat(np.arange(4), [40, 3, 1, 1])
    chosen = long_tailed_indices(labels, 4, 100.0)
    assert np.bincount(labels[chosen], minlength=4).min() == 1
    assert min(exponential_counts(4, 100.0, 40)) >= 0
