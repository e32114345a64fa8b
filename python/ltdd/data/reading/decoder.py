"""Turn one picture into pixels: which decoders may see it, and how it becomes a square."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ltdd.config import Fit
from ltdd.data.reading.foreign_formats import HINTS, foreign_format
from ltdd.data.reading.tiff import check_tiff

UInt8Array = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""The only decoders that may see a file; its content decides, not its suffix."""
MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file may unpack to gigabytes."""
SIXTEEN_BITS = (0, 65535)

_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_WITH_PAGES = ("PNG", "WEBP", "TIFF", "GIF")  # a second picture in a JPEG file is a preview
_WHITE_IS_ZERO = 0  # of the TIFF tag 262
_BLOCK_PIXELS = 1 << 20


class ForeignFormatError(ValueError):
    """A picture in a format that is not read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.hint = f"{name}: {HINTS[name]}"
        """How its files can be turned into some that are read."""


@dataclass(frozen=True)
class Header:
    """Header of a picture: what it says before its pixels are decoded.

    Attributes:
        width, height: in pixels.
        grey: one channel.
        wide: grey values of more than 8 bits, which `Form.limits` scale.
        more_pages: there are pages or frames behind the first, which is the one that is read.
        narrowed: colours of 16 bits, of which the decoder gives the upper 8.
    """

    width: int
    height: int
    grey: bool
    wide: bool = False
    more_pages: bool = False
    narrowed: bool = False


@dataclass(frozen=True)
class Form:
    """Form that all pictures of a run are brought to.

    Attributes:
        size: side S of the square in pixels.
        channels: 1 for grey, 3 for RGB.
        fit: ``crop`` keeps the central square, ``pad`` the whole picture between black bars,
            ``squeeze`` the whole picture with its sides scaled alone.
        limits: what becomes black and white in pictures of more than 8 bits; more is clipped.
    """

    size: int
    channels: int
    fit: Fit = "crop"
    limits: tuple[int, int] = SIXTEEN_BITS


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open a file, or the bytes of one, without decoding it.

    Raises:
        OSError, ValueError: it is no image that may be decoded; there are more ways, see `reason`.
    """
    # Opening a pipe would wait for ever.
    if isinstance(source, Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError("not a regular file")
    content = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with content as file, _identified(file) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, more than {MAX_PIXELS:,}")
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        yield image


def _identified(file: IO[bytes]) -> Image.Image:
    try:
        check_tiff(file)
        file.seek(0)
        return Image.open(file, formats=FORMATS)
    except (UnidentifiedImageError, ValueError):
        file.seek(0)
        name = foreign_format(file)
        if name is None:
            raise
        raise ForeignFormatError(name) from None


def header_of(image: Image.Image) -> Header:
    """Return what is known of an opened image."""
    tiles = getattr(image, "tile", None)  # those of a file say how its values are stored
    raw = str(tiles[0][3]) if tiles else ""
    return Header(
        *image.size,
        grey=image.mode in _GREY_MODES,
        wide=_is_wide(image),
        more_pages=image.format in _WITH_PAGES and bool(getattr(image, "is_animated", False)),
        narrowed=not _is_wide(image) and ";16" in raw,
    )


def value_range(image: Image.Image) -> tuple[int, int] | None:
    """Return the smallest and largest value of an image of more than 8 bits, None for others."""
    if not _is_wide(image):
        return None
    values = np.asarray(image)
    return int(values.min()), int(values.max())


def pixels_of(image: Image.Image, form: Form) -> UInt8Array:
    """Decode an opened image.

    It is turned upright by its EXIF orientation, laid on white where it is transparent, converted
    to grey or RGB, brought to a square and resized with antialiasing. An image that has the right
    size keeps its pixels.

    Args:
        image: the opened image.
        form: what it is brought to.

    Returns:
        uint8 (C, S, S).
    """
    mode = "L" if form.channels == 1 else "RGB"
    # Lets the JPEG decoder skip detail that the resize would average away.
    image.draft(mode, (4 * form.size, 4 * form.size))
    # Pillow turns such values round where they have 8 bits, but not where they have more.
    inverted = _is_wide(image) and getattr(image, "tag_v2", {}).get(262) == _WHITE_IS_ZERO
    plain = _opaque_8_bit(ImageOps.exif_transpose(image), form.limits, inverted).convert(mode)
    pixels = np.asarray(_square(plain, form), dtype=np.uint8)
    return pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)


def padded_sides(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height that a picture has inside a square whose longer side it fills."""
    longer = max(width, height)
    return max(1, round(size * width / longer)), max(1, round(size * height / longer))


def reason(error: BaseException) -> str:
    """Say in a few words why a picture could not be opened or decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not such an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _square(image: Image.Image, form: Form) -> Image.Image:
    square = (form.size, form.size)
    if image.size == square:
        return image
    if form.fit == "crop":
        return ImageOps.fit(image, square, Image.Resampling.BILINEAR)
    if form.fit == "squeeze":
        return image.resize(square, Image.Resampling.BILINEAR)
    sides = padded_sides(*image.size, form.size)
    padded = Image.new(image.mode, square)  # black
    left, top = ((form.size - side) // 2 for side in sides)
    padded.paste(image.resize(sides, Image.Resampling.BILINEAR), (left, top))
    return padded


def _is_wide(image: Image.Image) -> bool:
    return image.mode.startswith("I")


def _opaque_8_bit(image: Image.Image, limits: tuple[int, int], inverted: bool) -> Image.Image:
    if _is_wide(image):
        scaled = _scaled(np.asarray(image), limits)
        return Image.fromarray(255 - scaled if inverted else scaled)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def _scaled(values: npt.NDArray[Any], limits: tuple[int, int]) -> UInt8Array:
    """Map limits to 0 and 255; block by block, because it works in float64."""
    low, high = limits
    scaled = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _BLOCK_PIXELS // values.shape[1])
    for start in range(0, len(values), rows):
        block = (values[start : start + rows].astype(np.float64) - low) * (255 / (high - low))
        scaled[start : start + rows] = np.rint(block).clip(0, 255)
    return scaled
