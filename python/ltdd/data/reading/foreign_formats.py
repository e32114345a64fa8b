"""Formats that are not read, recognised by their content, so that a refusal can say which it is."""

from __future__ import annotations

import zlib
from typing import IO

_HEAD = 4096  # bytes that are looked at
_AS_PNG = "convert them to PNG or JPEG, for example by ImageMagick's mogrify -format png FILES"
_SLICES = "export each slice as a 16-bit PNG or TIFF, for example with nibabel or SimpleITK"

HINTS = {
    "AVIF": _AS_PNG,
    "HEIC": _AS_PNG,
    "JPEG XL": _AS_PNG,
    "JPEG 2000": _AS_PNG,
    "Photoshop": _AS_PNG,
    "OpenEXR": _AS_PNG,
    "SVG": "draw them as PNG, for example with rsvg-convert",
    "PDF": "draw their pages as PNG, for example with pdftoppm -png",
    "DICOM": "export the pixels as 16-bit PNG or TIFF, for example with pydicom or dcmtk's dcm2img",
    "NIfTI": _SLICES,
    "NRRD": _SLICES,
    "MetaImage": _SLICES,
    "NumPy": "put all arrays into one archive and give it as npz:FILE",
}
"""Format -> how to turn its files into some that are read."""

_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC",
    b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC",
}  # fmt: skip
_STARTS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"v/1\x01": "OpenEXR",
    b"%PDF-": "PDF",
    b"NRRD000": "NRRD",
    b"ObjectType =": "MetaImage",
    b"\x93NUMPY": "NumPy",
}


def foreign_format(file: IO[bytes]) -> str | None:
    """Return which key of `HINTS` the content of a file is, None if it is none of them.

    Args:
        file: is read from its start and left somewhere.
    """
    head = file.read(_HEAD)
    if head[:2] == b"\x1f\x8b":
        return "NIfTI" if _is_nifti(_unpacked(head)) else None
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head[128:132] == b"DICM":
        return "DICOM"
    if _is_nifti(head):
        return "NIfTI"
    if b"<svg" in head[:512].lower():
        return "SVG"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def _of_brands(head: bytes) -> str | None:
    """Return the format by the brands of an ISO media file, of which the first is the main one."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    found = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    # The brands mif1 and msf1 say no more than "some HEIF": another one says with which pixels.
    return "AVIF" if "AVIF" in found else next(iter(found), None)


def _is_nifti(head: bytes) -> bool:
    # The first number is the size of the header: 348 in version 1, 540 in version 2.
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    magic = (head[344:348], head[4:8])
    return (348 in sizes and magic[0] in (b"n+1\0", b"ni1\0")) or (
        540 in sizes and magic[1] in (b"n+2\0", b"ni2\0")
    )


def _unpacked(head: bytes) -> bytes:
    """Return the first bytes of a gzip file."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _HEAD)
    except zlib.error:
        return b""
