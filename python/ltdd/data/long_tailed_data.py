"""The form of all real data: `LongTailedData`, loaded from a source or made from one's own objects.

A source is loaded once per run. Its long-tailed training set is cut before any pixel is decoded,
and every stage reads the same cut.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltdd.config import Fit, IncompleteClasses, OnBadImage
from ltdd.data.duplicates import Duplicates
from ltdd.data.image_spec import ImageSpec, Normalization
from ltdd.data.reading.arrays import Arrays
from ltdd.data.reading.content import content_sha256
from ltdd.data.reading.decoded_cache import decode
from ltdd.data.reading.given_arrays import check_scale, given_images, given_labels
from ltdd.data.reading.image_source import IntArray, Labelled, Parts
from ltdd.data.reading.originals import LARGEST_SIZE, SMALLEST_SIZE, Originals
from ltdd.data.reading.python_datasets import Dataset, all_items
from ltdd.data.sources import SOURCES, open_source
from ltdd.data.splitting.incomplete_classes import complete
from ltdd.data.splitting.long_tail import long_tailed_indices, split_sha256
from ltdd.engine.public import public
from ltdd.errors import UserError, shown

__all__ = ["SOURCES", "LongTailedData", "from_datasets", "from_tensors", "load_data"]

# Per-channel mean and standard deviation of the full training sets, as published.
_NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


@dataclass(frozen=True)
class LongTailedData:
    """A long-tailed training set and its test set.

    Images are in memory, or mapped from files that may be larger than memory: index or split them,
    never write to them or copy them whole.

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
        notes: Sentences that the user should read before the run starts.
        duplicates: Images that occur twice.
        originals: What the images were before they were brought to one form; None if unknown.
        levels: Different values of the training pixels, 256 at most.
        flat: Training images that are nearly constant.
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
    notes: tuple[str, ...] = ()
    duplicates: Duplicates = field(default_factory=Duplicates)
    originals: Originals | None = None
    levels: int = 256
    flat: int = 0

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

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation per channel."""
        return Normalization(self.mean, self.std)

    def spec(self, flip: bool) -> ImageSpec:
        """Return the form of the images; ``flip`` says whether mirroring keeps the class."""
        return ImageSpec(self.image_size, self.channels, self.num_classes, self.normalization, flip)

    def members(self, label: int) -> Tensor:
        """Return the positions of the training images of a class, int64 (n,)."""
        return self._members[label]

    @cached_property
    def _members(self) -> tuple[Tensor, ...]:
        return by_class(self.train_labels, self.num_classes)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Training images of every class."""
        return tuple(torch.bincount(self.train_labels, minlength=self.num_classes).tolist())

    @cached_property
    def test_counts(self) -> tuple[int, ...]:
        """Test images of every class; 0 where a class cannot be measured."""
        return tuple(torch.bincount(self.test_labels, minlength=self.num_classes).tolist())

    @cached_property
    def content_sha256(self) -> str:
        """SHA-256 of all pixels and labels: changes when a file behind the same split changes."""
        return content_sha256(
            self.train_images, self.train_labels, self.test_images, self.test_labels
        )


