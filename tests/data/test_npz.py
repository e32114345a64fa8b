"""NumPy archives: layouts, MedMNIST's naming, streaming, every kind of bad archive."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusal import refused

from ltdd.data.long_tailed_data import load_data
from ltdd.data.reading import arrays as arrays_module
from ltdd.errors import UserError

LABELS = np.array([0, 1, 2, 0, 0, 1])


def arrays(side: int = 9, channels: int = 3) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    shapes = {"train": (6, channels, side, side), "test": (3, channels, side, side)}
    return {
        f"{part}_images": generator.integers(0, 256, shape, dtype=np.uint8)
        for part, shape in shapes.items()
    } | {"train_labels": LABELS, "test_labels": np.array([2, 1, 0])}


def saved(path: Path, given: dict[str, Any]) -> str:
    np.savez(path, **given)
    return f"npz:{path}"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NHW"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    given = arrays(channels=1 if layout == "NHW" else 3)
    stored = dict(given)
    for name in ("train_images", "test_images"):
        if layout == "NHW":
            stored[name] = given[name][:, 0]
        elif layout == "NHWC":
            stored[name] = np.ascontiguousarray(given[name].transpose(0, 2, 3, 1))
    data = load_data(saved(tmp_path / "a.npz", stored))
    assert np.array_equal(data.train_images, given["train_images"])
    assert np.array_equal(data.test_images, given["test_images"])
    assert data.train_labels.tolist() == LABELS.tolist()
    assert (data.class_names, data.counts) == (("0", "1", "2"), (3, 2, 1))


def test_medmnist_naming(tmp_path: Path) -> None:
    given = arrays(channels=1)
    for part in ("train", "test"):
        given[f"{part}_images"] = given[f"{part}_images"][:, 0]
        given[f"{part}_labels"] = given[f"{part}_labels"][:, None].astype(np.uint8)
    given |= {"val_images": given["test_images"], "val_labels": given["test_labels"]}
    path = tmp_path / "pathmnist.npz"
    np.savez_compressed(path, **given, class_names=np.array(["mucus", "muscle", "stroma"]))
    data = load_data(f"npz:{path}")
    assert data.class_names == ("mucus", "muscle", "stroma")
    assert data.channels == 1
    assert data.notes == (f"split val of {path} is neither trained nor tested on",)
    del given["test_images"], given["test_labels"]
    assert len(load_data(saved(path, given)).test_labels) == 3
    one = {k: v for k, v in given.items() if k.startswith("train")}
    refused(
        saved(path, one), "test images of every class", "got none of '2'", "or give test_images"
    )


def test_a_cut_is_read_in_a_stream_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(1)
    given = {
        "train_images": generator.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8),
        "train_labels": generator.permutation(np.repeat([0, 1], 100)),
        "test_images": generator.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.array([0, 1, 0, 1]),
    }
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **given)
    monkeypatch.setattr(arrays_module, "BLOCK_BYTES", 7 * 4 * 8 * 8 * 3)  # seven images
    data = load_data(f"npz:{path}", 10)
    assert data.counts == (100, 10)
    # Positions of the published rule, class by class, in drawn order.
    drawn = [
        np.flatnonzero(given["train_labels"] == c)[np.random.RandomState(42).permutation(100)[:n]]
        for c, n in enumerate(data.counts)
    ]
    expected = given["train_images"][np.concatenate(drawn)].transpose(0, 3, 1, 2)
    assert np.array_equal(data.train_images, expected)


def test_other_shapes_are_cropped_and_resized(tmp_path: Path) -> None:
    given = arrays()
    wide = np.zeros((6, 3, 20, 40), dtype=np.uint8)
    wide[..., 10:30] = 200
    data = load_data(saved(tmp_path / "a.npz", given | {"train_images": wide}), None, 10)
    assert data.train_images.shape == (6, 3, 10, 10)
    assert int(data.train_images.min()) == 200
    assert data.test_images.shape == (3, 3, 10, 10)


def test_grey_and_colour_parts_become_colour(tmp_path: Path) -> None:
    given = arrays() | {"test_images": arrays(channels=1)["test_images"]}
    data = load_data(saved(tmp_path / "a.npz", given))
    assert data.channels == 3
    assert torch.equal(data.test_images[:, 0], data.test_images[:, 2])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train_images": None}, ["a split train in", "got test"]),
        ({"train_labels": LABELS[:5]}, ["one label for each of the 6 train_images", "got 5"]),
        ({"train_labels": LABELS / 2}, ["train_labels in", "whole numbers", "float64"]),
        ({"train_labels": -LABELS}, ["train_labels", "0 or more, got -2"]),
        ({"train_labels": np.eye(6, dtype=int)}, ["train_labels", "(N,) or (N, 1)", "(6, 6)"]),
        ({"train_labels": LABELS * 2}, ["no training images of '1' and no test images of '4'"]),
        (
            {"test_labels": np.array([0, 1, 3])},
            ["no training images of '3' and no test images of '2'"],
        ),
        ({"test_labels": np.array([0, 1, 1])}, ["test images of every class, got none of '2'"]),
        ({"train_images": np.zeros((6, 9, 9))}, ["train_images in", "to be uint8, got float64"]),
        ({"train_images": np.zeros((6, 4, 9, 9), np.uint8)}, ["train_images in", "1 or 3"]),
        ({"train_images": np.zeros((6, 9), np.uint8)}, ["of shape (N, H, W)", "got (6, 9)"]),
        ({"train_images": np.zeros((0, 9, 9), np.uint8)}, ["of shape (N, H, W)", "(0, 9, 9)"]),
        ({"class_names": np.array(["a", "b"])}, ["3 class_names in", "got 2"]),
        ({"class_names": np.array(["a", "b", "a"])}, ["class_names in", "different texts"]),
        ({"class_names": np.array([1, 2, 3])}, ["class_names in", "different texts"]),
        ({"train_labels": LABELS.astype(object)}, ["train_labels in", "got objects"]),
        (
            {"train_images": np.asfortranarray(np.zeros((6, 9, 9), np.uint8))},
            ["in C order, got Fortran order"],
        ),
    ],
)
def test_bad_arrays(tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    given = {k: v for k, v in (arrays() | change).items() if v is not None}
    refused(saved(tmp_path / "a.npz", given), *parts)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    refused("npz:", "expected npz:FILE, got nothing behind npz:")
    refused(f"npz:{path}", "expected an .npz archive at", "No such file")
    path.write_bytes(pickle.dumps([1]))
    refused(f"npz:{path}", "expected an .npz archive at", "got something else")
    spec = saved(path, arrays())
    with zipfile.ZipFile(path, "w") as file:
        for name in ("train_images", "train_labels"):
            file.writestr(f"{name}.npy", b"no array")
    refused(spec, "expected a whole array train_labels in")


def test_no_damaged_archive_gives_other_images(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    spec = saved(path, arrays())
    whole, clean = path.read_bytes(), load_data(spec).content_sha256
    refusals = 0
    for position in range(0, len(whole), 61):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:  # a damaged time of change, for example, does no harm
            assert load_data(spec).content_sha256 == clean, position
        except UserError as error:
            refusals += str(path) in str(error)
    assert refusals > 20


def test_a_promise_of_more_pixels_than_there_are(tmp_path: Path) -> None:
    spec = saved(tmp_path / "a.npz", arrays())
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        members = {name: file.read(name) for name in file.namelist()}
    head = members["train_images.npy"].replace(b"(6, 3, 9, 9)", b"(6, 3, 9,99)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name, content in (members | {"train_images.npy": head}).items():
            file.writestr(name, content)
    refused(spec, "expected a whole array train_images in", "bytes")
