"""The configuration of a run: frozen dataclasses, one per stage, checked once.

Every default here is "our default" of the method; ``presets.py`` overrides them for a machine or a
data set and says where each value comes from. Nothing in this module imports torch, so that
``ltdd --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ltdd.errors import UserError

Backend = Literal["compiled", "reference"]
Labels = Literal["static", "fkd", "online", "hard"]
Precision = Literal["auto", "bf16", "fp32"]
OnBadImage = Literal["fail", "skip"]
Fit = Literal["crop", "pad", "squeeze"]
IncompleteClasses = Literal["fail", "keep", "hold_out"]


@dataclass(frozen=True)
class ExpertsConfig:
    """Expert training on the long-tailed data (arXiv:2511.18858, Eq. 5-7)."""

    observer: str = "resnet18"
    """Architecture whose batch-norm statistics are matched; it must have BatchNorm2d layers. Also
    `torchvision:NAME`, `timm:NAME` or `python:package.module:factory`, untrained."""
    teacher: str = "same"
    """Architecture that scores crops and gives soft labels; `same` uses the observers."""
    extra_observers: tuple[str, ...] = ()
    """Further observers, matched in turns, one an iteration; the same name again is another seed.
    Their statistics, and as `same` teacher their mean logits, count like the first one's."""
    extra_teachers: tuple[str, ...] = ()
    """Further teachers; labels are the mean logits of all."""
    observer_weights: str | None = None
    """File with the observer's weights (.safetensors, .pt or .pth); it is then not trained."""
    teacher_weights: str | None = None
    """File with the teacher's weights; it is then not trained."""
    class_map: str | None = None
    """JSON file with the class names in the order of the given weights' outputs; None: as the
    weights file says, and if it says nothing, the order of the data."""
    loss: Literal["rldd", "ce", "unimix"] = "rldd"
    """`rldd`: mixture consistency + class debiasing; `ce`: plain cross-entropy, no mixing;
    `unimix`: mixing towards the tail with the prior in the logits."""
    epochs: int = 200
    """Passes over the long-tailed training images."""
    min_steps: int | None = None
    """Fewest training steps: a small set gets more epochs until it has them. None: no fewest."""
    progressive_resizing: bool = False
    """Train the first 40 % of the epochs at half the image size and the next 30 % at three quarters
    (at 16 pixels or more), for networks that take any size: more epochs in the same time."""
    batch_size: int = 64
    """Images per step and view."""
    learning_rate: float = 0.01
    """Peak learning rate of SGD."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: float = 5e-3
    """L2 penalty on all parameters."""
    schedule: Literal["cosine", "one_cycle"] = "cosine"
    """`cosine` to zero, or `one_cycle` (up over 20 % of the steps, then to zero)."""
    warmup_epochs: int | None = None
    """Epochs over which `cosine` first rises linearly; None: it starts at its peak."""
    averaging: Literal["none", "ema", "swa"] = "none"
    """Average the weights: `ema` over steps (decay 0.999), `swa` over the last quarter of the
    epochs; batch-norm statistics are then measured again."""
    resampling_power: float = 0.2
    """rho: the second batch draws an image of class y with weight n_y^(-rho)."""
    debias_power: float = 0.8
    """q: class weight proportional to n_k^(-q)."""
    weight_norm: Literal["mean1", "sum1"] = "mean1"
    """Class weights have mean 1 (code of the method) or sum 1 (the formula as printed)."""
    consistency_weight: float = 1.0
    """gamma1: weight of the consistency term between the two mixed views."""
    classification_weight: float = 1.0
    """gamma2: weight of the two classification terms."""
    single_head: bool = False
    """Put the plain and the rebalanced term on one classifier instead of two."""
    projection_dim: int = 128
    """Width h of the projection and prediction layers behind the consistency term."""
    crop_padding: int = 4
    """Random-crop padding in pixels at 32 px; scaled with the image size."""
    crop_min_scale: float | None = None
    """Smallest area of a random resized crop, in place of padding and cutting; None: pad."""
    color_jitter: float | None = None
    """Largest relative change of brightness, contrast and saturation, 0..1; with it a fifth of the
    images turn grey and half are blurred. None: colours stay."""

    @property
    def teacher_name(self) -> str:
        """Architecture of the teacher, or of several, joined by `+`."""
        first = [self.observer, *self.extra_observers] if self.teacher == "same" else [self.teacher]
        return "+".join([*first, *self.extra_teachers])


@dataclass(frozen=True)
class StatisticsConfig:
    """Per-class batch-norm statistics of the frozen observer (arXiv:2511.18858, Eq. 8-9)."""

    batch_size: int = 250
    """Images per forward pass; it does not change the result."""
    global_target: Literal["mixture", "paper", "edc", "running"] = "mixture"
    """Whole-batch target: total variance of the class-balanced mixture, the mean of class
    variances (Eq. 9), the mean of within-image variances, or the checkpoint's running ones."""
    class_target: Literal["finite", "full", "edc"] = "finite"
    """Class-wise variance target: W + (1 - 1/m) B for m images of a class, W + B, or W."""


