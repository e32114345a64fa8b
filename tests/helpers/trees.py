"""Folders of small images, each with pixels of its own."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def png(number: int) -> bytes:
    """Return a noisy 8x8 image of this number."""
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def images(*folders: str, count: int = 4) -> list[str]:
    """Return paths of so many images in every folder."""
    return [f"{folder}/{number}.png" for folder in folders for number in range(count)]


def write(root: Path, paths: Iterable[str]) -> Path:
    """Write different images to paths below a folder, and text where the suffix is that of none."""
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.suffix in (".txt", ".csv", ".xml", ".json", ".md", ".db", ".ini")
        file.write_bytes(b"text" if text else png(number))
    return root
