"""Remember what pictures were before they were brought to one form, and what that cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ltdd.config import Fit
from ltdd.data.reading.decoder import SIXTEEN_BITS, Form, Header
from ltdd.data.reading.image_source import Parts

SMALLEST_SIZE, LARGEST_SIZE = 8, 224
FALLBACK_SIZE = 32

_FITS = {
    "crop": "cropped to the central square",
    "pad": "padded with black to a square",
    "squeeze": "squeezed to a square",
}
_LONG = 4 / 3  # sides of photographs: to cut these to a square is what everybody expects


@dataclass(frozen=True)
class Originals:
    """Facts about both parts of a run, before decoding.

    Attributes:
        fit: how they were brought to a square.
        smallest, largest: smallest and largest width, and height.
        longest: width and height of the image whose sides differ most.
        cut_mean, cut_most: share of an image's pixels that a crop to its central square cuts away.
        wide: images of more than 8 bits a grey value.
        limits: their values that became black and white; None without such images.
        clipped: values of test images were outside of the limits.
        more_pages: images of which only the first page or frame was read.
        narrowed: images with colours of 16 bits, of which the upper 8 were read.
    """

    fit: Fit
    smallest: tuple[int, int]
    largest: tuple[int, int]
    longest: tuple[int, int]
    cut_mean: float = 0.0
    cut_most: float = 0.0
    wide: int = 0
    limits: tuple[int, int] | None = None
    clipped: bool = False
    more_pages: int = 0
    narrowed: int = 0

    @classmethod
    def of(
        cls,
        headers: Counter[Header],
        fit: Fit,
        limits: tuple[int, int] | None,
        clipped: bool,
    ) -> Originals:
        """Summarise headers with how often each occurs."""
        sides = [(h.width, h.height) for h in headers]
        longest = min(sides, key=lambda side: min(side) / max(side))
        cut = sum(_cut(h.width, h.height) * n for h, n in headers.items()) / headers.total()
        return cls(
            fit,
            smallest=(min(w for w, _ in sides), min(h for _, h in sides)),
            largest=(max(w for w, _ in sides), max(h for _, h in sides)),
            longest=longest,
            cut_mean=cut,
            cut_most=_cut(*longest),
            wide=sum(n for h, n in headers.items() if h.wide),
            limits=limits,
            clipped=clipped,
            more_pages=sum(n for h, n in headers.items() if h.more_pages),
            narrowed=sum(n for h, n in headers.items() if h.narrowed),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Originals:
        """Rebuild from the dict of `dataclasses.asdict`, or from its JSON.

        Raises:
            TypeError, ValueError: it is something else.
        """
        pairs = ("smallest", "largest", "longest", "limits")
        found = {name: value and tuple(value) for name, value in values.items() if name in pairs}
        return cls(**{**values, **found})

    @property
    def sizes(self) -> str:
        """Width x height: one size, or from the smallest sides to the largest."""
        ends = dict.fromkeys(f"{w}x{h}" for w, h in (self.smallest, self.largest))
        return " to ".join(ends)

    @property
    def described(self) -> str:
        """The sizes, and what became of those that are no squares."""
        width, height = self.longest
        return f"found {self.sizes}" + (f", {_FITS[self.fit]}" if width != height else "")

    def notes(self) -> Iterator[str]:
        """Yield what the user should know of what was lost."""
        if self.fit == "crop" and max(self.longest) > _LONG * min(self.longest):
            width, height = self.longest
            yield (
                f"images are cropped to their central square, which cuts away "
                f"{100 * self.cut_mean:.0f} % of the pixels on average and "
                f"{100 * self.cut_most:.0f} % of the longest image ({width}x{height}); "
                "--fit pad or --fit squeeze keeps them whole"
            )
        if self.limits is not None:
            low, high = self.limits
            yield (
                f"{self.wide:,} images have more than 8 bits a pixel: the values {low:,} to "
                f"{high:,}, powers of two around those of the training images, are black to white"
                + ("; test images beyond them are clipped" if self.clipped else "")
            )
        if self.more_pages:
            yield f"only the first page or frame is read of {self.more_pages:,} images with several"
        if self.narrowed:
            yield (
                f"{self.narrowed:,} images have colours of 16 bits, of which only the upper 8 are "
                "read; convert them where their values do not use all 16"
            )


def common_form(cut: Parts, image_size: int | None, fit: Fit) -> tuple[Form, Originals]:
    """Return what the images of a run are brought to, and what they are before.

    Args:
        cut: the images of the run.
        image_size: side in pixels; None keeps a common one.
        fit: how they are brought to a square.

    Raises:
        UserError: an image cannot be read.
    """
    of_part = [part.images.headers() for part in (cut.train, cut.test)]
    headers = of_part[0] + of_part[1]
    sizes = {(header.width, header.height) for header in headers}
    width, height = next(iter(sizes))
    common = len(sizes) == 1 and width == height and SMALLEST_SIZE <= width <= LARGEST_SIZE
    size = image_size or (width if common else FALLBACK_SIZE)
    channels = 1 if all(header.grey for header in headers) else 3
    limits, clipped = None, False
    if any(header.wide for header in headers):
        ranges = [part.images.value_range() for part in (cut.train, cut.test)]
        # Nothing of the test images may decide how training images look.
        known = ranges[0] or ranges[1]
        limits = limits_of(known) if known else SIXTEEN_BITS
        low, high = ranges[1] or limits
        clipped = low < limits[0] or high > limits[1]
    form = Form(size, channels, fit, limits or SIXTEEN_BITS)
    return form, Originals.of(headers, fit, limits, clipped)


def limits_of(values: tuple[int, int]) -> tuple[int, int]:
    """Return what becomes black and white, from the smallest and the largest value of a set.

    White is the next power of two above the largest value, less one, and 255 or more; black is 0,
    or the next negative power of two where there are values below 0.
    """
    smallest, largest = values
    black = -(1 << (-smallest - 1).bit_length()) if smallest < 0 else 0
    return black, max(255, (1 << max(0, largest).bit_length()) - 1)


def _cut(width: int, height: int) -> float:
    return 1 - min(width, height) / max(width, height)
