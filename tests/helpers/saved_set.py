"""A distilled set on disk, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdd.config import DistillConfig
from ltdd.data.image_spec import ImageSet, Normalization
from ltdd.data.packed_logits import PackedLogits
from ltdd.results.distilled_set import Origin, save_distilled

SPLIT = "ab" * 32


def save_set(
    out: Path,
    shown: ImageSet,
    logits: Tensor | PackedLogits,
    class_names: Sequence[str],
    counts: Sequence[int],
    views: PackedLogits | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Save a set of which only what matters to the test is given; return the manifest."""
    channels = shown.images.shape[1] if shown.images.ndim > 1 else 1
    normalization = changes.get(
        "normalization", Normalization((0.3,) * channels, (0.4,) * channels)
    )
    config: Mapping[str, Any] = changes.get("config", DistillConfig().to_dict())
    training: Mapping[str, Any] = changes.get("student_training", {"student": "convnet3"})
    split = changes.get("split_sha256", SPLIT)
    origin = Origin(tuple(class_names), tuple(counts), split, normalization)
    return save_distilled(out, shown, logits, origin, config, training, views)
