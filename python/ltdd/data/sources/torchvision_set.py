"""``torchvision:NAME``: the classification sets of torchvision, downloaded on first use."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torchvision

from ltdd.config import OnBadImage
from ltdd.data.reading.decoded_cache import cache_folder
from ltdd.data.reading.image_source import IntArray, Labelled, Parts
from ltdd.data.reading.python_datasets import all_items
from ltdd.data.splitting.parts import Origin, labelled_by, parts_of
from ltdd.data.splitting.splits import choose_splits
from ltdd.errors import UserError

_BY_FLAG = ({"train": True}, {"train": False})
_BY_SPLIT = ({"split": "train"}, {"split": "test"})
_WITH_TRAINVAL = ({"split": "trainval"}, {"split": "test"})

SETS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "CIFAR10": _BY_FLAG,
    "CIFAR100": _BY_FLAG,
    "Country211": _BY_SPLIT,
    "DTD": _BY_SPLIT,
    "EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "FashionMNIST": _BY_FLAG,
    "FGVCAircraft": _WITH_TRAINVAL,
    "Flowers102": _BY_SPLIT,
    "Food101": _BY_SPLIT,
    "GTSRB": _BY_SPLIT,
    "Imagenette": ({"split": "train"}, {"split": "val"}),
    "KMNIST": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "OxfordIIITPet": _WITH_TRAINVAL,
    "PCAM": _BY_SPLIT,
    "QMNIST": _BY_FLAG,
    "RenderedSST2": _BY_SPLIT,
    "STL10": _BY_SPLIT,
    "SVHN": _BY_SPLIT,
    "USPS": _BY_FLAG,
}
"""Name -> what its class takes for the training part and for the test part."""

_UNUSED: Mapping[str, tuple[str, ...]] = {
    "Country211": ("valid",),
    "DTD": ("val",),
    "Flowers102": ("val",),
    "PCAM": ("val",),
    "RenderedSST2": ("val",),
    "STL10": ("unlabeled",),
    "SVHN": ("extra",),
}
"""Splits of the published sets that are in neither part."""


def torchvision_set(name: str, on_bad_image: OnBadImage) -> Parts:
    """Open a set of `SETS` below the cache folder; upper and lower case do not matter.

    Raises:
        UserError: the name is unknown, or the set is not there and cannot be downloaded.
    """
    spellings = {known.lower(): known for known in SETS}
    known = spellings.get(name.lower())
    if known is None:
        close = difflib.get_close_matches(name.lower(), spellings, n=1)
        hint = f"; did you mean {spellings[close[0]]}?" if close else ""
        raise UserError(f"expected a torchvision set among {', '.join(SETS)}; got {name!r}{hint}")
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        train, test = (
            getattr(torchvision.datasets, known)(str(root), download=True, **part)
            for part in SETS[known]
        )
        parts = [_labelled(d, n, known) for d, n in ((train, "train"), (test, "test"))]
    except UserError:
        raise
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected {known} in {root} or a network to download it from, got: {reason}"
        ) from error
    names = _class_names(train, parts[0].labels)
    splits = [
        labelled_by(part.images, part.labels.tolist(), f"{known} {split}", names)
        for part, split in zip(parts, ("train", "test"), strict=True)
    ]
    unused = dict.fromkeys(("train", "test", *_UNUSED.get(known, ())), True)
    origin = Origin(known, "", choose_splits(unused, known).notes)
    return parts_of(splits[0], splits[1], origin, on_bad_image, "declared")


def _labelled(dataset: Any, part: str, name: str) -> Labelled:
    # The archives of a set are checked by torchvision, so its name is as good as its content.
    identity = f"torchvision {name} {part} {len(dataset)}"
    return all_items(dataset, f"{name} {part}", _labels(dataset), identity)


def _labels(dataset: Any) -> IntArray | None:
    """Return the labels that a set knows without opening its images; None if it does not."""
    for attribute in ("targets", "labels", "_labels", "_samples"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            pairs = attribute == "_samples"
            return np.asarray([v[1] for v in values] if pairs else values, dtype=np.int64)
    return None


def _class_names(dataset: Any, labels: IntArray) -> tuple[str, ...]:
    names = [str(name) for name in getattr(dataset, "classes", ())]
    count = int(labels.max()) + 1
    if len(names) == count and len(set(names)) == count:
        return tuple(names)
    return tuple(str(number) for number in range(count))