@dataclass(frozen=True)
class InitializationConfig:
    """Where the images start."""

    method: Literal["scored_crops", "clustered_crops", "random_real", "noise"] = "scored_crops"
    """Teacher-scored crops picked in rounds, the crops in the middle of clusters of the teacher's
    features, random real images, or Gaussian noise."""
    crops_per_image: int = 5
    """K: candidate crops of every real image."""
    crop_min_scale: float = 0.08
    """Smallest crop area as a fraction of the image; the largest is 1, the ratio is 1."""


@dataclass(frozen=True)
class RecoveryConfig:
    """Optimisation of the images so that their statistics match (arXiv:2511.18858, Eq. 2-4)."""

    iterations: int = 2000
    """Adam steps per batch of images; 0 skips recovery."""
    learning_rate: float = 0.05
    """Adam learning rate, cosine to zero, in units of normalised pixels."""
    alignment_weight: float = 0.01
    """r: weight of the whole alignment term."""
    first_layer_weight: float = 10.0
    """w_0: weight of the first batch-norm layer; all others have 1."""
    class_alignment_weight: float = 1.0
    """eta: weight of the class-wise part beside the global part."""
    classification_weight: float = 1.0
    """lambda_ce: weight of the observer's cross-entropy."""
    crop_min_scale: float = 0.08
    """Smallest random crop area; every image draws its own crop."""
    max_batch: int = 1000
    """Largest number of images optimised together; sets how many images per class a batch holds."""


@dataclass(frozen=True)
class RelabelingConfig:
    """Soft labels from the teacher."""

    labels: Labels = "fkd"
    """`static`: one logit vector per image; `fkd`: logits of every augmented view, replayed from
    seeds; `online`: the teacher labels each view while the student trains; `hard`: classes only."""
    calibration: Literal["none", "adsa"] = "none"
    """`adsa` takes the class prior out of all soft labels, as far as makes the teacher equally sure
    of every class of the distilled images (arXiv:2511.17914)."""
    packing: Literal["none", "fp16", "topk"] = "fp16"
    """How labels are stored: `fp16` takes two bytes a value, `topk` keeps the largest logits and
    the mean of the others, `none` leaves static logits in float32."""
    packing_top: int = 10
    """Logits of an image or view that `topk` keeps, fewer than there are classes."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Student training on the distilled set, and what it is compared with."""

    student: str = "convnet3"
    """Architecture of the student."""
    seeds: int = 3
    """Number of students; accuracies are reported as mean and standard deviation."""
    epochs: int = 1000
    """Passes over the distilled images."""
    batch_size: int = 25
    """Images per step."""
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """Optimizer of the student; `muon` is for convolutions, with `adamw` for the rest."""
    learning_rate: float = 1e-3
    """Learning rate."""
    momentum: float = 0.875
    """Momentum of `sgd`."""
    weight_decay: float = 0.01
    """Weight decay, on matrices and convolution kernels only."""
    schedule: Literal["step", "cosine", "smoothed_cosine", "cos2"] = "step"
    """`step`: x0.5 at 80, 90, 95 % of the epochs; `cosine` to zero; `smoothed_cosine` to half;
    `cos2`: as `smoothed_cosine` for 5/6 of the epochs, then drops to a sixth and falls to zero."""
    logit_weight: float = 1.0
    """kappa2: weight of the mean squared error on raw logits."""
    hard_weight: float = 0.025
    """kappa1: weight of the cross-entropy with the (mixed) class labels."""
    logit_std_norm: bool = False
    """Divide student and teacher logits by their own standard deviation over classes first."""
    crop_min_scale: float = 0.08
    """Smallest random-resized-crop area of the student's augmentation."""
    cutmix: bool = True
    """CutMix with a Beta(1, 1) area in every batch."""
    randaugment: bool = False
    """RandAugment(2, 9) before the crop."""
    ema_decay: float = 0.99
    """Decay per step of the averaged parameters that are evaluated; 0 takes the last iterate."""
    full_epochs: int | None = None
    """Epochs of the `full_long_tailed` baseline over the long-tailed images; None: as experts."""
    baselines: tuple[str, ...] = ("random_real", "full_long_tailed")
    """Baselines trained beside the student: `random_real` and `full_long_tailed`; for LRS also
    `distilled_hard` and `random_real_soft`; for ARS the latter, and `distilled_bare` and
    `random_real_bare`, which see no augmentation."""


