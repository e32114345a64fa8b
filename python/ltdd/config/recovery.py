"""Forms of stage 4: how the images come to what they are."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from ltdd.config.settings import AreaShare, Count, Hint, Weight, settings
from ltdd.config.stage import STAGES, Stage


@settings
class _Recovery(Stage):
    """Optimisation of the images."""

    STAGE = "recovery"
    FORM = "method"

    method: str = ""
    """How the images are optimised."""


@settings
class RecoveryConfig(_Recovery):
    """Adam on the images until their statistics match (arXiv:2511.18858, Eq. 2-4)."""

    method: Literal["alignment"] = "alignment"
    iterations: Annotated[Count, Hint("recovery.method none leaves the images as they start")] = (
        2000
    )
    """Adam steps per batch of images."""
    learning_rate: Weight = 0.05
    """Adam learning rate, cosine to zero, in units of normalised pixels."""
    alignment_weight: Weight = 0.01
    """r: weight of the whole alignment term."""
    first_layer_weight: Weight = 10.0
    """w_0: weight of the first batch-norm layer; all others have 1."""
    class_alignment_weight: Weight = 1.0
    """eta: weight of the class-wise part beside the global part."""
    classification_weight: Weight = 1.0
    """lambda_ce: weight of the observer's cross-entropy."""
    crop_min_scale: AreaShare = 0.08
    """Smallest random crop area; every image draws its own crop."""
    max_batch: Count = 1000
    """Largest number of images optimised together; sets how many images per class a batch holds."""


@settings
class NoRecovery(_Recovery):
    """None: the images stay as they start."""

    method: Literal["none"] = "none"


AnyRecovery: TypeAlias = RecoveryConfig | NoRecovery
STAGES["recovery"] = get_args(AnyRecovery)
