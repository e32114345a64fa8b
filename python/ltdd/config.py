"""The configuration of a run: frozen dataclasses, one per form of a stage, checked when made.

A stage may have several forms, each with the fields that mean something in it; one field names the
form (``experts.loss``). Every default here is "our default" of the method; ``recipes/`` overrides
them and says where each value comes from. Nothing in this module imports torch, so that
``ltdd --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from annotated_types import Ge, Interval

from ltdd.errors import UserError
from ltdd.settings import (
    AreaShare,
    Count,
    Hint,
    Names,
    Number,
    Settings,
    Weight,
    Whole,
    fields_of,
    settings,
    shown,
    unknown_field,
    wrong_value,
)

Backend = Literal["compiled", "reference"]
Labels = Literal["static", "fkd", "online", "hard"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]
OnBadImage = Literal["fail", "skip"]
ImbalanceFactor = Annotated[Number, Ge(1)]
ImageSize = Annotated[Whole, Interval(ge=8, le=224)]
Fit = Literal["crop", "pad", "squeeze"]
IncompleteClasses = Literal["fail", "keep", "hold_out"]
BASELINES = (
    "random_real",
    "full_long_tailed",
    "random_real_soft",
    "distilled_hard",
    "distilled_bare",
    "random_real_bare",
)


class Stage(Settings):
    """What the settings of all stages have.

    Attributes:
        FORM: the field that names the form; empty for a stage of one form.
        NOT_IN_KEYS: fields that do not change the result of the stage.
    """

    FORM: ClassVar[str] = ""
    NOT_IN_KEYS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def form(cls) -> str:
        """Return the name of the form; empty for a stage of one form."""
        return str(getattr(cls, cls.FORM)) if cls.FORM else ""

    @classmethod
    def explain(cls, field: str, value: Any) -> str | None:
        """Say that a field, or the name of a form, belongs to another form of the stage."""
        for other in STAGES[cls.STAGE]:
            if field == cls.FORM and value == other.form():
                return (
                    f"expected {cls.STAGE}.{field} {cls.form()} in {cls.__name__}, got {value!r}; "
                    f"that form is {other.__name__}"
                )
        return other_form(cls, field)


@settings
class _Experts(Stage):
    """Expert training on the long-tailed data: what every form of it has."""

    STAGE = "experts"
    FORM = "loss"
    # Who is trained; how each one is decides its result.
    NOT_IN_KEYS = (
        "observer", "teacher", "extra_observers", "extra_teachers",
        "observer_weights", "teacher_weights", "class_map",
    )  # fmt: skip

    observer: str = "resnet18"
    """Architecture whose batch-norm statistics are matched; it must have BatchNorm2d layers. Also
    `torchvision:NAME`, `timm:NAME` or `python:package.module:factory`, untrained."""
    teacher: str = "same"
    """Architecture that scores crops and gives soft labels; `same` uses the observers."""
    extra_observers: Names = ()
    """Further observers, matched in turns, one an iteration; the same name again is another seed.
    Their statistics, and as `same` teacher their mean logits, count like the first one's."""
    extra_teachers: Names = ()
    """Further teachers; labels are the mean logits of all."""
    observer_weights: str | None = None
    """File with the observer's weights (.safetensors, .pt or .pth); it is then not trained."""
    teacher_weights: str | None = None
    """File with the teacher's weights; it is then not trained."""
    class_map: str | None = None
    """JSON file with the class names in the order of the given weights' outputs; None: as the
    weights file says, and if it says nothing, the order of the data."""
    loss: str = ""
    """What an expert minimises."""
    epochs: Count = 200
    """Passes over the long-tailed training images."""
    min_steps: Count | None = None
    """Fewest training steps: a small set gets more epochs until it has them. None: no fewest."""
    progressive_resizing: bool = False
    """Train the first 40 % of the epochs at half the image size and the next 30 % at three quarters
    (at 16 pixels or more), for networks that take any size: more epochs in the same time."""
    batch_size: Annotated[Whole, Ge(2)] = 64
    """Images per step and view."""
    learning_rate: Weight = 0.01
    """Peak learning rate of SGD."""
    momentum: Weight = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: Weight = 5e-3
    """L2 penalty on all parameters."""
    schedule: Literal["cosine", "one_cycle"] = "cosine"
    """`cosine` to zero, or `one_cycle` (up over 20 % of the steps, then to zero)."""
    warmup_epochs: Count | None = None
    """Epochs over which `cosine` first rises linearly; None: it starts at its peak."""
    averaging: Literal["none", "ema"] = "none"
    """Average the weights: `ema` over steps (decay 0.999); batch-norm statistics are then measured
    again."""
    crop_padding: Annotated[Whole, Ge(0)] = 4
    """Random-crop padding in pixels at 32 px; scaled with the image size."""
    crop_min_scale: AreaShare | None = None
    """Smallest area of a random resized crop, in place of padding and cutting; None: pad."""
    color_jitter: Annotated[Number, Interval(ge=0, le=1)] | None = None
    """Largest relative change of brightness, contrast and saturation, 0..1; with it a fifth of the
    images turn grey and half are blurred. None: colours stay."""

    @property
    def teacher_name(self) -> str:
        """Architecture of the teacher, or of several, joined by `+`."""
        first = [self.observer, *self.extra_observers] if self.teacher == "same" else [self.teacher]
        return "+".join([*first, *self.extra_teachers])

    def __post_init__(self) -> None:
        if self.teacher == "same" and self.teacher_weights is not None:
            raise UserError(
                "expected experts.teacher to name the architecture of experts.teacher_weights, "
                "got 'same'"
            )
        if self.warmup_epochs is not None and self.schedule != "cosine":
            raise UserError(
                f"expected experts.schedule cosine with warmup_epochs, got {self.schedule!r}"
            )
        if self.nesterov and self.momentum == 0:
            raise UserError("expected experts.momentum > 0 with experts.nesterov, got 0")


