"""Describe the data before hours are spent on them: the tail, and warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ltdd.data.long_tailed_data import LongTailedData
from ltdd.data.splitting.long_tail import FEW_SHOT_UP_TO, accuracy_groups

FEW = 5
"""A class with fewer training images than this can hardly be learned or tested."""
_FEW_LEVELS = 16
_MANY_FLAT = 10  # one image in so many


def facts(data: LongTailedData) -> dict[str, Any]:
    """Return the summary as JSON types, for the log."""
    groups = accuracy_groups(data.counts)
    return {
        "source": data.source,
        "split_sha256": data.split_sha256,
        "classes": data.num_classes,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "largest_class": max(data.counts),
        "smallest_class": min(data.counts),
        "imbalance_factor": max(data.counts) / min(data.counts),
        "classes_below_5": sum(count < FEW for count in data.counts),
        "classes_up_to_20": len(groups.few_shot),
        "head_medium_tail": [len(g) for g in (groups.head, groups.medium, groups.tail)],
        "image_size": data.image_size,
        "channels": data.channels,
        "originals": None if data.originals is None else dataclasses.asdict(data.originals),
        "classes_without_test_images": data.test_counts.count(0),
        "test_images_in_train": data.duplicates.leaked,
        "contradictory_train_images": data.duplicates.contradictory,
        "duplicates": list(data.duplicates.examples),
        "warnings": list(warnings(data)),
    }


def describe(data: LongTailedData) -> str:
    """Return the summary as lines of text, with files left out, warnings and the split's hash."""
    counts, names = data.counts, data.class_names
    largest, smallest = max(counts), min(counts)
    groups = accuracy_groups(counts)
    kind = "grey" if data.channels == 1 else "RGB"
    lines = [
        *(f"left out: {file}" for file in data.left_out),
        f"{data.source}: {len(data.train_labels):,} training images of {data.num_classes:,} "
        f"classes, {kind} {data.image_size}x{data.image_size}; "
        f"{len(data.test_labels):,} test images, {_test_images_a_class(data)}",
        *_found(data),
        f"  imbalance factor {largest / smallest:.4g}: from {largest:,} "
        f"({names[counts.index(largest)]}) to {smallest:,} ({names[counts.index(smallest)]})",
        f"  head {len(groups.head)}, medium {len(groups.medium)}, tail {len(groups.tail)} classes; "
        f"{len(groups.few_shot)} with {FEW_SHOT_UP_TO} images or fewer, "
        f"{sum(count < FEW for count in counts)} with fewer than {FEW}",
        *(f"  note: {note}" for note in data.notes),
        *(f"  warning: {warning}" for warning in warnings(data)),
        f"split sha256: {data.split_sha256}",
    ]
    return "\n".join(lines)


def warnings(data: LongTailedData) -> Iterator[str]:
    """Yield what may make results mean something else than they seem to."""
    tested = [count for count in data.test_counts if count]
    if max(tested) > min(tested):
        yield (
            f"the test set is not balanced ({min(tested):,} to {max(tested):,} images a class), so "
            "overall accuracy favours its large classes"
        )
    if data.levels < _FEW_LEVELS:
        yield (
            f"the training images have only {data.levels} different pixel values of 256; unless "
            "they are line drawings, their range was lost before or while they were read"
        )
    if data.flat * _MANY_FLAT >= len(data.train_labels):
        yield (
            f"{data.flat:,} of {len(data.train_labels):,} training images are nearly constant: "
            "they show nothing"
        )
    found = data.duplicates
    shown = "; ".join(found.examples)
    kinds = []
    if found.leaked:
        kinds.append(f"{found.leaked:,} test images are also training images")
    if found.contradictory:
        kinds.append(f"{found.contradictory:,} training images are also in another class")
    if kinds:
        yield f"{' and '.join(kinds)}: {shown}"


def _found(data: LongTailedData) -> Iterator[str]:
    """Say what the images were, if it is something else than what they are."""
    found, side = data.originals, data.image_size
    if found is not None and found.sizes != f"{side}x{side}":
        yield f"  {found.described}"


def _test_images_a_class(data: LongTailedData) -> str:
    low, high = min(data.test_counts), max(data.test_counts)
    return f"{low:,} a class" if low == high else f"{low:,} to {high:,} a class"
