"""Images that teach networks, or look to them, as real ones do."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Interval

from ltdd.config.recovery.form import RecoveryForm, Share
from ltdd.config.settings import Count, Names, Weight, Whole, settings
from ltdd.config.stage import DSA_OPERATIONS, check_names
from ltdd.errors import UserError


@settings
class _Matching(RecoveryForm):
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
