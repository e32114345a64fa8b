"""Know what systems leave beside images, and files that are no images: all pass them over."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

_LITTER = {
    # Network storage: thumbnails, bins and snapshots hold copies of the user's images.
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "network trash folder",
    "temporary items",
    # Windows
    "$recycle.bin",
    "desktop.ini",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "recycled",
    "recycler",
    "system volume information",
    "thumbs.db",
    # macOS
    "__macosx",
    "icon\r",
    # Linux and Python
    "lost+found",
    "__pycache__",
}

_NO_IMAGE_SUFFIXES = (
    # Labels, tables and texts.
    "txt csv tsv xml json jsonl yaml yml toml ini cfg md rst rtf tex bib log html htm css js pdf",
    "doc docx odt xls xlsx ods ppt pptx aae xmp lnk url",
    # Arrays, models and data bases.
    "mat npy npz h5 hdf5 pkl pickle pt pth ckpt onnx safetensors parquet arrow feather tfrecord",
    "tfrecords db sqlite sqlite3",
    # Programs, archives, sound and films.
    "py pyc ipynb sh bat exe dll c cpp h m r zip tar gz tgz bz2 xz 7z rar",
    "mp3 wav mp4 m4v mov avi mkv webm",
)
_IMAGE_SUFFIXES = (
    "jpg jpeg jpe jfif png webp bmp ppm pgm pbm pnm gif tif tiff avif heic heif jp2 dcm nii",
)
_NO_IMAGES = {f".{suffix}" for line in _NO_IMAGE_SUFFIXES for suffix in line.split()}
_IMAGES = {f".{suffix}" for line in _IMAGE_SUFFIXES for suffix in line.split()}


def is_litter(name: str) -> bool:
    """Return whether a system made a file or folder of this name: also every name with a dot."""
    low = name.lower()
    # The last kind marks downloads, where files of Windows are copied to other systems.
    return low in _LITTER or low.startswith((".", "~$")) or low.endswith(":zone.identifier")


def is_no_image(name: str) -> bool:
    """Return whether the suffix of a file is that of something else; an unknown one is not."""
    return suffix_of(name) in _NO_IMAGES


def has_image_suffix(name: str) -> bool:
    """Return whether the suffix of a file is that of an image, whether we can decode it or not."""
    return suffix_of(name) in _IMAGES


def suffix_of(name: str) -> str:
    """Return the last suffix in small letters, with its dot; that of packed scans is one."""
    low = name.lower()
    return ".nii.gz" if low.endswith(".nii.gz") else PurePath(low).suffix


def passed_over(suffixes: Counter[str]) -> tuple[str, ...]:
    """Return the note about files that are no images, if there are any.

    Args:
        suffixes: how many files had which suffix.
    """
    if not suffixes:
        return ()
    count = suffixes.total()
    kinds = ", ".join(f"{suffix} {n}" for suffix, n in suffixes.most_common())
    what = "file that is no image" if count == 1 else "files that are no images"
    return (f"passed over {count:,} {what} ({kinds})",)
