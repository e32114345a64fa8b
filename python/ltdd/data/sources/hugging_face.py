"""``hf:NAME_OR_PATH[@CONFIG][#LABEL]``: a data set in the form of Hugging Face's ``datasets``.

NAME is one of the hub; PATH is a folder written by ``save_to_disk``, a folder that ``load_dataset``
understands, or a parquet file. ``[columns=IMAGE,LABEL]`` chooses among several columns. Pictures
are decoded by our own decoders.
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
from ltdd.data.reading.image_source import IntArray, Parts, Pictures
from ltdd.data.sources.hf_files import parquet_splits
from ltdd.data.sources.spec import Spec
from ltdd.data.splitting.parts import Origin, Split, labelled_by, parts_of
from ltdd.data.splitting.splits import choose_splits, split_kind
from ltdd.engine.machine.surroundings import user_path
from ltdd.errors import UserError

_LABEL_COLUMNS = ("label", "labels", "class")


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


def hugging_face(spec: Spec, on_bad_image: OnBadImage) -> Parts:
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
    location, _, label_column = spec.place.partition("#")
    if label_column and len(spec.columns) == 2:
        raise UserError(f"expected #LABEL or [columns=IMAGE,LABEL], got both in {spec.place}")
    splits = _splits(datasets, location)
    first = next((split for name, split in splits.items() if split_kind(name) == "train"), None)
    features = (first or next(iter(splits.values()))).features
    image_column = _image_column(datasets, features, location, *spec.columns[:1])
    asked = spec.columns[1] if len(spec.columns) == 2 else label_column
    label_column = _label_column(datasets, features, location, asked)
    labelled = {name: _has_labels(split, name, label_column) for name, split in splits.items()}
    chosen = choose_splits(labelled, location)
    columns = (image_column, label_column)
    train, test = (
        None if name is None else _listed(datasets, splits[name], name, columns, location)
        for name in (chosen.train, chosen.test)
    )
    assert train is not None
    declared = isinstance(splits[chosen.train].features[label_column], datasets.ClassLabel)
    origin = Origin(location, "a split test", chosen.notes)
    return parts_of(train, test, origin, on_bad_image, "declared" if declared else "labels")


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
        elif path.is_dir() and (files := parquet_splits(path)):
            found = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
        elif path.is_dir():
            found = datasets.load_dataset(str(path), cache_dir=cache)
        else:
            name, _, config = location.partition("@")
            found = datasets.load_dataset(name, config or None, cache_dir=cache)
    except UserError:
        raise
    except Exception as error:  # the library, its downloads and its readers fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"expected a data set of Hugging Face's datasets at hf:{location}, got: {reason}"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return dict(found) if isinstance(found, Mapping) else {"train": found}


def _image_column(
    datasets: Any, features: Mapping[str, Any], location: str, asked: str = ""
) -> str:
    columns = [name for name, f in features.items() if isinstance(f, datasets.Image)]
    # Files without the library's own metadata have the bytes of pictures, alone or in a struct.
    in_bytes = [name for name, f in features.items() if _holds_bytes(f)]
    if asked:
        if _asked_column(features, location, asked) not in columns + in_bytes:
            raise UserError(
                f"expected images in the column {asked!r} of {location}, got {features[asked]}"
            )
        return asked
    columns = columns or in_bytes
    if len(columns) != 1:
        got = ", ".join(columns) or f"only {', '.join(features)}"
        hint = f"; choose one with 'hf:{location}[columns=IMAGE,LABEL]'" if columns else ""
        raise UserError(f"expected one column of images in {location}, got {got}{hint}")
    return columns[0]


def _holds_bytes(feature: Any) -> bool:
    inner = feature.get("bytes") if isinstance(feature, Mapping) else feature
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def _label_column(datasets: Any, features: Mapping[str, Any], location: str, asked: str) -> str:
    if asked:
        return _one_valued(features, location, _asked_column(features, location, asked))
    columns = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
    columns = columns or [name for name in _LABEL_COLUMNS if name in features][:1]
    if len(columns) != 1:
        got = ", ".join(columns or features)
        raise UserError(
            f"expected one column of labels in {location}, got {got}; "
            f"choose one with hf:{location}#COLUMN"
        )
    return _one_valued(features, location, columns[0])


def _asked_column(features: Mapping[str, Any], location: str, asked: str) -> str:
    if asked not in features:
        raise UserError(f"expected a column {asked!r} in {location}, got {', '.join(features)}")
    return asked


def _one_valued(features: Mapping[str, Any], location: str, column: str) -> str:
    kind = features[column]
    if not isinstance(getattr(kind, "dtype", None), str) or hasattr(kind, "feature"):
        lists = hasattr(kind, "feature") or isinstance(kind, list)
        got = "lists; images of several classes are not read" if lists else str(kind)
        raise UserError(
            f"expected one class for every image in the column {column!r} of {location}, got {got}"
        )
    return column


def _values(split: Any, column: str) -> list[Any]:
    return list(split.with_format(None)[column])


def _has_labels(split: Any, name: str, column: str) -> bool:
    """Return whether a split that could be tested on has labels: hidden ones are -1 or missing."""
    if split_kind(name) not in ("test", "val"):
        return True
    return column in split.features and not set(_values(split, column)) <= {-1, None}


def _listed(datasets: Any, split: Any, name: str, columns: tuple[str, str], location: str) -> Split:
    image_column, label_column = columns
    values = _values(split, label_column)
    if not values:
        raise UserError(f"expected images in split {name}, got none")
    feature = split.features[label_column]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    if names:
        for row, value in enumerate(values):
            if value is None or not 0 <= value < len(names):
                raise UserError(
                    f"expected one of {len(names)} classes in {label_column!r} of split {name}, "
                    f"got {value!r} in row {row}"
                )
    else:
        values = _texts(values, label_column)
    rows = split.cast_column(image_column, datasets.Image(decode=False)).with_format(None)
    images = _Rows(rows, image_column, name, split._fingerprint, np.arange(len(values)))
    return labelled_by(images, values, f"split {name} of {location}", names)


def _texts(values: list[Any], column: str) -> list[str]:
    """Return labels as text, whole numbers of any type alike."""
    given = set(values)
    numbers = all(isinstance(v, int) or (isinstance(v, float) and v.is_integer()) for v in given)
    if not numbers and not all(isinstance(v, str) and v for v in given):
        kinds = ", ".join(sorted({type(value).__name__ for value in given}))
        raise UserError(f"expected numbers or names in the column {column!r}, got {kinds}")
    return [str(int(v)) if numbers and not isinstance(v, bool) else str(v) for v in values]
