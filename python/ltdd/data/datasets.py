"""The sources of real images, all brought to one form: `LongTailedData`.

A source is loaded once per run. Its long-tailed training set is cut before any pixel is decoded,
and every stage reads the same cut.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltdd.config import OnBadImage
from ltdd.data.archives import is_archive, unpacked
from ltdd.data.image_files import (
    FileList,
    class_folders,
    list_files,
    read_headers,
    read_images,
    readable_files,
)
from ltdd.data.long_tail import long_tailed_indices, split_sha256
from ltdd.errors import UserError

SOURCES = ("digits", "imagefolder:PATH", "cifar10", "cifar100")
SMALLEST_SIZE, LARGEST_SIZE = 8, 224
FALLBACK_SIZE = 32

_DIGITS_TEST_PER_CLASS = 50
_HELD_OUT_SHARE = 5
_HELD_OUT_SEED = 0

# Per-channel mean and standard deviation of the full training sets, as published.
_NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


@dataclass(frozen=True)
class LongTailedData:
    """A long-tailed training set and its balanced test set, in memory.

    Attributes:
        train_images: uint8 (N, C, H, W).
        train_labels: int64 (N,).
        test_images: uint8 (T, C, H, W).
        test_labels: int64 (T,).
        class_names: Names in class order.
        mean, std: Per channel, in units of [0, 1].
        split_sha256: Names the chosen training images.
        source: Where the data came from, as given to `load_data`.
        left_out: Files that could not be read, with the reason.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    split_sha256: str
    source: str
    left_out: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.train_images.shape[-1]

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.train_images.shape[1]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Training images of every class."""
        return tuple(torch.bincount(self.train_labels, minlength=self.num_classes).tolist())

    @cached_property
    def content_sha256(self) -> str:
        """SHA-256 of all pixels and labels: changes when a file behind the same split changes."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()


def load_data(
    source: str,
    imbalance_factor: float | None = None,
    image_size: int | None = None,
    on_bad_image: OnBadImage = "fail",
) -> LongTailedData:
    """Load a source, cut its long-tailed training set and bring all images to one size.

    Sources:
        `digits`: scikit-learn's 1,797 grey 8x8 digits; 50 images per class, drawn with a fixed
        seed, are the test set.

        `imagefolder:PATH`: `PATH/train/<class>/` and `PATH/test/<class>/` (or `PATH/val/...`), or
        `PATH/<class>/` alone. Of a single folder the same number of images of every class, a
        fifth of the smallest class and at least one, drawn with a fixed seed, is the test set.
        Classes are ordered by folder name. PATH may be a .zip or .tar archive of such a folder; it
        is unpacked once, below the folder of the downloads.

        `cifar10`, `cifar100`: downloaded by torchvision into the folder named by the environment
        variable LTDD_DATA, else `~/.cache/ltdd`.

    Args:
        source: One of the above.
        imbalance_factor: Cut the training set to the exponential profile; None keeps it.
        image_size: Side in pixels, 8..224. None keeps the common size of the files if all are
            squares of one size in this range, else 32.
        on_bad_image: `skip` decodes every file of a folder first and leaves the unreadable ones out
            before the training set is cut; `fail` refuses to go on.

    Returns:
        The data; grey if all chosen files are grey.

    Raises:
        UserError: the source or an argument is not usable; the sentence says what was expected.
    """
    if image_size is not None and not SMALLEST_SIZE <= image_size <= LARGEST_SIZE:
        raise UserError(
            f"expected an image size between {SMALLEST_SIZE} and {LARGEST_SIZE}, got {image_size}"
        )
    kind, _, path = source.partition(":")
    if kind == "imagefolder":
        if not path:
            raise UserError("expected a folder after imagefolder:, as in imagefolder:PATH")
        root = Path(path).expanduser()
        if is_archive(root):
            root = unpacked(root, _cache() / "archives")
        return _image_folder(source, root, imbalance_factor, image_size, on_bad_image)
    if source == "digits":
        return _from_arrays(source, _digits(), imbalance_factor, image_size)
    if source in ("cifar10", "cifar100"):
        return _from_arrays(source, _cifar(source), imbalance_factor, image_size)
    raise UserError(f"expected data among {', '.join(SOURCES)}; got {source!r}")