STAGES: Mapping[str, type] = {
    "experts": ExpertsConfig,
    "statistics": StatisticsConfig,
    "initialization": InitializationConfig,
    "recovery": RecoveryConfig,
    "relabeling": RelabelingConfig,
    "evaluation": EvaluationConfig,
}
"""Stage name -> its configuration class, in the order in which the stages run."""


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides the result of `ltdd distill`."""

    data: str = "digits"
    """`digits`, `imagefolder:PATH`, `list:TRAIN[,TEST][@ROOT]` (CSV or lines of path and label),
    `npz:FILE`, `torchvision:NAME`, `cifar10`, `cifar100` or `hf:NAME_OR_PATH` (Hugging Face)."""
    ipc: int = 10
    """Synthetic images per class."""
    imbalance_factor: float | None = None
    """Cut the training set to the exponential profile with n_max / n_min = this; None keeps it."""
    image_size: int | None = None
    """Side in pixels, 8..224, to which all images are brought; None keeps a common native size."""
    fit: Fit = "crop"
    """How images that are not square become so: `crop` keeps the central square, `pad` adds black
    bars, `squeeze` scales each side alone."""
    incomplete_classes: IncompleteClasses = "fail"
    """Classes without test images: `fail` refuses them, `keep` distils them but cannot measure
    them, `hold_out` tests on a fifth of their training images. With the latter two, classes without
    training images are left out."""
    horizontal_flip: bool = True
    """Mirroring keeps the class (not so for digits or text)."""
    seed: int = 0
    """Seed of every random draw except the split, which has its own fixed one (42)."""
    backend: Backend = "compiled"
    """Compiled operators of statistics and recovery, or the plain PyTorch reference of them."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu` or `cuda`."""
    precision: Precision = "fp32"
    """`bf16` runs networks under autocast (statistics and losses stay in float32 or better); `auto`
    is bf16 on a GPU or a CPU with matrix tiles (AMX), where it is faster, and fp32 elsewhere."""
    deterministic: bool = False
    """On a GPU, only kernels that give the same bits in every run, which is slower; on a CPU the
    same number of threads always gives the same bits."""
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    initialization: InitializationConfig = field(default_factory=InitializationConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    relabeling: RelabelingConfig = field(default_factory=RelabelingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON types."""
        listed: dict[str, Any] = _listed(dataclasses.asdict(self))
        return listed

    @classmethod
    def from_dict(cls, values: Any) -> DistillConfig:
        """Rebuild a configuration from `to_dict`; anything else is a UserError."""
        if not isinstance(values, Mapping):
            raise UserError(f"config: expected a mapping of fields, got {values!r}")
        known = {f.name for f in dataclasses.fields(cls)}
        merged: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"config: unknown field {name!r}; known fields: {sorted(known)}")
            stage = STAGES.get(name)
            merged[name] = _stage_from_dict(name, stage, value) if stage else value
        return cls(**merged)


def _listed(value: Any) -> Any:
    """Turn the tuples of nested dicts into lists, which is what JSON knows."""
    if isinstance(value, dict):
        return {name: _listed(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _stage_from_dict(name: str, stage: type, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"config: expected {name} to be a mapping of fields, got {values!r}")
    known = {f.name for f in dataclasses.fields(stage)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(
            f"config: unknown field {name}.{unknown[0]!r}; known fields: {sorted(known)}"
        )
    return stage(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


# Allowed closed ranges of numeric fields; every field not named here only has its type checked.
_RANGES: Mapping[str, tuple[float, float]] = {
    "ipc": (1, math.inf),
    "imbalance_factor": (1, math.inf),
    "image_size": (8, 224),
    "seed": (0, 2**63 - 1),
    "experts.epochs": (1, math.inf),
    "experts.min_steps": (1, math.inf),
    "experts.batch_size": (2, math.inf),
    "experts.projection_dim": (1, math.inf),
    "experts.crop_padding": (0, math.inf),
    "experts.crop_min_scale": (1e-3, 1),
    "experts.color_jitter": (0, 1),
    "experts.warmup_epochs": (1, math.inf),
    "statistics.batch_size": (1, math.inf),
    "initialization.crops_per_image": (1, math.inf),
    "initialization.crop_min_scale": (1e-3, 1),
    "recovery.iterations": (0, math.inf),
    "recovery.crop_min_scale": (1e-3, 1),
    "recovery.max_batch": (1, math.inf),
    "relabeling.packing_top": (1, math.inf),
    "evaluation.seeds": (1, math.inf),
    "evaluation.epochs": (1, math.inf),
    "evaluation.full_epochs": (1, math.inf),
    "evaluation.batch_size": (1, math.inf),
    "evaluation.crop_min_scale": (1e-3, 1),
    "evaluation.ema_decay": (0, 1 - 1e-9),
}
BASELINES = (
    "random_real",
    "full_long_tailed",
    "random_real_soft",
    "distilled_hard",
    "distilled_bare",
    "random_real_bare",
)


def check(config: DistillConfig) -> None:
    """Check types, ranges and choices of every field.

    Raises:
        UserError: names the field, the value and what was expected.
    """
    _check_fields("", config)
    for name in STAGES:
        _check_fields(f"{name}.", getattr(config, name))
    unknown = [name for name in config.evaluation.baselines if name not in BASELINES]
    if unknown:
        raise UserError(
            f"config: expected evaluation.baselines among {BASELINES}, got {unknown[0]!r}"
        )
    experts = config.experts
    if experts.teacher == "same" and experts.teacher_weights is not None:
        raise UserError(
            "config: expected experts.teacher to name the architecture of experts.teacher_weights, "
            "got 'same'"
        )
    if experts.warmup_epochs is not None and experts.schedule != "cosine":
        raise UserError(
            f"config: expected experts.schedule cosine with warmup_epochs, got {experts.schedule!r}"
        )
    if config.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"config: expected device auto, cpu or cuda, got {config.device!r}")
    if config.experts.nesterov and config.experts.momentum == 0:
        raise UserError("config: expected experts.momentum > 0 with experts.nesterov, got 0")


def _check_fields(prefix: str, config: Any) -> None:
    hints = get_type_hints(type(config))
    for spec in dataclasses.fields(config):
        name, value, hint = prefix + spec.name, getattr(config, spec.name), hints[spec.name]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                choices = ", ".join(str(c) for c in get_args(hint))
                raise UserError(f"config: expected {name} to be one of {choices}; got {value!r}")
            continue
        types = set(get_args(hint) or (hint,))
        if value is None and type(None) in types:
            continue
        if types & {int, float}:
            _check_number(name, value, whole=float not in types)
            continue
        (kind,) = (tuple,) if get_origin(hint) is tuple else types - {type(None)}
        if not isinstance(value, kind):
            words = {str: "text", bool: "true or false"}.get(kind, "a list of names")
            raise UserError(f"config: expected {name} to be {words}, got {value!r}")


def _check_number(name: str, value: Any, whole: bool) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        kind = "whole" if whole else "finite"
        raise UserError(f"config: expected {name} to be a {kind} number, got {value!r}")
    low, high = _RANGES.get(name, (0, math.inf))
    if not low <= value <= high:
        bound = f">= {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UserError(f"config: expected {name} {bound}, got {value!r}")
