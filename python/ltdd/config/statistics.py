"""Settings of stage 2: which statistics the images should have."""

from __future__ import annotations

from typing import Literal

from ltdd.config.settings import Count, settings
from ltdd.config.stage import STAGES, Stage, WatchedLayers


@settings
class StatisticsConfig(Stage):
    """Per-class batch-norm statistics of the frozen observer (arXiv:2511.18858, Eq. 8-9)."""

    STAGE = "statistics"
    NOT_IN_KEYS = ("batch_size",)

    batch_size: Count = 250
    """Images per forward pass; it does not change the result."""
    layers: WatchedLayers = "batch_norm"
    """Layers of the observers whose input is matched: `batch_norm`, or `batch_norm_and_conv`, each
    convolution's channels and patches of 4x4 pixels too (EDC); observers may then lack batch norms.
    It takes twice the memory of the maps."""
    global_target: Literal["mixture", "paper", "edc", "running"] = "mixture"
    """Whole-batch target: total variance of the class-balanced mixture, the mean of class
    variances (Eq. 9), the mean of within-image variances, or the checkpoint's running ones (of
    convolutions, which have none: those of all training images together)."""
    class_target: Literal["finite", "full", "edc"] = "finite"
    """Class-wise variance target: W + (1 - 1/m) B for m images of a class, W + B, or W."""


STAGES["statistics"] = (StatisticsConfig,)
