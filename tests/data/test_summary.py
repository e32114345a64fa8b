"""What is said about data before a run: the tail, duplicates, warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltdd.cli.main import main
from ltdd.data.duplicates import find_duplicates
from ltdd.data.long_tailed_data import from_tensors, load_data
from ltdd.data.summary import describe, facts


def test_digits_are_summarised() -> None:
    data = load_data("digits", 50)
    assert describe(data).splitlines() == [
        "digits: 364 training images of 10 classes, grey 8x8; 500 test images, 50 a class",
        "  imbalance factor 64: from 128 (0) to 2 (9)",
        "  head 3, medium 4, tail 3 classes; 5 with 20 images or fewer, 2 with fewer than 5",
        f"split sha256: {data.split_sha256}",
    ]


def test_duplicates_are_counted_and_named(
    class_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = class_folder("train", {"cat": 9, "dog": 3})
    test = class_folder("test", {"cat": 3, "dog": 2})
    # The same pixels in another file format: what counts is what a network sees.
    Image.open(train / "cat/0004.png").save(test / "cat/0001.bmp")
    (test / "dog/0001.png").write_bytes((train / "cat/0004.png").read_bytes())
    (train / "dog/0002.png").write_bytes((train / "cat/0007.png").read_bytes())
    (train / "cat/again.png").write_bytes((train / "cat/0001.png").read_bytes())
    data = load_data(f"imagefolder:{tmp_path}")
    assert (data.duplicates.leaked, data.duplicates.contradictory) == (2, 2)
    assert data.duplicates.examples == (
        f"{test}/cat/0001.bmp is also {train}/cat/0004.png",
        f"{test}/dog/0001.png is also {train}/cat/0004.png",
        f"{train}/cat/0007.png is also {train}/dog/0002.png",
        f"{train}/dog/0002.png is also {train}/cat/0007.png",
    )
    assert main(["split", "--data", f"imagefolder:{tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert (
        "  warning: 2 test images are also training images and 2 training images are also in "
        f"another class: {test}/cat/0001.bmp is also" in shown
    )
    assert "the test set is not balanced (2 to 4 images a class)" in shown
    assert shown.splitlines()[-1] == f"split sha256: {data.split_sha256}"
    stored = json.loads(json.dumps(facts(data)))
    assert stored["test_images_in_train"] == stored["contradictory_train_images"] == 2
    assert len(stored["duplicates"]) == 4
    assert stored["head_medium_tail"] == [1, 0, 1]
    assert len(stored["warnings"]) == 2


def test_duplicates_agree_with_comparing_every_pair() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        # Few values and few pixels, so that many images are equal.
        train = generator.integers(0, 2, (25, 1, 2, 2), dtype=np.uint8)
        test = generator.integers(0, 3, (12, 1, 2, 2), dtype=np.uint8)
        labels = generator.integers(0, 3, 25)
        found = find_duplicates(train, labels, test, "train {}".format, "test {}".format)
        equal = [[np.array_equal(a, b) for b in train] for a in test]
        leaked = [(n, row.index(True)) for n, row in enumerate(equal) if True in row]
        contradictory = [
            n
            for n, a in enumerate(train)
            if any(
                np.array_equal(a, b) and labels[n] != c for b, c in zip(train, labels, strict=True)
            )
        ]
        assert (found.leaked, found.contradictory) == (len(leaked), len(contradictory))
        first = [f"test {n} is also train {m}" for n, m in leaked[:5]]
        assert list(found.examples[: len(first)]) == first
        assert len(found.examples) == len(first) + min(5, len(contradictory))


def test_many_equal_images_take_no_square_of_time() -> None:
    images = np.zeros((60_000, 1, 2, 2), dtype=np.uint8)
    labels = np.arange(60_000) % 2
    found = find_duplicates(images, labels, images[:100], str, str)
    assert (found.leaked, found.contradictory) == (100, 60_000)


def test_notes_and_left_out_files_are_shown(class_folder: Callable[..., Path]) -> None:
    root = class_folder("pets", {"cat": 30, "dog": 11})
    (root / "cat/broken.png").write_bytes(b"broken")
    lines = describe(load_data(f"imagefolder:{root}", on_bad_image="skip")).splitlines()
    assert lines[0].startswith(f"left out: {root}/cat/broken.png (")
    assert f"  note: {root} has no test part: 2 of every class held out for it" in lines


def test_validation_images_are_said_to_be_unused(
    class_folder: Callable[..., Path], tmp_path: Path
) -> None:
    for part in ("train", "val", "test"):
        class_folder(part, {"cat": 2, "dog": 2})
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.notes == (f"split val of {tmp_path} is neither trained nor tested on",)


def test_two_classes_of_one_image_each() -> None:
    images = (60 * torch.arange(4)).to(torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    data = from_tensors(images[:2], torch.tensor([0, 1]), images[2:], torch.tensor([1, 0]))
    assert "  head 1, medium 0, tail 1 classes; 2 with 20 images or fewer, 2 with fewer" in (
        describe(data)
    )


def test_a_thousand_classes(tmp_path: Path) -> None:
    labels = np.arange(1000)
    images = np.zeros((2000, 8, 8), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(2000) % 256, np.arange(2000) // 256
    np.savez(
        tmp_path / "a.npz",
        train_images=images[:1000],
        train_labels=labels,
        test_images=images[1000:],
        test_labels=labels[::-1],
        class_names=[f"n{label:04}" for label in labels],
    )
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert data.class_names[998:] == ("n0998", "n0999")
    assert "1,000 classes, grey 8x8; 1,000 test images, 1 a class" in describe(data)
    assert "head 333, medium 334, tail 333 classes; 1000 with 20" in describe(data)
    assert data.duplicates.leaked == data.duplicates.contradictory == 0


def test_grey_colour_alpha_and_deep_images_in_one_folder(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
    pictures = {
        "grey.png": Image.fromarray(grey),
        "colour.png": Image.fromarray(np.stack([grey] * 3, axis=2)),
        "alpha.png": Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 255)], axis=2)),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for file, picture in pictures.items():
            picture.save(tmp_path / name / file)
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.channels == 3
    images = torch.cat([data.train_images, data.test_images])
    assert images.shape == (8, 3, 8, 8)
    assert bool((images == torch.from_numpy(grey)).all())
    assert data.duplicates.leaked == 2
    assert data.duplicates.contradictory == 6
