"""Tar shards as the WebDataset library streams them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from ltdd.engine.storage.files import write_bytes
from ltdd.results.distilled_set import DistilledSet
from ltdd.results.exports.png import encode_png

FILES = """\
`train-000000.tar`, ...: 1,000 images each, in the set's order; every image is `<number>.png` with
`<number>.cls`, its class, and `<number>.npy`, its logits as float32 (K,)."""
LOAD = """\
import glob
import io
import json

import torch
import webdataset
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

info = json.load(open("info.json", encoding="utf-8"))
shards = webdataset.WebDataset(sorted(glob.glob("train-*.tar")), shardshuffle=False)
samples = list(shards.decode(only=["cls", "npy"]).to_tuple("png", "cls", "npy"))
pictures = [Image.open(io.BytesIO(png)) for png, _, _ in samples]
images = torch.stack([pil_to_tensor(picture) for picture in pictures])
labels = torch.tensor([label for _, label, _ in samples])
logits = torch.stack([torch.from_numpy(row) for _, _, row in samples])
mean, std = (torch.tensor(info["normalization"][name]) for name in ("mean", "std"))"""
SHARD = 1000  # images


def write(distilled: DistilledSet, folder: Path) -> None:
    """Write the shards; equal sets give equal bytes."""
    for shard, start in enumerate(range(0, len(distilled), SHARD)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(start, min(start + SHARD, len(distilled))):
                row = io.BytesIO()
                np.save(row, distilled.logits[number].numpy())
                members = {
                    "png": encode_png(distilled.images[number]),
                    "cls": str(int(distilled.labels[number])).encode(),
                    "npy": row.getvalue(),
                }
                for extension, content in members.items():
                    entry = tarfile.TarInfo(f"{number:06}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        write_bytes(folder / f"train-{shard:06}.tar", buffer.getvalue())
