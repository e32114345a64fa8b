"""``hf:NAME_OR_PATH[@CONFIG][#LABEL]``: a data set in the form of Hugging Face's ``datasets``.

NAME is one of the hub; PATH is a folder written by ``save_to_disk``, a folder that ``load_dataset``
understands, or a parquet file. Pictures are decoded by our own decoders.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltdd.config import OnBadImage
from ltdd.data.reading.decoded_cache import cache_folder
from ltdd.data.reading.decoder import opened
from ltdd.data.reading.held_out import hold_out
from ltdd.data.reading.image_source import IntArray, Labelled, Parts, Pictures
from ltdd.engine.surroundings import user_path
from ltdd.errors import UserError

_LABEL_COLUMNS = ("label", "labels", "class")
_VALIDATION = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class _Rows(Pictures):
    """The image column of a split.

    Attributes:
        rows: gives ``{column: {"bytes": ..., "path": ...}}`` by position.
        column: name of the column.
        split: name of the split.
        fingerprint: names the content of the split.
        positions: which rows, in which order.
    """

    rows: Any
    column: str
    split: str
    fingerprint: str
    positions: IntArray
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, positions: IntArray) -> _Rows:
        return replace(self, positions=self.positions[positions])

    @contextmanager
    def opened(self, position: int) -> Iterator[Image.Image]:
        with self._lock:  # only decoding runs in several threads
            value = self.rows[int(self.positions[position])][self.column]
        if value is None:
            raise ValueError("no image")
        content = value["bytes"]
        with opened(content if content is not None else Path(value["path"])) as image:
            yield image

    def identity(self) -> str:
        given = f"{self.fingerprint} {self.split} {self.column} ".encode()
        return hashlib.sha256(given + self.positions.astype("<i8").tobytes()).hexdigest()

    def name(self, position: int) -> str:
        return f"{self.split} row {self.positions[position]}"


def hugging_face(place: str, on_bad_image: OnBadImage) -> Parts:
    """Open the splits of a data set; image and label columns are found by their types.

    Raises:
        UserError: the library or the data set is missing, or a column cannot be found.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "expected the package datasets for hf:, got none; install it with pip install "
            "'ltdd[hf]'"
        ) from error
    location, _, label_column = place.partition("#")
    splits = _splits(datasets, location)
    features = next(iter(splits.values())).features
    image_column = _image_column(datasets, features, location)
    label_column = _label_column(datasets, features, location, label_column)
    if "train" not in splits:
        raise UserError(f"expected a split train in {location}, got {', '.join(splits)}")
    names = _class_names(datasets, splits["train"], label_column)
    validation = next((name for name in _VALIDATION if name in splits), None)
    held_out = "test" if "test" in splits else validation
    unlabelled = held_out == "test" and set(_values(splits["test"], label_column)) <= {-1, None}
    if unlabelled and validation:
        held_out = validation
    columns = (image_column, label_column)
    train, bad = _labelled(datasets, splits["train"], "train", columns, names, on_bad_image)
    if held_out is None:
        train, test, note = hold_out(train, names, location, "a split test")
        return Parts(train, test, names, bad, (note,))
    test, bad_test = _labelled(datasets, splits[held_out], held_out, columns, names, on_bad_image)
    notes = [
        f"split {name} of {location} is neither trained nor tested on"
        for name in splits
        if name not in ("train", held_out)
    ]
    return Parts(train, test, names, bad + bad_test, tuple(notes))


def _splits(datasets: Any, location: str) -> dict[str, Any]:
    path = user_path(location)
    cache = str(cache_folder() / "huggingface")
    # Not a progress bar for every file of a local folder.
    shown = datasets.is_progress_bar_enabled()
    try:
        datasets.disable_progress_bars()
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path), cache_dir=cache)
        elif path.is_dir():
            found = datasets.load_dataset(str(path), cache_dir=cache)
        else:
            name, _, config = location.partition("@")
            found = datasets.load_dataset(name, config or None, cache_dir=cache)
    except Exception as error:  # the library, its downloads and its readers fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"expected a data set of Hugging Face's datasets at hf:{location}, got: {reason}"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return dict(found) if isinstance(found, Mapping) else {"train": found}


def _image_column(datasets: Any, features: Mapping[str, Any], location: str) -> str:
    columns = [name for name, f in features.items() if isinstance(f, datasets.Image)]
    if len(columns) != 1:
        got = ", ".join(columns) or f"only {', '.join(features)}"
        raise UserError(f"expected one column of images in {location}, got {got}")
    return columns[0]


def _label_column(datasets: Any, features: Mapping[str, Any], location: str, asked: str) -> str:
    if asked:
        if asked not in features:
            raise UserError(f"expected a column {asked!r} in {location}, got {', '.join(features)}")
        return asked
    columns = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
    columns = columns or [name for name in _LABEL_COLUMNS if name in features][:1]
    if len(columns) != 1:
        got = ", ".join(columns or features)
        raise UserError(
            f"expected one column of labels in {location}, got {got}; "
            f"choose one with hf:{location}#COLUMN"
        )
    return columns[0]


def _values(split: Any, column: str) -> list[Any]:
    return list(split.with_format(None)[column])


def _class_names(datasets: Any, train: Any, column: str) -> tuple[str, ...]:
    feature = train.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = set(_values(train, column))
    if not all(isinstance(v, str) for v in values) and not all(isinstance(v, int) for v in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise UserError(f"expected numbers or names in the column {column!r}, got {kinds}")
    return tuple(str(value) for value in sorted(values))


def _labelled(
    datasets: Any,
    split: Any,
    name: str,
    columns: tuple[str, str],
    names: tuple[str, ...],
    on_bad_image: OnBadImage,
) -> tuple[Labelled, tuple[str, ...]]:
    image_column, label_column = columns
    values = _values(split, label_column)
    if isinstance(split.features[label_column], datasets.ClassLabel):
        ids: dict[Any, int] = {number: number for number in range(len(names))}
    else:
        ids = {text: number for number, text in enumerate(names)}
        values = [str(value) for value in values]
    for row, value in enumerate(values):
        if value not in ids:
            raise UserError(
                f"expected one of {len(names)} classes in {label_column!r} of split {name}, got "
                f"{value!r} in row {row}"
            )
    labels = np.asarray([ids[value] for value in values], dtype=np.int64)
    if not len(labels):
        raise UserError(f"expected images in split {name}, got none")
    rows = split.cast_column(image_column, datasets.Image(decode=False)).with_format(None)
    images = _Rows(rows, image_column, name, split._fingerprint, np.arange(len(labels)))
    if on_bad_image == "fail":
        return Labelled(images, labels), ()
    good, bad = images.readable()
    return Labelled(images, labels).take(good), bad