@settings
class ExpertsConfig(_Experts):
    """Mixture consistency and class debiasing (arXiv:2511.18858, Eq. 5-7)."""

    loss: Literal["rldd"] = "rldd"
    resampling_power: Weight = 0.2
    """rho: the second batch draws an image of class y with weight n_y^(-rho)."""
    debias_power: Weight = 0.8
    """q: class weight proportional to n_k^(-q)."""
    variant: Literal["code", "printed"] = "code"
    """The rebalanced term. `code`, as the method's code has it: on a classifier of its own, with
    class weights of mean 1; `printed` (Eq. 6): on the one classifier, with weights of sum 1."""
    consistency_weight: Weight = 1.0
    """gamma1: weight of the consistency term between the two mixed views."""
    classification_weight: Weight = 1.0
    """gamma2: weight of the two classification terms."""
    projection_dim: Count = 128
    """Width h of the projection and prediction layers behind the consistency term."""


@settings
class PlainExperts(_Experts):
    """Plain cross-entropy, nothing mixed."""

    loss: Literal["ce"] = "ce"


@settings
class UniMixExperts(_Experts):
    """Mixing towards the tail with the prior in the logits (arXiv:2111.03874)."""

    loss: Literal["unimix"] = "unimix"


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


@settings
class RelabelingConfig(Stage):
    """Soft labels from the teacher."""

    STAGE = "relabeling"

    labels: Labels = "fkd"
    """`static`: one logit vector per image; `fkd`: logits of every augmented view, replayed from
    seeds; `online`: the teacher labels each view while the student trains; `hard`: classes only."""
    calibration: Literal["none", "adsa"] = "none"
    """`adsa` takes the class prior out of all soft labels, as far as makes the teacher equally sure
    of every class of the distilled images (arXiv:2511.17914)."""
    packing: Literal["none", "fp16", "topk"] = "fp16"
    """How labels are stored: `fp16` takes two bytes a value, `topk` keeps the largest logits and
    the mean of the others, `none` leaves static logits in float32."""
    packing_top: Count = 10
    """Logits of an image or view that `topk` keeps, fewer than there are classes."""


