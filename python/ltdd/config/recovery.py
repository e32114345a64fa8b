"""Forms of stage 4: how the images come to what they are."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from annotated_types import Ge, Interval

from ltdd.config.settings import AreaShare, Count, Hint, Names, Number, Weight, Whole, settings
from ltdd.config.stage import DSA_OPERATIONS, STAGES, Stage, check_names
from ltdd.errors import UserError

Share = Annotated[Number, Interval(ge=0, le=1)]
"""Part of a whole."""


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
class NoRecovery(_Recovery):
    """None: the images stay as they start."""

    method: Literal["none"] = "none"


@settings
class _Matching(_Recovery):
    """SGD on the images until networks in training cannot tell them from real ones."""

    network: str = "convnet3"
    """Architecture of the networks, one without batch norm."""
    real_batch: Count = 256
    """Real images of a class in a step, or all where it has fewer."""
    formation: Annotated[Whole, Interval(ge=1, le=4)] = 1
    """f: an image holds f x f training images, each enlarged to its full size."""
    augmentation: Names = ()
    """Siamese augmentation of real and synthetic images in matching, of `flip`, `color`, `crop`,
    `scale`, `rotate`, `cutout`; `flip` only where mirroring keeps the class."""
    image_learning_rate: Weight = 0.1
    """Learning rate of the images."""
    scaled_rate: bool = False
    """Multiply it by ipc / 10 and (side / 32)^2 (arXiv:2205.14959): an image's share of the
    gradient is smaller the more images there are."""
    pixels: Literal["normalized", "unit"] = "normalized"
    """What the learning rate of the images is for: pixels as networks see them, or in [0, 1]."""
    image_momentum: Share = 0.5
    """Momentum of the images."""
    network_batch: Count = 256
    """Images per step of a network."""
    network_learning_rate: Weight = 0.01
    """Learning rate of a network."""
    network_momentum: Share = 0.0
    """Momentum of a network."""
    network_weight_decay: Weight = 0.0
    """Weight decay of a network."""

    def __post_init__(self) -> None:
        check_names("recovery.augmentation", self.augmentation, DSA_OPERATIONS)


@settings
class GradientMatching(_Matching):
    """Match what real and synthetic images of a class teach networks (arXiv:2006.05929)."""

    method: Literal["gradient"] = "gradient"
    distance: Literal["rows_cosine", "squared"] = "rows_cosine"
    """Between two gradients: one minus the cosine of every row of a weight, or squared."""
    parameters: Literal["weights", "convolutions"] = "weights"
    """Whose gradients are matched: of all matrices and kernels, or of convolutions alone."""
    outer: Count = 1000
    """Fresh networks, one after another."""
    inner: Count = 10
    """Matching steps with each of them, which is trained in between."""
    synthetic_batch: Count = 128
    """Synthetic images of a class in a step, after formation, or all where there are fewer."""
    augmentation_mode: Literal["single", "idc"] = "single"
    """`single`: one operation in a step; `idc`: all colours and `flip`, `cutout`, and one other."""
    clamp: bool = False
    """Bring the images back into the range of pixels before every fresh network."""
    representatives: Literal["random", "clusters"] = "random"
    """Real images of a step: drawn at random, or those nearest to the centres of as many clusters
    of the network's features (arXiv:2302.14416)."""
    interval: Count = 10
    """Matching steps between two clusterings."""
    network_data: Literal["synthetic", "long_tailed", "balanced"] = "synthetic"
    """What a network is trained on: the synthetic images, real ones, or as many of every class."""
    network_epochs: Annotated[Whole, Ge(0)] = 50
    """Epochs of a network between two matching steps."""
    network_images: Count = 2000
    """Real images of such an epoch."""
    network_augmentation: Names = ()
    """Augmentation of a network's images; every image draws its own parameters."""
    network_cutmix: Share = 0.0
    """Probability of CutMix in a step of a network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("recovery.network_augmentation", self.network_augmentation, DSA_OPERATIONS)


@settings
class DistributionMatching(_Matching):
    """Match the features of real and synthetic images in a pool of networks (arXiv:2307.09742)."""

    method: Literal["distribution"] = "distribution"
    distance: Literal["mean", "characteristic"] = "mean"
    """Between two sets of features: of their means, or of their characteristic functions."""
    iterations: Count = 20_000
    """Steps; a random network of the pool looks in each."""
    pool: Annotated[Whole, Interval(ge=1, le=100)] = 100
    """Networks at most; the oldest one leaves."""
    pool_start: Count = 3
    """Networks at the start."""
    pool_period: Annotated[Whole, Ge(0)] = 30
    """Iterations until the next fresh network; 0 for none."""
    entry_steps: Annotated[Whole, Ge(0)] = 0
    """Steps that a network is trained when it enters."""
    trained_networks: Annotated[Whole, Ge(0)] = 2
    """Networks of the pool that are trained in an iteration."""
    network_steps: Count = 10
    """Steps that each of them takes."""
    network_data: Literal["long_tailed", "balanced"] = "long_tailed"
    """What they are trained on: the real images, or as many of every class."""
    ce_weight: Weight = 0.5
    """Weight of the cross-entropy, times the network's training accuracy in percent."""
    frequencies: Count = 1024
    """Frequencies of a characteristic function."""
    amplitude_head: Share = 0.5
    """Share of the amplitudes in the distance of the largest class; the rest are the phases'."""
    amplitude_tail: Share = 0.5
    """The same of the smallest class; classes between go by the logarithm of their size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool_start > self.pool:
            raise UserError(
                f"expected recovery.pool_start of at most recovery.pool {self.pool}, "
                f"got {self.pool_start}"
            )
        if self.distance == "characteristic" and self.augmentation:
            raise UserError(
                "expected recovery.augmentation [] with recovery.distance characteristic, whose "
                f"real side is stored, got {list(self.augmentation)}"
            )


AnyRecovery: TypeAlias = RecoveryConfig | NoRecovery | GradientMatching | DistributionMatching
STAGES["recovery"] = get_args(AnyRecovery)
