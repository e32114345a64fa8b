"""Folders of PNG files, one a class, as `torchvision.datasets.ImageFolder` reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ltdd.engine.storage.files import write_bytes, write_tensors
from ltdd.results.distilled_set import DistilledSet
from ltdd.results.exports.png import encode_png

FILES = """\
`train/<class>/<number>.png`, lossless; `labels.safetensors` with `logits` float32 (M, K), `labels`
and `number` int64 (M,), its rows in the order of `ImageFolder("train").samples`. Sorted names of
the folders give the order of the classes; where the names of the classes do not, a number stands
before them."""
LOAD = """\
import json

import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

info = json.load(open("info.json", encoding="utf-8"))
folder = ImageFolder("train", loader=Image.open, transform=pil_to_tensor)
images = torch.stack([image for image, _ in folder])
labels = torch.tensor(folder.targets)
logits = load_file("labels.safetensors")["logits"]
mean, std = (torch.tensor(info["normalization"][name]) for name in ("mean", "std"))"""

# Characters that some file system refuses, and names that Windows reserves.
_REFUSED = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST = 200  # bytes; file systems allow 255


def write(distilled: DistilledSet, folder: Path) -> None:
    """Write images below ``train`` and labels beside it."""
    names = folder_names(distilled.class_names)
    digits = len(str(len(distilled) - 1))
    order = torch.argsort(distilled.labels, stable=True)
    for number in order.tolist():
        name = names[int(distilled.labels[number])]
        file = folder / "train" / name / f"{number:0{digits}}.png"
        write_bytes(file, encode_png(distilled.images[number]))
    write_tensors(
        folder / "labels.safetensors",
        {
            "labels": distilled.labels[order],
            "logits": distilled.logits[order],
            "number": order,
        },
        {},
    )


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Return a folder name for every class, whose sorted order is that of the classes.

    They are the names of the classes where these are sorted already and are file names everywhere;
    otherwise ``<number>_<name>`` with other characters replaced.
    """
    folded = {name.casefold() for name in class_names}
    plain = sorted(class_names) == list(class_names) and len(folded) == len(class_names)
    if plain and all(_is_file_name(name) for name in class_names):
        return list(class_names)
    digits = len(str(len(class_names) - 1))
    return [f"{i:0{digits}}_{_cleaned(name)}" for i, name in enumerate(class_names)]


def _is_file_name(name: str) -> bool:
    return bool(name) and name == _cleaned(name) and not _RESERVED.fullmatch(name)


def _cleaned(name: str) -> str:
    """Replace what a file name cannot hold; leading dots would hide the folder."""
    shortened = name.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore")
    return re.sub(r"^\.+", "-", _REFUSED.sub("-", shortened)).rstrip(". ")
