"""Label files in COCO's form, as iNaturalist and iWildCam have them: one category an image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltdd.data.sources.label_file import Entry, LabelFile
from ltdd.errors import UserError


def read_coco(path: Path) -> LabelFile:
    """Read images, annotations and categories; boxes and masks are not used.

    Raises:
        UserError: it is no such file, or an image has several categories.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"expected a readable list at {path}, got {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON in {path}, got: {error}") from error
    try:
        files = {item["id"]: str(item["file_name"]) for item in content["images"]}
        # Several boxes of one category are one label.
        pairs = dict.fromkeys((a["image_id"], a["category_id"]) for a in content["annotations"])
        named = {item["id"]: str(item["name"]) for item in content.get("categories", ())}
    except (KeyError, TypeError, AttributeError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else type(content).__name__
        raise UserError(
            f"expected COCO's images, annotations and categories in {path}, got {got}; other "
            "labels go into CSV with columns path and label"
        ) from error
    names, notes = _names(path, named)
    labels: dict[Any, str] = {}
    for image, category in pairs:
        if image not in files or (named and category not in named):
            what, wanted = ("image", image) if image not in files else ("category", category)
            raise UserError(f"expected {what} {wanted!r} of an annotation in {path}, got none")
        label = names.get(category, str(category))
        if labels.setdefault(image, label) != label:
            raise UserError(
                f"expected one category for every image of {path}, got {labels[image]!r} and "
                f"{label!r} for {files[image]}; images of several classes are not read"
            )
    entries = [
        Entry(f"{path} image {image}", file, labels[image])
        for image, file in files.items()
        if image in labels
    ]
    left = len(files) - len(entries)
    if entries and left:
        notes += (f"images of {path} without an annotation are passed over: {left:,}",)
    return LabelFile(path, entries, notes)


def _names(path: Path, named: Mapping[Any, str]) -> tuple[dict[Any, str], tuple[str, ...]]:
    """Return class names by id; where two categories have one name, the ids are the names."""
    twice = [name for name, count in Counter(named.values()).items() if count > 1]
    if not twice:
        return dict(named), ()
    note = f"classes have the ids of {path} as names, because two categories are {twice[0]!r}"
    return {number: str(number) for number in named}, (note,)
