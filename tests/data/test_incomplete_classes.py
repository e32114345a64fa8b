"""Classes that lack training or test images: refused, kept, or given test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltdd.cli.main import main
from ltdd.data.long_tailed_data import LongTailedData, from_tensors, load_data
from ltdd.data.summary import describe, facts
from ltdd.errors import UserError

Builder = Callable[..., Path]
Counts = dict[str, int]


def sources(tmp_path: Path, class_folder: Builder, train: Counts, test: Counts) -> dict[str, Any]:
    """Return the same images as ways to load them, each with any further arguments."""
    for part, counts in (("train", train), ("test", test)):
        root = class_folder(part, counts)
        for name in (*train, *test):
            (root / name).mkdir(exist_ok=True)
    rows = [
        f"{part}/{path.parent.name}/{path.name},{path.parent.name},{part}"
        for part in ("train", "test")
        for path in sorted((tmp_path / part).glob("*/*"))
    ]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    names = sorted({*train, *test})
    labels = {
        part: np.array([n for n, name in enumerate(names) for _ in range(counts.get(name, 0))])
        for part, counts in (("train", train), ("test", test))
    }
    random = np.random.default_rng(0)
    arrays = {p: random.integers(0, 256, (len(of), 8, 8), np.uint8) for p, of in labels.items()}
    given = {f"{p}_images": arrays[p] for p in arrays} | {f"{p}_labels": labels[p] for p in labels}
    np.savez(tmp_path / "all.npz", **given, class_names=np.array(names))
    return {
        "imagefolder": lambda **how: load_data(f"imagefolder:{tmp_path}", **how),
        "list": lambda **how: load_data(f"list:{tmp_path / 'all.csv'}", **how),
        "npz": lambda **how: load_data(f"npz:{tmp_path / 'all.npz'}", **how),
        "tensors": lambda **how: from_tensors(**given, class_names=names, **how),
    }


TRAIN = {"ant": 3, "cat": 12, "emu": 5, "fox": 1}
TEST = {"ant": 2, "cat": 2, "yak": 3}


@pytest.mark.parametrize("source", ["imagefolder", "list", "npz", "tensors"])
def test_every_source_refuses_keeps_or_holds_out(
    tmp_path: Path, class_folder: Builder, source: str
) -> None:
    load = sources(tmp_path, class_folder, TRAIN, TEST)[source]
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "no training images of 'yak' and no test images of 'emu', 'fox'" in message
    assert "--incomplete-classes keep" in message
    assert "hold_out" in message

    kept: LongTailedData = load(incomplete_classes="keep")
    assert kept.class_names == ("ant", "cat", "emu", "fox")
    assert (kept.counts, kept.test_counts) == ((3, 12, 5, 1), (2, 2, 0, 0))
    assert "1 class ('yak') left out" in kept.notes[0]
    assert "with them 3 test images" in kept.notes[0]
    assert "2 classes ('emu', 'fox') cannot be measured" in kept.notes[1]
    assert "those of the other 2 classes" in kept.notes[1]
    assert facts(kept)["classes_without_test_images"] == 2

    held: LongTailedData = load(incomplete_classes="hold_out")
    assert (held.counts, held.test_counts) == ((3, 12, 4, 1), (2, 2, 1, 0))
    assert "1 training image held out as test images of 1 class ('emu')" in held.notes[1]
    assert "1 class ('fox') cannot be measured" in held.notes[2]
    assert held.duplicates.leaked == 0
    seen = {image.numpy().tobytes() for image in (*held.train_images, *held.test_images)}
    assert seen == {i.numpy().tobytes() for i in (*kept.train_images, *kept.test_images)}
    again: LongTailedData = load(incomplete_classes="hold_out")
    assert again.content_sha256 == held.content_sha256
    assert len({held.split_sha256, kept.split_sha256}) == 2


def test_complete_classes_are_the_same_with_every_choice(class_folder: Builder) -> None:
    root = class_folder("train", {"cat": 9, "dog": 4}).parent
    class_folder("test", {"cat": 2, "dog": 2})
    found = [
        load_data(f"imagefolder:{root}", incomplete_classes=how)  # type: ignore[arg-type]
        for how in ("fail", "keep", "hold_out")
    ]
    assert {(data.split_sha256, data.content_sha256, data.notes) for data in found} == {
        (found[0].split_sha256, found[0].content_sha256, ())
    }


def test_a_class_of_one_image_in_a_folder_without_test_part(class_folder: Builder) -> None:
    root = class_folder("pets", {"cat": 12, "dog": 6, "emu": 1})
    with pytest.raises(UserError, match=r"none of 'emu' \(.*held out for it, none of those with"):
        load_data(f"imagefolder:{root}")
    data = load_data(f"imagefolder:{root}", incomplete_classes="keep")
    assert (data.counts, data.test_counts) == ((11, 5, 1), (1, 1, 0))


def test_a_class_of_unreadable_files_alone(class_folder: Builder) -> None:
    root = class_folder("pets", {"cat": 4, "dog": 4, "emu": 4})
    for path in (root / "emu").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of 'emu' .*emu/0000.png \(not such an image\)"):
        load_data(f"imagefolder:{root}", on_bad_image="skip")
    data = load_data(f"imagefolder:{root}", on_bad_image="skip", incomplete_classes="keep")
    assert data.class_names == ("cat", "dog")
    assert len(data.left_out) == 4


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"cat": 3}, {"cat": 1, "dog": 2}, "at least 2 class"),
        ({"cat": 3, "dog": 0}, {"cat": 1, "dog": 1}, "2 classes with training images, got 1"),
    ],
)
def test_too_little_is_left(
    class_folder: Builder, tmp_path: Path, train: Counts, test: Counts, message: str
) -> None:
    class_folder("train", train)
    class_folder("test", test)
    with pytest.raises(UserError, match=message):
        load_data(f"imagefolder:{tmp_path}", incomplete_classes="keep")


def test_the_split_command_takes_the_option(
    class_folder: Builder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folder("train", TRAIN)
    class_folder("test", TEST)
    given = ["split", "--data", f"imagefolder:{tmp_path}"]
    assert main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*given, "--incomplete-classes", "hold_out"]) == 0
    assert "note: 1 training image held out as test images" in capsys.readouterr().out


def test_wide_images_that_are_held_out_have_the_common_scale(tmp_path: Path) -> None:
    from PIL import Image

    for part, name, count in (("train", "a", 2), ("train", "b", 5), ("test", "a", 1)):
        for number in range(count):
            path = tmp_path / part / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 3000 + number, np.uint16)).save(path)
    data = load_data(f"imagefolder:{tmp_path}", incomplete_classes="hold_out")
    assert data.test_counts == (1, 1)
    assert set(torch.unique(data.test_images).tolist()) == {187}


def test_the_summary_has_no_more_lines_than_there_is_to_say(
    class_folder: Builder, tmp_path: Path
) -> None:
    class_folder("train", {"cat": 3, "dog": 2, "emu": 2})
    class_folder("test", {"cat": 2, "dog": 2})
    data = load_data(f"imagefolder:{tmp_path}", incomplete_classes="keep")
    shown = describe(data)
    assert "0 to 2 a class" in shown
    assert "warning" not in shown  # the classes that are measured are balanced
