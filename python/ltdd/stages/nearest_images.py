"""Measure what a set reveals: how near its images are to training images, those to each other.

Two distances between whole images:

* ``pixels``: ``sqrt(mean (a - b)^2)`` over the pixel values 0..255 of the published bytes
* ``features``: ``1 - cos``, 0 to 2, of what enters the teacher's last layer; of its logits where it
  is no `Network` and has no features

An image's nearest training image is looked for among all of them, for a copy is a copy whatever its
class, and among those of its own class. Training images are never mirrored here: initial crops are
not, and recovery mirrors views of an image, not the image. A crop that was enlarged is far in
pixels from the image it was cut from: a small distance shows a copy, a large one proves nothing.

The reference is the distance of training images to their nearest other one. An exact duplicate is
another one, at distance 0 (`data.duplicates` names those that contradict each other). At most
`SAMPLED_PER_CLASS` images a class are asked for it, drawn at random, and about `SAMPLED` in all.

Cost: with M distilled, S sampled and N training images of D values, 2 (M + S) N D operations for
each distance, and the teacher looks at M + S + N images. With N = 12,406 images of 32 pixels one
CPU core takes 25 seconds, half of them the teacher's; at the same rates N = 100,000 images of 64
pixels with M = S = 10,000 would take it half an hour. Memory is bounded, see `data.nearest_rows`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.data.augmentation.crops import normalize
from ltdd.data.image_spec import ImageSet, Normalization
from ltdd.data.long_tailed_data import by_class
from ltdd.data.nearest_rows import BATCH, Rows, nearest_rows
from ltdd.engine.chunks import Chunks
from ltdd.engine.finite import check_all_finite
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.models.ensemble import MeanLogits
from ltdd.models.inference import view_logits
from ltdd.models.network import Network
from ltdd.stages.run import Run

MEASURES = ("pixels", "features")
SCOPES = ("any_class", "same_class")
SAMPLED, SAMPLED_PER_CLASS = 10_000, 500
PAIRS = 4  # the nearest of each measure, kept with their pixels for the report

Embed = Callable[[Tensor], Tensor]
"""uint8 images (n, C, H, W) -> rows (n, D) to compare."""


def measure_nearness(
    run: Run, teacher: Stored[nn.Module], images: Stored[ImageSet]
) -> dict[str, Any]:
    """Measure how near distilled images are to training images, for ``results.json``.

    The stored stage keeps the training images that were found, every distance, and the pixels of
    the nearest training images.
    """
    data, kind = run.data, "features" if _has_features(teacher.value) else "logits"

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        embed = feature_rows(teacher.value, data.normalization, runtime)
        training = ImageSet(data.train_images, data.train_labels)
        return nearest_images(images.value, training, data.num_classes, embed, runtime)

    settings = {"sampled": [SAMPLED, SAMPLED_PER_CLASS], "pairs": PAIRS, "of": kind}
    tensors = run.stages.run("nearest", settings, [images, teacher], compute).value
    return {"features_of": kind} | summarize_nearness(
        tensors, images.value.labels, data.train_labels, data.num_classes
    )


def nearest_images(
    shown: ImageSet, training: ImageSet, num_classes: int, features: Embed, runtime: Runtime
) -> dict[str, Tensor]:
    """Find the nearest training image of distilled images and of a sample of training images.

    Args:
        shown: distilled images, uint8 (M, C, H, W).
        training: uint8 (N, C, H, W), in memory or mapped.
        num_classes: K.
        features: see `feature_rows`.
        runtime: device, seed, progress.

    Returns:
        ``sample`` int64 (S,), the training images of the reference. For each measure and scope, as
        in ``pixels.any_class.``: ``distance`` float64 (M,) and ``index`` int64 (M,) of distilled
        images, ``reference`` float64 (S,) of the sample; -1 where there is no other image. For each
        measure ``pairs`` int64 (P,), the distilled images that are nearest to any, nearest first,
        and ``real`` uint8 (P, C, H, W), the training images beside them.

    Raises:
        UserError: a feature is NaN or infinite.
    """
    count, device = len(shown.labels), runtime.device
    sample = sample_images(training.labels, num_classes, runtime)
    own = torch.cat([torch.full((count,), -1), sample])
    labels = torch.cat([shown.labels, training.labels[sample]])

    tensors = {"sample": sample}
    for measure, embed in (("pixels", pixel_rows), ("features", features)):

        def asked(rows: Tensor, embed: Embed = embed) -> Tensor:
            distilled, real = rows[rows < count], sample[rows[rows >= count] - count]
            images = torch.cat([shown.images[distilled], training.images[real]])
            return embed(images.to(device))

        def among(rows: Tensor, embed: Embed = embed) -> Tensor:
            return embed(training.images[rows].to(device))

        found = nearest_rows(
            Rows(asked, labels), own, Rows(among, training.labels), "nearest", runtime
        )
        distances = found.half_square
        if measure == "pixels":
            distances = (2 * distances / shown.images[0].numel()).sqrt()
        distances = distances.where(found.position >= 0, -1)
        for scope, distance, index in zip(SCOPES, distances, found.position, strict=True):
            name = f"{measure}.{scope}"
            tensors |= {f"{name}.distance": distance[:count], f"{name}.index": index[:count]}
            tensors[f"{name}.reference"] = distance[count:]
        pairs = distances[0, :count].sort(stable=True).indices[:PAIRS]
        real = training.images[found.position[0, pairs]]
        tensors |= {f"{measure}.pairs": pairs, f"{measure}.real": real}
    return tensors


def sample_images(labels: Tensor, num_classes: int, runtime: Runtime) -> Tensor:
    """Draw the training images of the reference, int64 (S,), ascending.

    Of every class there are equally many, or all that it has: `SAMPLED_PER_CLASS` at most,
    `SAMPLED` in all, and at least one.
    """
    most = min(SAMPLED_PER_CLASS, max(SAMPLED // num_classes, 1))
    drawn = []
    for label, members in enumerate(by_class(labels, num_classes)):
        order = torch.randperm(len(members), generator=runtime.stream("nearest", label))
        drawn.append(members[order[:most]])
    return torch.cat(drawn).sort().values


def pixel_rows(images: Tensor) -> Tensor:
    """Return the pixels of uint8 images less 128, int8 (n, C * H * W)."""
    return (images ^ 128).view(torch.int8).flatten(1)


def feature_rows(teacher: nn.Module, normalization: Normalization, runtime: Runtime) -> Embed:
    """Return what makes float32 rows of length one of the teacher's features.

    Half the squared distance of two such rows is ``1 - cos``. They are computed in full precision.
    """
    teacher.eval()
    look: Any = teacher.features if _has_features(teacher) else teacher
    exact = dataclasses.replace(runtime, precision="fp32")
    chunks = Chunks("nearest", BATCH, exact)
    mean, std = normalization.tensors(runtime.device)

    def embed(images: Tensor) -> Tensor:
        seen = view_logits(look, normalize(images, mean, std), exact, chunks).float()
        check_all_finite("nearest", {"features": seen})
        return F.normalize(seen, dim=1)

    return embed


def _has_features(teacher: nn.Module) -> bool:
    members = teacher.members if isinstance(teacher, MeanLogits) else [teacher]
    return all(isinstance(member, Network) for member in members)


def summarize_nearness(
    tensors: Mapping[str, Tensor], labels: Tensor, train_labels: Tensor, num_classes: int
) -> dict[str, Any]:
    """Return what is told of the distances, as JSON types.

    Args:
        tensors: what `nearest_images` returned.
        labels: int64 (M,), of the distilled images.
        train_labels: int64 (N,).
        num_classes: K.

    Returns:
        ``training_images`` and ``sampled``, their numbers. For each measure and scope ``overall``
        and ``classes``, rows of ``distilled`` and ``training``: ``median``, ``q05`` (the 5 %
        quantile) and ``min`` of the distances, None where there are none; ``nearer``, the fraction
        of distilled images below the ``q05`` of training images; for any class ``same_class``, the
        fraction of distilled images whose nearest training image is of their class. ``pairs``: the
        nearest of each measure, as ``distilled``, ``training``, ``training_class``, ``distance``.
    """
    sample_labels = train_labels[tensors["sample"]]
    told: dict[str, Any] = {"training_images": len(train_labels), "sampled": len(sample_labels)}
    of_class = list(
        zip(by_class(labels, num_classes), by_class(sample_labels, num_classes), strict=True)
    )
    for measure in MEASURES:
        told[measure] = {}
        for scope in SCOPES:
            found = {
                part: tensors[f"{measure}.{scope}.{part}"]
                for part in ("distance", "index", "reference")
            }
            distance, reference = found["distance"], found["reference"]
            same = train_labels[found["index"]] == labels if scope == "any_class" else None
            told[measure][scope] = {
                "overall": _row(distance, reference, same),
                "classes": [
                    _row(distance[mine], reference[theirs], None if same is None else same[mine])
                    for mine, theirs in of_class
                ],
            }
        index, distance = (tensors[f"{measure}.any_class.{part}"] for part in ("index", "distance"))
        told[measure]["pairs"] = [
            {
                "distilled": pair,
                "training": int(index[pair]),
                "training_class": int(train_labels[index[pair]]),
                "distance": float(distance[pair]),
            }
            for pair in tensors[f"{measure}.pairs"].tolist()
        ]
    return told


def _row(distilled: Tensor, training: Tensor, same_class: Tensor | None) -> dict[str, Any]:
    near, reference = _summary(distilled), _summary(training)
    row: dict[str, Any] = {"distilled": near, "training": reference, "nearer": None}
    if near is not None and reference is not None:
        row["nearer"] = _fraction(distilled[distilled >= 0] < reference["q05"])
    if same_class is not None:
        row["same_class"] = _fraction(same_class)
    return row


def _fraction(which: Tensor) -> float | None:
    return float(which.double().mean()) if len(which) else None


def _summary(distances: Tensor) -> dict[str, float] | None:
    known = distances[distances >= 0]
    if not len(known):
        return None
    median, low = known.quantile(known.new_tensor([0.5, 0.05])).tolist()
    return {"median": median, "q05": low, "min": float(known.min())}