@public()
def load_data(
    source: str,
    imbalance_factor: float | None = None,
    image_size: int | None = None,
    on_bad_image: OnBadImage = "fail",
    quiet: bool = True,
    fit: Fit = "crop",
    incomplete_classes: IncompleteClasses = "fail",
) -> LongTailedData:
    """Load a source, cut its long-tailed training set and bring all images to one size.

    Sources:
        `digits`: scikit-learn's 1,797 grey 8x8 digits; 50 images per class, drawn with a fixed
        seed, are the test set.

        `imagefolder:PATH`: `PATH/train/<class>/` and `PATH/test/<class>/` (or `PATH/val/...`), or
        `PATH/<class>/` alone. PATH may be a .zip or .tar archive of such a folder; it is unpacked
        once, below the cache folder. `imagefolder:PATH[levels=2]` takes `<outer>/<class>/` for
        classes. Tiny-ImageNet is read as it is published.

        `list:TRAIN[,TEST][@ROOT]`: lists of files, as CSV with a header (`path`, `label` and
        perhaps `split`), as COCO's JSON, or with a path and a label on every line, as ImageNet-LT
        has them. `[columns=IMAGE,LABEL]` behind it names other columns; without it, names as in
        published sets are found (`image_id`, `dx`), and columns of 0 and 1 are one-hot labels.
        Paths are relative to ROOT, by default to the folder of their list; the name of a file, or
        its name without the suffix, is enough where only one file below ROOT has it.

        `npz:FILE`: arrays `train_images`, `train_labels`, `test_images` and `test_labels` in one
        NumPy archive, as MedMNIST has them.

        `torchvision:NAME`: a classification set of torchvision, downloaded into the cache folder.
        `cifar10` and `cifar100` are two of them with the published normalization.

        `hf:NAME_OR_PATH[@CONFIG][#LABEL]`: a data set of Hugging Face's `datasets`, of the hub or
        in a local folder or parquet file; `[columns=IMAGE,LABEL]` chooses among several columns.

    Everywhere, splits may be called train or training, test or testing, and val, valid, validation
    or dev. The test split is tested on, else the validation split; a note names every split that is
    not used. Classes that are whole numbers are ordered as such, others as text, and those of a
    source that orders its own as it does.

    A source without a test part gives the same number of images of every class, a fifth of the
    smallest class and at least one, drawn with a fixed seed. The cache folder is named by the
    environment variable LTDD_DATA, else `~/.cache/ltdd`; it also keeps decoded images.

    Args:
        source: One of the above.
        imbalance_factor: Cut the training set to the exponential profile; None keeps it.
        image_size: Side in pixels, 8..224. None keeps the common size of the files if all are
            squares of one size in this range, else 32.
        on_bad_image: `skip` decodes every file first and leaves the unreadable ones out before the
            training set is cut; `fail` refuses to go on.
        quiet: No progress output while images are decoded.
        fit: How images that are not square become so: `crop` keeps the central square, `pad` adds
            black bars, `squeeze` scales each side alone.
        incomplete_classes: Classes without test images: `fail` refuses them, `keep` keeps them
            unmeasured, `hold_out` tests on a fifth of their training images. With the latter two,
            classes without training images are left out.

    Returns:
        The data; grey if all chosen files are grey.

    Raises:
        UserError: the source or an argument is not usable; the sentence says what was expected.
    """
    _check_size(image_size)
    parts = complete(open_source(source, on_bad_image), incomplete_classes)
    names, labels = parts.class_names, parts.train.labels
    chosen = long_tailed_indices(labels, len(names), imbalance_factor)
    sha256 = split_sha256(chosen, labels, names)
    return _cut(source, parts, chosen, sha256, image_size, fit, quiet)


@public(class_names="name every class")
def from_tensors(
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    class_names: Sequence[str] | None = None,
    *,
    imbalance_factor: float | None = None,
    image_size: int | None = None,
    fit: Fit = "crop",
    incomplete_classes: IncompleteClasses = "fail",
) -> LongTailedData:
    """Make the data of a run from tensors or arrays.

    Args:
        train_images, test_images: uint8, or floating point in [0, 1]; (N, H, W), (N, C, H, W) or
            (N, H, W, C) with C of 1 or 3. They are not copied if they are uint8 squares of the
            wanted size with channels first, so they may be mapped from a file.
        train_labels, test_labels: whole numbers (N,) from 0 to K - 1.
        class_names: names in class order; numbers by default.
        imbalance_factor, image_size, fit, incomplete_classes: as in `load_data`.

    Returns:
        The data, for ``ltdd.distill(config, out, data=...)``.

    Raises:
        UserError: an argument is not usable.

    Example:
        >>> images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
        >>> labels = torch.arange(40) % 2
        >>> from_tensors(images[:30], labels[:30], images[30:], labels[30:], ["cat", "dog"]).counts
        (15, 15)
    """
    train = _labelled("train", train_images, train_labels)
    test = _labelled("test", test_images, test_labels)
    parts = _named(train, test, class_names, incomplete_classes)
    return _in_python("tensors", parts, imbalance_factor, image_size, fit)


