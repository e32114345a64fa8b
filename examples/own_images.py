"""Distil a folder of your own images, one folder per class.

    python examples/own_images.py [FOLDER]

Without FOLDER, scikit-learn's digits are written as such a folder first. The settings are for
half a minute, not for accuracy; `ltdd distill --preset cpu` has better ones.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import ltdd

SETTINGS = {
    "ipc": 1,
    "horizontal_flip": False,  # a mirrored digit is another sign
    "experts": {
        "observer": "convnet3_bn", "epochs": 20, "batch_size": 32, "learning_rate": 0.05,
        "schedule": "one_cycle", "nesterov": True, "weight_decay": 1e-3,
        "resampling_power": 0.5,  # the last class has two images
    },
    "initialization": {"crop_min_scale": 0.6},  # smaller crops of 8 pixels show no digit
    "recovery": {"iterations": 100, "alignment_weight": 0.05, "crop_min_scale": 0.6},
    "evaluation": {
        "epochs": 600, "learning_rate": 4e-3, "schedule": "cosine", "crop_min_scale": 0.7,
        "seeds": 1, "baselines": ["random_real"],
    },
}  # fmt: skip


def write_digits(folder: Path) -> Path:
    """Write the digits as PNG files, one folder per class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / f"digit-{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(path)
    return folder


with tempfile.TemporaryDirectory() as scratch:
    mine = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    images = mine or write_digits(Path(scratch, "images"))
    cut = None if mine else 50.0  # your images are used as they are
    config = ltdd.DistillConfig.from_dict(
        {"data": f"imagefolder:{images}", "imbalance_factor": cut, **SETTINGS}
    )
    results = ltdd.distill(config, Path(scratch, "run"), options=ltdd.RunOptions(quiet=True))
    distilled = ltdd.load(Path(scratch, "run"))
    print(f"{sum(results['counts'])} training images, by class {results['counts']}")
    print(f"{len(distilled)} distilled images {tuple(distilled.images.shape[1:])}")
    baseline = results["baselines"]["random_real"]
    for name, scores in (("distilled", results["student"]), ("random real", baseline)):
        print(f"trained on {name} images: {100 * scores['accuracy']['mean']:.1f} % right")