@dataclass(frozen=True)
class _Arrays:
    """Images (N, C, H, W) and labels of both parts, before they are frozen into the public form."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


def _digits() -> _Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Intensities are 0..16; this is the nearest 8-bit value.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, test = _hold_out(labels, _DIGITS_TEST_PER_CLASS)
    names = tuple(str(name) for name in digits.target_names)
    return _Arrays(images[train], labels[train], images[test], labels[test], names)


def _cache() -> Path:
    return Path(os.environ.get("LTDD_DATA") or "~/.cache/ltdd").expanduser()


def _cifar(name: str) -> _Arrays:
    from torchvision import datasets

    root = _cache()
    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        train = dataset(str(root), train=True, download=True)
        test = dataset(str(root), train=False, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"expected {name} in {root} or a network to download it from, got: {error}"
        ) from error
    return _Arrays(
        train.data.transpose(0, 3, 1, 2),
        np.asarray(train.targets, dtype=np.int64),
        test.data.transpose(0, 3, 1, 2),
        np.asarray(test.targets, dtype=np.int64),
        tuple(train.classes),
    )


def _from_arrays(
    source: str, arrays: _Arrays, imbalance_factor: float | None, image_size: int | None
) -> LongTailedData:
    labels = arrays.train_labels
    chosen = long_tailed_indices(labels, len(arrays.class_names), imbalance_factor)
    size = image_size or arrays.train_images.shape[-1]
    cut = _Arrays(
        _resize(arrays.train_images[chosen], size),
        labels[chosen],
        _resize(arrays.test_images, size),
        arrays.test_labels,
        arrays.class_names,
    )
    return _finish(source, cut, split_sha256(chosen, labels, arrays.class_names))


def _image_folder(
    source: str,
    root: Path,
    imbalance_factor: float | None,
    image_size: int | None,
    on_bad_image: OnBadImage,
) -> LongTailedData:
    available, test, left_out = _train_and_test_files(root, on_bad_image)
    names = available.class_names
    chosen = long_tailed_indices(available.labels, len(names), imbalance_factor)
    train = available.take(chosen)
    headers = read_headers(train.paths + test.paths)
    sizes = {(header.width, header.height) for header in headers}
    width, height = next(iter(sizes))
    common = len(sizes) == 1 and width == height and SMALLEST_SIZE <= width <= LARGEST_SIZE
    size = image_size or (width if common else FALLBACK_SIZE)
    channels = 1 if all(header.grey for header in headers) else 3
    cut = _Arrays(
        read_images(train.paths, size, channels),
        train.labels,
        read_images(test.paths, size, channels),
        test.labels,
        names,
    )
    return _finish(source, cut, split_sha256(chosen, available.labels, names), left_out)


def _train_and_test_files(
    root: Path, on_bad_image: OnBadImage
) -> tuple[FileList, FileList, tuple[str, ...]]:
    folders = {folder.name: folder for folder in class_folders(root)}
    # A class may be called "train"; a split folder is one that holds folders itself.
    parts = {
        name: folders[name]
        for name in ("train", "test", "val")
        if name in folders and class_folders(folders[name])
    }
    if not parts:
        files, bad = _list_files(root, on_bad_image)
        smallest = int(np.bincount(files.labels).argmin())
        count = int(np.bincount(files.labels)[smallest])
        if count < 2:
            raise UserError(
                f"expected at least 2 images of every class to hold one out for testing, got 1 in "
                f"{root / files.class_names[smallest]}; or give {root / 'train'} and "
                f"{root / 'test'}"
            )
        train, test = _hold_out(files.labels, max(1, count // _HELD_OUT_SHARE))
        return files.take(train), files.take(test), bad
    held_out = parts.get("test") or parts.get("val")
    if "train" not in parts or held_out is None:
        present = next(iter(parts.values()))
        missing = "test or val" if "train" in parts else "train"
        raise UserError(
            f"expected {root / missing} with class folders beside {present}, got none; "
            f"to hold out a test part of one folder, give that folder"
        )
    _check_same_classes(parts["train"], held_out)
    train_files, bad_train = _list_files(parts["train"], on_bad_image)
    test_files, bad_test = _list_files(held_out, on_bad_image)
    return train_files, test_files, bad_train + bad_test


def _list_files(root: Path, on_bad_image: OnBadImage) -> tuple[FileList, tuple[str, ...]]:
    """List the images of a folder, without the unreadable ones if asked to, and say which."""
    files = list_files(root)
    if on_bad_image == "fail":
        return files, ()
    good, bad = readable_files(files)
    present = np.bincount(good.labels, minlength=len(files.class_names))
    if present.min() == 0:
        empty = root / files.class_names[int(present.argmin())]
        raise UserError(f"expected a readable image in every class folder, got none in {empty}")
    return good, bad


def _check_same_classes(train: Path, test: Path) -> None:
    names = {folder: {p.name for p in class_folders(folder)} for folder in (train, test)}
    for here, there in ((test, train), (train, test)):
        missing = sorted(names[here] - names[there])
        if missing:
            raise UserError(
                f"expected the same classes in {train} and {test}, got {missing[0]!r} only in "
                f"{here}"
            )


def _hold_out(
    labels: npt.NDArray[np.int64], per_class: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split positions into a rest and a balanced held-out part, both in order."""
    held_out = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng(_HELD_OUT_SEED)
    for class_id in range(int(labels.max()) + 1):
        positions = np.flatnonzero(labels == class_id)
        held_out[generator.permutation(positions)[:per_class]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _resize(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    if images.shape[-1] == size:
        return np.ascontiguousarray(images)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(images), size=(size, size), mode="bilinear", antialias=True
    )
    return np.ascontiguousarray(resized.numpy())


def _finish(
    source: str, arrays: _Arrays, sha256: str, left_out: tuple[str, ...] = ()
) -> LongTailedData:
    train_images = torch.from_numpy(arrays.train_images)
    mean, std = _NORMALIZATION.get(source) or _channel_statistics(train_images)
    return LongTailedData(
        train_images=train_images,
        train_labels=torch.from_numpy(arrays.train_labels),
        test_images=torch.from_numpy(arrays.test_images),
        test_labels=torch.from_numpy(arrays.test_labels),
        class_names=arrays.class_names,
        mean=mean,
        std=std,
        split_sha256=sha256,
        source=source,
        left_out=left_out,
    )


def _channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of all pixels of a channel, exactly, in [0, 1] units."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        # A histogram of 8-bit values: exact, and no float copy of the data set.
        weights = torch.bincount(channel.reshape(-1), minlength=256).double()
        weights /= weights.sum()
        mean = (weights * values).sum()
        variance = (weights * (values - mean) ** 2).sum()
        means.append(float(mean))
        # A constant channel would be divided by zero; it carries nothing, so leave its scale.
        deviations.append(float(variance.sqrt()) or 1.0)
    return tuple(means), tuple(deviations)