@public(class_names="name every class")
def from_datasets(
    train: Dataset,
    test: Dataset,
    class_names: Sequence[str] | None = None,
    *,
    imbalance_factor: float | None = None,
    image_size: int | None = None,
    fit: Fit = "crop",
    incomplete_classes: IncompleteClasses = "fail",
) -> LongTailedData:
    """Make the data of a run from map-style data sets of (image, class); images go to memory.

    Args:
        train, test: any `torch.utils.data.Dataset` with a length, without random transforms. Images
            are PIL images, arrays (H, W) or (H, W, C), or tensors (H, W) or (C, H, W), the latter
            two uint8 or floating point in [0, 1]. Every item is asked for more than once. The
            class is a whole number, or a tensor or array of one.
        class_names: names in class order; by default `train.classes` if there is one, else numbers.
        imbalance_factor, image_size, fit, incomplete_classes: as in `load_data`.

    Raises:
        UserError: an item is not usable, differs from one request to the next, or the two data sets
            name other classes.
    """
    own, others = (getattr(dataset, "classes", None) for dataset in (train, test))
    for classes in (own, others):
        if classes is not None and not isinstance(classes, list | tuple):
            raise UserError(f"expected classes of a data set as a list, got {shown(classes)}")
    if own and others and list(own) != list(others):
        raise UserError(
            f"expected the same classes in both data sets, got {shown(str(own))} and "
            f"{shown(str(others))}"
        )
    class_names = own if class_names is None else class_names
    parts = all_items(train, "train"), all_items(test, "test")
    named = _named(*parts, class_names, incomplete_classes)
    return _in_python("datasets", named, imbalance_factor, image_size, fit)


def by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Return the ascending positions of the members of every class, of labels int64 (N,)."""
    order = labels.argsort(stable=True)
    return tuple(order.split(torch.bincount(labels, minlength=num_classes).tolist()))


def _labelled(part: str, images: Any, labels: Any) -> Labelled:
    pixels = given_images(f"{part}_images", images)
    classes = given_labels(f"{part}_labels", labels)
    if len(pixels) != len(classes):
        raise UserError(
            f"expected one label for each of the {len(pixels)} {part}_images, got {len(classes)}"
        )
    return Labelled(Arrays(pixels, part), classes)


def _named(
    train: Labelled,
    test: Labelled,
    class_names: Sequence[str] | None,
    incomplete_classes: IncompleteClasses,
) -> Parts:
    count = int(train.labels.max()) + 1
    if class_names is None and count > len(train.labels):  # before a name is made for each
        raise UserError(
            f"expected train images of every class from 0 to {count - 1}, got {len(train.labels)} "
            "images; number the classes from 0 without gaps"
        )
    names = tuple(str(n) for n in (range(count) if class_names is None else class_names))
    if len(set(names)) != len(names):
        raise UserError(f"expected different class names, got {names}")
    return complete(Parts(train, test, names), incomplete_classes)


def _in_python(
    source: str,
    parts: Parts,
    imbalance_factor: float | None,
    image_size: int | None,
    fit: Fit,
) -> LongTailedData:
    _check_size(image_size)
    names = parts.class_names
    chosen = long_tailed_indices(parts.train.labels, len(names), imbalance_factor)
    data = _cut(source, parts, chosen, "", image_size, fit, quiet=True)
    check_scale("train images", data.train_images)
    check_scale("test images", data.test_images)
    # Positions in an object in memory name nothing: the content does.
    named = json.dumps(names) + data.content_sha256
    sha256 = hashlib.sha256(named.encode()).hexdigest()
    return dataclasses.replace(data, split_sha256=sha256)


def _cut(
    source: str,
    parts: Parts,
    chosen: IntArray,
    sha256: str,
    image_size: int | None,
    fit: Fit,
    quiet: bool,
) -> LongTailedData:
    whole = np.array_equal(chosen, np.arange(len(parts.train.labels)))
    train = parts.train if whole else parts.train.take(chosen)
    decoded = decode(dataclasses.replace(parts, train=train), image_size, fit, quiet)
    examined = decoded.examined
    mean, std = _NORMALIZATION.get(source) or (examined.mean, examined.std)
    data = LongTailedData(
        train_images=decoded.train_images,
        train_labels=torch.from_numpy(train.labels),
        test_images=decoded.test_images,
        test_labels=torch.from_numpy(parts.test.labels),
        class_names=parts.class_names,
        mean=mean,
        std=std,
        split_sha256=sha256,
        source=source,
        left_out=parts.left_out,
        notes=(*parts.notes, *decoded.originals.notes(), *decoded.notes),
        duplicates=examined.duplicates,
        originals=decoded.originals,
        levels=examined.levels,
        flat=examined.flat,
    )
    # Known already; a copy with other images computes its own.
    vars(data)["content_sha256"] = examined.content_sha256
    return data


def _check_size(image_size: int | None) -> None:
    if image_size is not None and not SMALLEST_SIZE <= image_size <= LARGEST_SIZE:
        raise UserError(
            f"expected an image size between {SMALLEST_SIZE} and {LARGEST_SIZE}, got {image_size}"
        )
