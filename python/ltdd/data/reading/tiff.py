"""Look at what a TIFF file promises before a decoder believes it.

A TIFF is a table of tags with offsets, and a hostile one may let a small file ask for gigabytes:
thousands of tags over the same bytes, millions of strips, tiles larger than any image.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

MAX_TAGS = 1_000
MAX_VALUES = 1 << 18
"""Numbers of one tag: strips of an image, or three colours of a 16-bit palette."""
MAX_TILE_PIXELS = 1 << 25

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_TEXT = (1, 2, 6, 7)  # types of one byte, which are read as they are
_COMPRESSION, _TILE_WIDTH, _TILE_LENGTH = 259, 322, 323
_BELOW = (34665, 34853, 40965)  # tags that lead to further tables, which are read too
_DECODERS = {
    1: "none", 4: "CCITT group 4", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits",
    32946: "deflate", 50000: "Zstandard",
}  # fmt: skip


@dataclass(frozen=True)
class _Tag:
    """One entry: number, bytes of its values, how many there are, and the first where it is one."""

    number: int
    size: int
    count: int
    text: bool
    value: int


def check_tiff(file: IO[bytes]) -> None:
    """Look at the tags of the first page; anything that is no TIFF is left alone.

    Args:
        file: is read from its start and left somewhere.

    Raises:
        ValueError: the tags ask for more than an image needs, or for a decoder that is not offered.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return
    if not set(head[2:4]) & {42, 43}:  # some decoders take its two bytes in the wrong order
        return
    big = 43 in head[2:4]
    if big and len(head) < 16:
        raise ValueError("a cut TIFF header")
    (start,) = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])
    length, total = file.seek(0, 2), 0
    places, seen = [start], set()
    while places:
        place = places.pop()
        if place in seen:
            raise ValueError("TIFF tables that contain each other")
        seen.add(place)
        tags = list(_tags(file, place, order, big))
        total += sum(tag.size for tag in tags)
        if total > length:
            raise ValueError("TIFF tags that are larger than the file")
        if any(tag.count > MAX_VALUES and not tag.text for tag in tags):
            raise ValueError(f"a TIFF tag of more than {MAX_VALUES:,} values")
        if place == start:
            _check_layout({tag.number: tag.value for tag in tags})
        places += [tag.value for tag in tags if tag.number in _BELOW]


def _check_layout(values: dict[int, int]) -> None:
    compression = values.get(_COMPRESSION, 1)
    if compression not in _DECODERS:
        known = ", ".join(dict.fromkeys(_DECODERS.values()))
        raise ValueError(f"TIFF compression {compression}, not one of {known}")
    sides = (values.get(_TILE_WIDTH, 1), values.get(_TILE_LENGTH, 1))
    if math.prod(sides) > MAX_TILE_PIXELS:
        raise ValueError(f"TIFF tiles of {sides[0]}x{sides[1]} pixels")


def _tags(file: IO[bytes], place: int, order: str, big: bool) -> Iterator[_Tag]:
    if place >= 1 << 63:
        raise ValueError("a TIFF table outside of the file")
    file.seek(place)
    head, entry = ("Q", "HHQ8s") if big else ("H", "HHI4s")
    (count,) = struct.unpack(order + head, _exactly(file, struct.calcsize(order + head)))
    if count > MAX_TAGS:
        raise ValueError(f"{count:,} TIFF tags")
    size = struct.calcsize(order + entry)
    for number, kind, values, content in struct.iter_unpack(
        order + entry, _exactly(file, count * size)
    ):
        width = _SIZES.get(kind, 8)
        number_format = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind)
        alone = number_format is not None and width <= len(content)
        value = struct.unpack_from(order + (number_format or "B"), content)[0] if alone else 0
        outside = width * values > len(content)
        yield _Tag(number, width * values if outside else 0, values, kind in _TEXT, value)


def _exactly(file: IO[bytes], count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise ValueError("a TIFF table outside of the file")
    return content
