"""Many classes, tails of a few images or one, large and oblong images: the same command for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ltdd
from ltdd.cli.main import main
from ltdd.engine.storage.files import read_json


def photos(root: Path, counts: list[int], width: int, height: int, per_class: int) -> Path:
    """Write one folder a class; its images share a pattern of 4x4 colored fields, with noise."""
    generator = np.random.default_rng(0)
    for number, count in enumerate(counts):
        pattern = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        clean = np.asarray(pattern.resize((width, height), Image.Resampling.NEAREST), dtype=int)
        for part, images in (("train", count), ("test", per_class)):
            folder = root / part / f"class_{number:03}"
            folder.mkdir(parents=True)
            for image in range(images):
                noisy = clean + generator.integers(-30, 31, clean.shape)
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{image}.png")
    return root


def exponential(classes: int, largest: int, smallest: int) -> list[int]:
    ratio = smallest / largest
    return [int(largest * ratio ** (k / (classes - 1)) + 1e-9) for k in range(classes)]


def distill(data: Path, out: Path, words: str) -> None:
    given = ["distill", "--data", f"imagefolder:{data}", "--out", str(out), "--quiet"]
    assert main([*given, *words.split()]) == 0


def check(out: Path, classes: int, ipc: int, size: int) -> None:
    distilled, results = ltdd.load(out), read_json(out / "results.json")
    assert distilled.images.shape == (classes * ipc, 3, size, size)
    assert torch.bincount(distilled.labels).tolist() == [ipc] * classes
    assert distilled.logits.shape == (classes * ipc, classes)
    assert distilled.class_names == tuple(f"class_{k:03}" for k in range(classes))
    assert len(results["student"]["per_class"]) == classes
    assert results["student"]["few_shot"] is not None
    page = (out / "report.html").read_text()
    assert all(f"class_{k:03}" in page for k in range(classes))


def test_a_hundred_classes_of_oblong_photos(tmp_path: Path) -> None:
    counts = exponential(100, 4, 1)
    assert counts[-1] == 1
    data = photos(tmp_path / "photos", counts, 14, 9, 1)
    distill(
        data,
        tmp_path / "run",
        "--preset cpu --image-size 8 --ipc 2 --experts.epochs 1 --recovery.iterations 1 "
        "--recovery.max_batch 60 --evaluation.epochs 1 --evaluation.seeds 1 "
        "--evaluation.full_epochs 1",
    )
    check(tmp_path / "run", 100, 2, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "smallest", "size"), [(100, 5, 32), (200, 1, 64)], ids=["cifar100", "tiny-imagenet"]
)
def test_the_shapes_of_the_published_sets(
    tmp_path: Path, classes: int, smallest: int, size: int
) -> None:
    counts = exponential(classes, 8 * smallest, smallest)
    data = photos(tmp_path / "photos", counts, size + 16, size, 2)
    distill(
        data,
        tmp_path / "run",
        f"--preset cpu --image-size {size} --ipc 2 --experts.epochs 3 --experts.batch_size 64 "
        "--recovery.iterations 3 --evaluation.epochs 4 --evaluation.seeds 1 "
        "--evaluation.full_epochs 1",
    )
    check(tmp_path / "run", classes, 2, size)
    # The patterns are easy: even so little training beats guessing by far.
    assert read_json(tmp_path / "run" / "results.json")["teacher"]["accuracy"]["mean"] > 5 / classes