@settings
class EvaluationConfig(Stage):
    """Student training on the distilled set, and what it is compared with."""

    STAGE = "evaluation"
    # Which students there are; how each one is trained decides its result.
    NOT_IN_KEYS = ("seeds", "baselines", "full_epochs")

    student: str = "convnet3"
    """Architecture of the student."""
    seeds: Count = 3
    """Number of students; accuracies are reported as mean and standard deviation."""
    epochs: Count = 1000
    """Passes over the distilled images."""
    batch_size: Count = 25
    """Images per step."""
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """Optimizer of the student; `muon` is for convolutions, with `adamw` for the rest."""
    learning_rate: Weight = 1e-3
    """Learning rate."""
    momentum: Weight = 0.875
    """Momentum of `sgd`."""
    weight_decay: Weight = 0.01
    """Weight decay, on matrices and convolution kernels only."""
    schedule: Literal["step", "cosine", "smoothed_cosine", "cos2"] = "step"
    """`step`: x0.5 at 80, 90, 95 % of the epochs; `cosine` to zero; `smoothed_cosine` to half;
    `cos2`: as `smoothed_cosine` for 5/6 of the epochs, then drops to a sixth and falls to zero."""
    logit_weight: Weight = 1.0
    """kappa2: weight of the mean squared error on raw logits."""
    hard_weight: Weight = 0.025
    """kappa1: weight of the cross-entropy with the (mixed) class labels."""
    logit_std_norm: bool = False
    """Divide student and teacher logits by their own standard deviation over classes first."""
    crop_min_scale: AreaShare = 0.08
    """Smallest random-resized-crop area of the student's augmentation."""
    cutmix: bool = True
    """CutMix with a Beta(1, 1) area in every batch."""
    randaugment: bool = False
    """RandAugment(2, 9) before the crop."""
    ema_decay: Annotated[Number, Interval(ge=0, le=1 - 1e-9)] = 0.99
    """Decay per step of the averaged parameters that are evaluated; 0 takes the last iterate."""
    full_epochs: Count | None = None
    """Epochs of the `full_long_tailed` baseline over the long-tailed images; None: as experts."""
    baselines: Names = ("random_real", "full_long_tailed")
    """Baselines trained beside the student: `random_real` and `full_long_tailed`; for LRS also
    `distilled_hard` and `random_real_soft`; for ARS the latter, and `distilled_bare` and
    `random_real_bare`, which see no augmentation."""

    def __post_init__(self) -> None:
        for name in self.baselines:
            if name not in BASELINES:
                known = ", ".join(BASELINES)
                raise UserError(f"expected evaluation.baselines among {known}; got {name!r}")


AnyExperts: TypeAlias = ExpertsConfig | PlainExperts | UniMixExperts
AnyInitialization: TypeAlias = InitializationConfig | ClusteredCrops | RandomReal | Noise
AnyRecovery: TypeAlias = RecoveryConfig | NoRecovery

STAGES: Mapping[str, tuple[type[Stage], ...]] = {
    "experts": get_args(AnyExperts),
    "statistics": (StatisticsConfig,),
    "initialization": get_args(AnyInitialization),
    "recovery": get_args(AnyRecovery),
    "relabeling": (RelabelingConfig,),
    "evaluation": (EvaluationConfig,),
}
"""Stage name -> its forms, the default one first, in the order in which the stages run."""


