"""Tensors for the evaluators of DD-Ranking (arXiv:2505.13300).

They are what its quick start loads: ``images.pt``, float32 (K * ipc, C, H, W), normalised like its
test images and ordered by class, because its evaluators take the class of an image from its place;
``labels.pt``, one row of logits an image (its losses apply the softmax themselves); ``lr.pt``, the
student's learning rate, a tensor of one number.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ltdd.data.augmentation.crops import normalize
from ltdd.engine.storage.files import write_bytes, write_json
from ltdd.errors import UserError
from ltdd.results.distilled_set import DistilledSet

FILES = """\
`images.pt` float32, normalised and ordered by class; `labels.pt` float32 logits; `lr.pt`; and
`evaluator.json`, the arguments of DD-Ranking's `LabelRobustScoreSoft` (`SoftLabelEvaluator` before
0.2) for which they are meant: one soft label an image (`soft_label_mode="S"`)."""
LOAD = """\
import json

import torch

evaluator = json.load(open("evaluator.json", encoding="utf-8"))
normalised = torch.load("images.pt", weights_only=True)
logits = torch.load("labels.pt", weights_only=True)
learning_rate = torch.load("lr.pt", weights_only=True).item()
# For the code below, and not for DD-Ranking: labels, and images in 0..255 again.
labels = torch.arange(logits.shape[1]).repeat_interleave(evaluator["ipc"])
mean, std = torch.tensor(evaluator["mean"]), torch.tensor(evaluator["std"])
images = (normalised * std[:, None, None] + mean[:, None, None]) * 255"""

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
# DD-Ranking normalises the test images of both with these numbers.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def write(distilled: DistilledSet, folder: Path) -> None:
    """Write the three tensors and the evaluator's arguments.

    Raises:
        UserError: the classes have different numbers of images.
    """
    counts = torch.bincount(distilled.labels, minlength=len(distilled.class_names))
    ipc = int(counts[0])
    if not bool((counts == ipc).all()):
        raise UserError(
            f"ddranking: expected equally many images of every class, got {counts.tolist()}"
        )
    order = torch.argsort(distilled.labels, stable=True)
    dataset = _dataset(distilled)
    mean, std = distilled.normalization if dataset is None else (_CIFAR_MEAN, _CIFAR_STD)
    images = normalize(distilled.images[order], torch.tensor(mean), torch.tensor(std))
    recipe = distilled.manifest["student_training"]
    _save(folder / "images.pt", images.contiguous())
    _save(folder / "labels.pt", distilled.logits[order])
    _save(folder / "lr.pt", torch.tensor(float(recipe["learning_rate"])))
    arguments = {
        "dataset": dataset,
        "ipc": ipc,
        "im_size": list(images.shape[2:]),
        "soft_label_mode": "S",
        "soft_label_criterion": "kl",
        "loss_fn_kwargs": {"temperature": 1.0, "scale_loss": False},
        "optimizer": "sgd" if recipe.get("optimizer") == "sgd" else "adamw",  # it has no Muon
        "weight_decay": recipe["weight_decay"],
        "num_epochs": recipe["epochs"],
        "use_zca": False,
    }
    write_json(folder / "evaluator.json", arguments | {"mean": list(mean), "std": list(std)})


def _dataset(distilled: DistilledSet) -> str | None:
    """Return DD-Ranking's name of the data; None if it has none with these classes."""
    if distilled.images.shape[1:] != (3, 32, 32):
        return None
    if distilled.class_names == tuple(_CIFAR10.split()):
        return "CIFAR10"
    return "CIFAR100" if distilled.manifest["config"]["data"] == "cifar100" else None


def _save(path: Path, tensor: Tensor) -> None:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    write_bytes(path, buffer.getvalue())
