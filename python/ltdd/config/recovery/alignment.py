"""Images whose statistics match, and images that stay as they start."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Interval

from ltdd.config.recovery.form import RecoveryForm
from ltdd.config.settings import AreaShare, Count, Hint, Number, Weight, Whole, settings


@settings
class RecoveryConfig(RecoveryForm):
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
    """w_0: weight of the first matched layer; all others have 1."""
    patch_weight: Weight = 1.0
    """Weight of the statistics of patches beside those of channels, in matched convolutions."""
    class_alignment_weight: Weight = 1.0
    """eta: weight of the class-wise part beside the global part."""
    class_part: Literal["each", "pooled"] = "each"
    """What the class-wise part compares: `each` class's images with their class, or the batch,
    `pooled`, with the mean of its images' classes (EDC)."""
    momentum: Annotated[Number, Interval(ge=0, le=1 - 1e-9)] = 0.0
    """Share of earlier iterations in the running estimate that stands for the batch's statistics
    (but not for those of `each` class); 0: the batch's own."""
    hook_drop: Annotated[Number, Interval(ge=0, le=1)] = 0.0
    """Chance of a convolution to be left out of an iteration (G-VBSM)."""
    eigen_weight: Weight = 0.0
    """Weight of the term that evens out the eigenvalues of each class's images in a batch
    (G-VBSM)."""
    classification_weight: Weight = 1.0
    """lambda_ce: weight of the observer's cross-entropy."""
    crop_min_scale: AreaShare = 0.08
    """Smallest random crop area; every image draws its own crop."""
    crop_padding: Annotated[Whole, Ge(0)] = 0
    """Pixels by which a view may leave the image, at 32 px; scaled with the image size."""
    mirror: bool = True
    """Mirror half of the views, where that keeps the class."""
    jitter: Annotated[Whole, Ge(0)] = 0
    """Largest roll of all views of an iteration, in pixels of either axis at 32 px; scaled with the
    image size."""
    max_batch: Count = 1000
    """Largest number of images optimised together; sets how many images per class a batch holds."""
    order: Literal["stratified", "one_per_class", "class_major"] = "stratified"
    """Images of a batch: as many of every class as fit (`stratified`), one of every class
    (`one_per_class`, SRe2L), or class after class (`class_major`, EDC)."""


@settings
class NoRecovery(RecoveryForm):
    """None: the images stay as they start."""

    method: Literal["none"] = "none"