@settings
class DistillConfig(Settings):
    """Everything that decides the result of `ltdd distill`."""

    data: str = "digits"
    """`digits`, `imagefolder:PATH`, `list:TRAIN[,TEST][@ROOT]` (CSV, COCO's JSON, or lines of path
    and label), `npz:FILE`, `torchvision:NAME`, `cifar10`, `cifar100` or `hf:NAME_OR_PATH` (Hugging
    Face). At its end, `[levels=2]` says that an image folder has its classes two folders down,
    `[columns=IMAGE,LABEL]` names columns of `list:` and `hf:`; quote brackets in a shell."""
    ipc: Count = 10
    """Synthetic images per class."""
    imbalance_factor: ImbalanceFactor | None = None
    """Cut the training set to the exponential profile with n_max / n_min = this; None keeps it."""
    image_size: ImageSize | None = None
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
    seed: Annotated[Whole, Interval(ge=0, le=2**63 - 1)] = 0
    """Seed of every random draw except the split, which has its own fixed one (42)."""
    backend: Backend = "compiled"
    """Compiled operators of statistics and recovery, or the plain PyTorch reference of them."""
    device: Device = "auto"
    """`auto` (a GPU if there is one), `cpu` or `cuda`."""
    precision: Precision = "fp32"
    """`bf16` runs networks under autocast (statistics and losses stay in float32 or better); `auto`
    is bf16 on a GPU or a CPU with matrix tiles (AMX), where it is faster, and fp32 elsewhere."""
    deterministic: bool = False
    """On a GPU, only kernels that give the same bits in every run, which is slower; on a CPU the
    same number of threads always gives the same bits."""
    experts: AnyExperts = dataclasses.field(default_factory=ExpertsConfig)
    statistics: StatisticsConfig = dataclasses.field(default_factory=StatisticsConfig)
    initialization: AnyInitialization = dataclasses.field(default_factory=InitializationConfig)
    recovery: AnyRecovery = dataclasses.field(default_factory=RecoveryConfig)
    relabeling: RelabelingConfig = dataclasses.field(default_factory=RelabelingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON types."""
        listed: dict[str, Any] = _listed(dataclasses.asdict(self))
        return listed

    @classmethod
    def from_dict(cls, values: Any) -> DistillConfig:
        """Rebuild a configuration from `to_dict`; anything else is a UserError."""
        _check_mapping("a mapping of fields", values)
        known = [field.name for field in fields_of(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"config: {unknown_field(str(name), known)}")
        given: dict[str, Any] = {
            k: _stage_of(k, v) if k in STAGES else v for k, v in values.items()
        }
        return cls(**given)


def _listed(value: Any) -> Any:
    """Turn the tuples of nested dicts into lists, which is what JSON knows."""
    if isinstance(value, dict):
        return {name: _listed(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _check_mapping(expected: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"config: expected {expected}, got {shown(values)}")


def _stage_of(stage: str, values: Any) -> Stage:
    """Make the settings of a stage from its fields."""
    _check_mapping(f"{stage} to be a mapping of fields", values)
    try:
        form = form_of(stage, values.get(STAGES[stage][0].FORM))
    except UserError as error:
        raise UserError(f"config: {error}") from None
    return form(**{str(name): value for name, value in values.items()})


def form_of(stage: str, name: Any = None) -> type[Stage]:
    """Return a form of a stage by its name; the default one for None.

    Raises:
        UserError: there is none of this name.
    """
    forms = {form.form(): form for form in STAGES[stage]}
    default = STAGES[stage][0]
    if name is None or not default.FORM:
        return default
    if not isinstance(name, str) or name not in forms:
        names: Any = Literal[tuple(forms)]
        raise UserError(wrong_value(f"{stage}.{default.FORM}", names, name, "literal_error"))
    return forms[name]


def other_form(form: type[Stage], field: str) -> str | None:
    """Say in one sentence that a field is one of another form; None if no form has it.

    Args:
        form: the form that was chosen and lacks the field.
        field: its name.
    """
    owners = [f for f in STAGES[form.STAGE] if field in {spec.name for spec in fields_of(f)}]
    if not owners or form in owners:
        return None
    names, place = " or ".join(owner.form() for owner in owners), f"{form.STAGE}.{form.FORM}"
    return f"{form.STAGE}.{field}: a field of {place} {names}, got {place} {form.form()}"


def with_form(settings: Stage, name: str, **changes: Any) -> Any:
    """Return the settings of a stage in another form.

    Fields that it lacks are left out, those that it alone has get their defaults.

    Args:
        settings: in any form.
        name: of the other form.
        changes: other values of its fields.
    """
    form = form_of(settings.STAGE, name)
    shared = {spec.name for spec in fields_of(type(settings))} - {form.FORM}
    kept = {
        spec.name: getattr(settings, spec.name) for spec in fields_of(form) if spec.name in shared
    }
    return form(**kept | changes)


def override(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others on top, both nested like `DistillConfig.to_dict`.

    Where the changes choose another form of a stage, the fields of the base that it lacks are left
    out.

    Raises:
        UserError: there is no such form.
    """
    result = dict(base)
    for name, value in changes.items():
        if name in STAGES and isinstance(value, Mapping):
            below, key = base.get(name, {}), STAGES[name][0].FORM
            form = form_of(name, value.get(key, below.get(key)))
            known = {spec.name for spec in fields_of(form)}
            value = {k: v for k, v in below.items() if k in known} | dict(value)
        result[name] = value
    return result


def deciding_settings(settings: Stage) -> dict[str, Any]:
    """Return what the key of a stage's result holds of the stage's settings.

    These are the name of its form unless that is the default one, and the fields that differ from
    their defaults, so that a field or a form which is added leaves every stored result where it is
    found. Fields in ``NOT_IN_KEYS`` do not change the result of the stage.

    Args:
        settings: the configuration of a stage.
    """
    values = {
        spec.name: value
        for spec in fields_of(type(settings))
        if spec.name not in settings.NOT_IN_KEYS
        and (value := getattr(settings, spec.name)) != spec.default
    }
    if type(settings) is not STAGES[settings.STAGE][0]:
        values[settings.FORM] = settings.form()
    return values
