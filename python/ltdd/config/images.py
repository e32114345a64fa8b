"""Forms of stages 2 to 4: what the images should look like, and how they come to."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from ltdd.config.settings import AreaShare, Count, Hint, Weight, settings
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


@settings
class _Initialization(Stage):
    """Where the images start."""

    STAGE = "initialization"
    FORM = "method"

    method: str = ""
    """What the first images are."""


@settings
class _Crops(_Initialization):
    """Crops of real images, chosen by what the teacher makes of them."""

    crops_per_image: Count = 5
    """K: candidate crops of every real image."""
    crop_min_scale: AreaShare = 0.08
    """Smallest crop area as a fraction of the image; the largest is 1, the ratio is 1."""


@settings
class InitializationConfig(_Crops):
    """The crops that the teacher scores best, picked in rounds (arXiv:2511.18858)."""

    method: Literal["scored_crops"] = "scored_crops"


@settings
class ClusteredCrops(_Crops):
    """The crops in the middle of clusters of the teacher's features."""

    method: Literal["clustered_crops"] = "clustered_crops"


@settings
class RandomReal(_Initialization):
    """Random real images."""

    method: Literal["random_real"] = "random_real"


@settings
class Noise(_Initialization):
    """Gaussian noise with the mean and the deviation of the data."""

    method: Literal["noise"] = "noise"


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


AnyInitialization: TypeAlias = InitializationConfig | ClusteredCrops | RandomReal | Noise
AnyRecovery: TypeAlias = RecoveryConfig | NoRecovery
STAGES["statistics"] = (StatisticsConfig,)
STAGES["initialization"] = get_args(AnyInitialization)
STAGES["recovery"] = get_args(AnyRecovery)
