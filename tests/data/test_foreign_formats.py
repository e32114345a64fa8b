"""Formats that are not read are refused by their name, with a way to convert them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from ltdd.data.long_tailed_data import load_data
from ltdd.data.reading.foreign_formats import HINTS
from ltdd.errors import UserError


def media(*brands: bytes) -> bytes:
    """Return the start of an ISO media file."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(200)


def nifti(order: str = "little", version: int = 1) -> bytes:
    if version == 2:
        return (540).to_bytes(4, "little") + b"n+2\0\r\n\x1a\n" + bytes(600)
    return (348).to_bytes(4, order) + bytes(340) + b"n+1\0" + bytes(600)  # type: ignore[arg-type]


CASES = [
    ("x.avif", media(b"avif", b"mif1", b"miaf"), "AVIF"),
    ("x.avif", media(b"mif1", b"avif"), "AVIF"),
    ("x.png", media(b"avis"), "AVIF"),
    ("x.heic", media(b"heic", b"mif1"), "HEIC"),
    ("x.heif", media(b"mif1", b"miaf"), "HEIC"),
    ("x.jpg", media(b"hevc"), "HEIC"),
    ("x.dcm", bytes(128) + b"DICM" + bytes(99), "DICOM"),
    ("IM0001", b"II*\0" + bytes(124) + b"DICM" + bytes(99), "DICOM"),
    ("x.nii", nifti(), "NIfTI"),
    ("x.nii", nifti("big"), "NIfTI"),
    ("x.nii", nifti(version=2), "NIfTI"),
    ("x.nii.gz", gzip.compress(nifti(), mtime=0), "NIfTI"),
    ("x.nrrd", b"NRRD0005\ntype: short\n", "NRRD"),
    ("x.mha", b"ObjectType = Image\n", "MetaImage"),
    ("x.jxl", b"\xff\x0a" + bytes(50), "JPEG XL"),
    ("x.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000"),
    ("x.psd", b"8BPS\0\1" + bytes(50), "Photoshop"),
    ("x.exr", b"v/1\x01" + bytes(50), "OpenEXR"),
    ("x.svg", b'<?xml version="1.0"?>\n<svg width="9"/>', "SVG"),
    ("x", b"%PDF-1.7\n", "PDF"),
    ("x", b"\x93NUMPY\x01\0", "NumPy"),
]


@pytest.mark.parametrize(("name", "content", "known_as"), CASES)
def test_formats_are_named_with_a_way_out(
    class_folder: Callable[..., Path], name: str, content: bytes, known_as: str
) -> None:
    root = class_folder("pets", {"cat": 4, "dog": 4})
    for number in range(10, 14):
        (root / "dog" / f"{number}{name}").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_data(f"imagefolder:{root}")
    message = str(caught.value)
    assert message.count(f"{name} ({known_as})") == 3  # the fourth is held out for testing
    assert message.count(f"; {known_as}: {HINTS[known_as]}") == 1
    assert message.endswith("; --on-bad-image skip leaves out what cannot be read")
    assert len(load_data(f"imagefolder:{root}", on_bad_image="skip").left_out) == 4


@pytest.mark.parametrize(
    "content",
    [
        media(b"mp42", b"isom"),
        gzip.compress(b"text", mtime=0),
        b"\x1f\x8b",
        b"",
        bytes(131),
        bytes(600),
    ],
)
def test_other_files_are_not_guessed_at(class_folder: Callable[..., Path], content: bytes) -> None:
    root = class_folder("pets", {"cat": 4, "dog": 4})
    (root / "dog/x").write_bytes(content)
    with pytest.raises(UserError, match=r"dog/x \(not such an image\); --on-bad-image skip"):
        load_data(f"imagefolder:{root}")
