"""How one picture becomes pixels: which decoders may see it, and how it is brought to a square."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

UInt8Array = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
"""The only decoders that may see a file; its content decides, not its suffix."""
MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file may unpack to gigabytes."""

_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}


@dataclass(frozen=True)
class Header:
    """What a picture says about itself before its pixels are decoded."""

    width: int
    height: int
    grey: bool


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open a file, or the bytes of one, without decoding it.

    Raises:
        OSError, ValueError: it is no image that may be decoded; there are more ways, see `reason`.
    """
    # Opening a pipe would wait for ever.
    if isinstance(source, Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError("not a regular file")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, more than {MAX_PIXELS:,}")
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        yield image


def header_of(image: Image.Image) -> Header:
    """Return size and colour of an opened image."""
    return Header(*image.size, image.mode in _GREY_MODES)


def pixels_of(image: Image.Image, size: int, channels: int) -> UInt8Array:
    """Decode an opened image.

    It is turned upright by its EXIF orientation, laid on white where it is transparent, converted
    to grey or RGB, cropped to its central square and resized with antialiasing. An image that has
    the right size keeps its pixels.

    Args:
        image: the opened image.
        size: side S in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 (channels, S, S).
    """
    mode = "L" if channels == 1 else "RGB"
    # Lets the JPEG decoder skip detail that the resize would average away.
    image.draft(mode, (4 * size, 4 * size))
    plain = _opaque_8_bit(ImageOps.exif_transpose(image)).convert(mode)
    if plain.size != (size, size):
        plain = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(plain, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def reason(error: BaseException) -> str:
    """Say in a few words why a picture could not be opened or decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not such an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow would clip to 255 instead of scaling.
        wide = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image
