"""Sets of torchvision, read from files in their own formats; nothing is downloaded."""

from __future__ import annotations

import inspect
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.refusal import refused
from PIL import Image
from torchvision import datasets

from ltdd.data.long_tailed_data import load_data
from ltdd.data.sources.torchvision_set import SETS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, in which torchvision's files can be laid."""
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_mnist(cache: Path, name: str = "MNIST") -> dict[str, np.ndarray]:
    """Write scikit-learn's digits in MNIST's format; return images and labels of both parts."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros((300, 28, 28), dtype=np.uint8)
    images[:, 10:18, 10:18] = digits.images[:300] * 15
    labels = digits.target[:300].astype(np.uint8)
    parts = {"train": slice(0, 200), "t10k": slice(200, 300)}
    folder = cache / name / "raw"
    folder.mkdir(parents=True)
    for part, rows in parts.items():
        given = images[rows]
        head = struct.pack(">iiii", 2051, *given.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + given.tobytes())
        head = struct.pack(">ii", 2049, len(given))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels[rows].tobytes())
    return {
        "train": images[:200],
        "train_labels": labels[:200],
        "test": images[200:],
        "test_labels": labels[200:],
    }


def test_a_set_with_a_train_flag(cache: Path) -> None:
    given = write_mnist(cache)
    data = load_data("torchvision:mnist")
    assert np.array_equal(data.train_images[:, 0], given["train"])
    assert np.array_equal(data.test_images[:, 0], given["test"])
    assert data.train_labels.tolist() == given["train_labels"].tolist()
    assert data.test_labels.tolist() == given["test_labels"].tolist()
    assert data.class_names[:2] == ("0 - zero", "1 - one")
    assert (data.channels, data.image_size) == (1, 28)
    assert torch.equal(load_data("torchvision:MNIST").train_images, data.train_images)
    cut = load_data("torchvision:MNIST", 10)
    assert cut.counts[-1] < data.counts[-1]
    assert torch.equal(cut.test_images, data.test_images)


def test_a_set_with_splits_and_picture_files(cache: Path) -> None:
    root = cache / "dtd" / "dtd"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for part, count in (("train", 4), ("val", 1), ("test", 2)):
        names = []
        for label in ("banded", "dotted", "woven"):
            (root / "images" / label).mkdir(exist_ok=True)
            for n in range(count):
                names.append(f"{label}/{label}_{part}_{n}.jpg")
                Image.new("RGB", (40, 30), (20 * n, 90, len(names))).save(
                    root / "images" / names[-1]
                )
        (root / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")
    data = load_data("torchvision:DTD", None, 16)
    assert data.class_names == ("banded", "dotted", "woven")
    assert data.counts == (4, 4, 4)
    assert data.train_images.shape == (12, 3, 16, 16)
    assert torch.bincount(data.test_labels).tolist() == [2, 2, 2]
    assert data.notes == ("split val of DTD is neither trained nor tested on",)
    (root / "images" / "woven" / "woven_test_1.jpg").write_bytes(b"broken")
    assert load_data("torchvision:DTD", None, 16).content_sha256 == data.content_sha256
    refused("torchvision:DTD", "expected readable", "DTD test image 5")


@pytest.mark.parametrize("name", SETS)
def test_every_name_is_a_class_that_takes_these_arguments(name: str) -> None:
    made = getattr(datasets, name)
    for part in SETS[name]:
        signature = inspect.signature(made)
        bound = signature.bind("root", download=True, **part)
        named = set(bound.arguments) - {"kwargs"}
        # What a class hands on, its base class takes.
        others = bound.arguments.get("kwargs", {})
        inspect.signature(made.__mro__[1]).bind("root", **others)
        assert {"root"} <= named


def test_unknown_names() -> None:
    refused("torchvision:", "expected torchvision:NAME, got nothing behind torchvision:")
    refused("torchvision:cifar11", "expected a torchvision set among", "did you mean CIFAR1")
    refused("torchvision:VOCDetection", "expected a torchvision set among CIFAR10, CIFAR100")


def test_without_a_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def offline(*_: object, **__: object) -> None:
        raise URLError("name resolution\nfailed")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", offline)
    refused("torchvision:KMNIST", "expected KMNIST in", str(cache), "or a network", "failed")
    write_mnist(cache)
    (cache / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\0")
    refused("torchvision:MNIST", "expected")
