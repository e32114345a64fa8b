"""Settings of stage 2: which statistics the images should have."""

from __future__ import annotations

from typing import Literal

from ltdd.config.settings import Count, settings
from ltdd.config.stage import STAGES, Stage


@settings
class StatisticsConfig(Stage):
    """Per-class batch-norm statistics of the frozen observer (arXiv:2511.18858, Eq. 8-9)."""

    STAGE = "statistics"
    NOT_IN_KEYS = ("batch_size",)

    batch_size: Count = 250
    """Images per forward pass; it does not change the result."""
    global_target: Literal["mixture", "paper", "edc", "running"] = "mixture"
    """Whole-batch target: total variance of the class-balanced mixture, the mean of class
    variances (Eq. 9), the mean of within-image variances, or the checkpoint's running ones."""
    class_target: Literal["finite", "full", "edc"] = "finite"
    """Class-wise variance target: W + (1 - 1/m) B for m images of a class, W + B, or W."""


STAGES["statistics"] = (StatisticsConfig,)
