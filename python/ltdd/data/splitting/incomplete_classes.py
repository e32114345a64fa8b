"""Classes without test images or without training images, as long tails have them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ltdd.config import IncompleteClasses
from ltdd.data.reading.decoder import Form, Header, UInt8Array
from ltdd.data.reading.image_source import Images, IntArray, Labelled, Parts
from ltdd.engine.storage.files import fingerprint
from ltdd.errors import UserError

_LISTED = 5  # classes that one message names
_SHARE, _SEED = 5, 0


def complete(parts: Parts, how: IncompleteClasses) -> Parts:
    """Decide about classes that lack training or test images.

    Args:
        parts: what a source offers; any class may be without images of a part.
        how: ``fail`` refuses such classes. Otherwise those without training images are left out,
            and those without test images stay: unmeasured with ``keep``, and with ``hold_out``
            tested on a fifth of their training images, where there are two or more.

    Returns:
        Parts in which every class has training images and some have test images, with notes.

    Raises:
        UserError: there are such classes and `how` is ``fail``, or too little is left.
    """
    _check_labels(parts)
    if how == "fail":
        _refuse(parts)
        return parts
    parts = _without_untrained(parts)
    if how == "hold_out":
        parts = _with_held_out(parts)
    untested = _absent(parts.test, len(parts.class_names))
    if len(untested) == len(parts.class_names):
        raise UserError("expected test images of at least one class, got none")
    if not untested:
        return parts
    note = (
        f"{_classes(parts, untested)} cannot be measured, because there are no test images; "
        f"accuracies are those of the other {len(parts.class_names) - len(untested)} classes"
    )
    return dataclasses.replace(parts, notes=(*parts.notes, note))


def _check_labels(parts: Parts) -> None:
    count, train, test = len(parts.class_names), parts.train.labels, parts.test.labels
    if count < 2:
        raise UserError(f"expected at least 2 classes, got {count}")
    if train.max(initial=0) >= count:
        raise UserError(f"expected labels in 0..{count - 1}, got {train.min()}..{train.max()}")
    if test.max(initial=0) >= count:
        raise UserError(f"expected test labels 0 to {count - 1}, got {test.max()}")


def _refuse(parts: Parts) -> None:
    untrained, untested = (_absent(p, len(parts.class_names)) for p in (parts.train, parts.test))
    untested = [label for label in untested if label not in set(untrained)]
    absent = {kind: of for kind, of in (("training", untrained), ("test", untested)) if of}
    if not absent:
        return
    if len(absent) == 1:
        got = f"none of {_listed(parts, *absent.values())}"
    else:
        of_kind = [f"no {kind} images of {_listed(parts, of)}" for kind, of in absent.items()]
        got = " and ".join(of_kind)
    ways = {
        "test": "keep distils them unmeasured, hold_out tests on a fifth of their training images",
        "training": "keep leaves them out",
    }
    way = (
        ways[next(iter(absent))]
        if len(absent) == 1
        else (f"{ways['test']}, and both leave out classes without training images")
    )
    held_out = tuple(note for note in parts.notes if "has no test part" in note)
    because = (held_out if untested else ()) + tuple(
        f"left out: {file}" for file in parts.left_out[:1]
    )
    raise UserError(
        f"expected {' and '.join(absent)} images of every class, got {got}"
        + (f" ({'; '.join(because)})" if because else "")
        + f"; --incomplete-classes {way}"
    )


def _absent(part: Labelled, count: int) -> list[int]:
    """Return the classes that have no image in a part."""
    found: list[int] = np.flatnonzero(np.bincount(part.labels, minlength=count) == 0).tolist()
    return found


def _without_untrained(parts: Parts) -> Parts:
    untrained = _absent(parts.train, len(parts.class_names))
    if not untrained:
        return parts
    kept = [c for c in range(len(parts.class_names)) if c not in set(untrained)]
    if len(kept) < 2:
        raise UserError(f"expected at least 2 classes with training images, got {len(kept)}")
    number = np.full(len(parts.class_names), -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    tested = np.flatnonzero(number[parts.test.labels] >= 0)
    lost = len(parts.test.labels) - len(tested)
    test = parts.test.take(tested) if lost else parts.test
    note = f"{_classes(parts, untrained)} left out, because there are no training images" + (
        f", and with them {lost:,} test images" if lost else ""
    )
    return dataclasses.replace(
        parts,
        train=Labelled(parts.train.images, number[parts.train.labels]),
        test=Labelled(test.images, number[test.labels]),
        class_names=tuple(parts.class_names[c] for c in kept),
        notes=(*parts.notes, note),
    )


def _with_held_out(parts: Parts) -> Parts:
    labels, generator = parts.train.labels, np.random.default_rng(_SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    classes = []
    for label in _absent(parts.test, len(parts.class_names)):
        positions = np.flatnonzero(labels == label)
        if len(positions) > 1:
            count = max(1, len(positions) // _SHARE)
            held_out[generator.permutation(positions)[:count]] = True
            classes.append(label)
    if not classes:
        return parts
    more = parts.train.take(np.flatnonzero(held_out))
    test = Labelled(
        _Joined(parts.test.images, more.images), np.concatenate([parts.test.labels, more.labels])
    )
    note = (
        f"{len(more.labels):,} training image{'s' if len(more.labels) > 1 else ''} held out as "
        f"test images of {_classes(parts, classes)}"
    )
    rest = parts.train.take(np.flatnonzero(~held_out))
    return dataclasses.replace(parts, train=rest, test=test, notes=(*parts.notes, note))


def _classes(parts: Parts, labels: Sequence[int]) -> str:
    """Return how many classes these are, and their names."""
    return f"{len(labels):,} class{'es' if len(labels) > 1 else ''} ({_listed(parts, labels)})"


def _listed(parts: Parts, labels: Sequence[int]) -> str:
    names = ", ".join(repr(parts.class_names[label]) for label in labels[:_LISTED])
    more = len(labels) - _LISTED
    return f"{names} and {more:,} more" if more > 0 else names


@dataclass(frozen=True)
class _Joined:
    """The images of two sources, one behind the other."""

    first: Images
    second: Images

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def take(self, positions: IntArray) -> Images:
        """As `Images.take`; those of the first source must come first."""
        own = positions < len(self.first)
        if not own[: own.sum()].all():
            raise ValueError("expected images of the first source before those of the second")
        return _Joined(
            self.first.take(positions[own]), self.second.take(positions[~own] - len(self.first))
        )

    def headers(self) -> Counter[Header]:
        return self.first.headers() + self.second.headers()

    def value_range(self) -> tuple[int, int] | None:
        ranges = [r for r in (self.first.value_range(), self.second.value_range()) if r]
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None

    def blocks(self, form: Form) -> Iterator[tuple[IntArray, UInt8Array]]:
        yield from self.first.blocks(form)
        for positions, block in self.second.blocks(form):
            yield positions + len(self.first), block

    def identity(self) -> str | None:
        known = [self.first.identity(), self.second.identity()]
        return None if None in known else fingerprint(known)

    def name(self, position: int) -> str:
        behind = position - len(self.first)
        return self.first.name(position) if behind < 0 else self.second.name(behind)
