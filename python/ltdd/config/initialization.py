"""Forms of stage 3: where the images start."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

from annotated_types import Interval

from ltdd.config.settings import AreaShare, Count, Whole, settings
from ltdd.config.stage import STAGES, Stage


@settings
class _Initialization(Stage):
    """Where the images start.

    Attributes:
        ASKS_TEACHER: whether a trained network chooses them.
    """

    STAGE = "initialization"
    FORM = "method"
    ASKS_TEACHER: ClassVar[bool] = False

    method: str = ""
    """What the first images are."""


@settings
class _Crops(_Initialization):
    """Crops of real images, chosen by what the teacher makes of them."""

    ASKS_TEACHER = True
    crops_per_image: Count = 5
    """K: candidate crops of every real image."""
    crop_min_scale: AreaShare = 0.08
    """Smallest crop area as a fraction of the image; the largest is 1, the ratio is 1."""


@settings
class InitializationConfig(_Crops):
    """The crops that the teacher scores best, picked in rounds (arXiv:2511.18858)."""

    method: Literal["scored_crops"] = "scored_crops"
    images_per_class: Count | None = None
    """Real images of a class at most that offer crops, drawn at random (RDED: 300); None: all."""
    tiles: Count = 1
    """f: an image is f x f crops side by side, each of a side of 1/f of its own (RDED)."""


@settings
class ClusteredCrops(_Crops):
    """The crops in the middle of clusters of the teacher's features."""

    method: Literal["clustered_crops"] = "clustered_crops"


@settings
class RandomReal(_Initialization):
    """Random real images."""

    method: Literal["random_real"] = "random_real"


@settings
class CorrectReal(_Initialization):
    """Real images that experts get right, for `recovery.method trajectory` (DATM)."""

    method: Literal["correct_real"] = "correct_real"


@settings
class Noise(_Initialization):
    """Gaussian noise with the mean and the deviation of the data."""

    method: Literal["noise"] = "noise"


@settings
class KCenter(_Initialization):
    """Real images, each as far as can be from those before it in the teacher's features."""

    ASKS_TEACHER = True
    method: Literal["k_center"] = "k_center"


@settings
class GraphCut(_Initialization):
    """Real images whose gradients are like those of many others and unlike each other's."""

    ASKS_TEACHER = True
    method: Literal["graph_cut"] = "graph_cut"


@settings
class Tiled(_Initialization):
    """Whole real images, f x f of them shrunk into every synthetic one (arXiv:2205.14959)."""

    method: Literal["tiled"] = "tiled"
    tiles: Annotated[Whole, Interval(ge=1, le=4)] = 2
    """f, as `recovery.formation`."""
    resampling: Literal["nearest", "bilinear"] = "nearest"
    """How an image is shrunk."""
    choice: Literal["random", "clusters"] = "random"
    """Which images: random ones, or those nearest to the centres of clusters of the features of an
    untrained network (arXiv:2302.14416)."""
    network: str = "convnet3"
    """That network."""


AnyInitialization: TypeAlias = (
    InitializationConfig
    | ClusteredCrops
    | RandomReal
    | CorrectReal
    | Noise
    | KCenter
    | GraphCut
    | Tiled
)
STAGES["initialization"] = get_args(AnyInitialization)
