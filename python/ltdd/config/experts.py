"""Forms of stage 1: how the observers and the teacher are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from annotated_types import Ge, Interval

from ltdd.config.settings import (
    AreaShare,
    Count,
    Names,
    Number,
    Shares,
    Temperature,
    Weight,
    Whole,
    fields_of,
    settings,
)
from ltdd.config.stage import STAGES, Stage, form_of, with_form
from ltdd.errors import UserError

ExpertLoss = Literal["rldd", "ce", "unimix"]
_OWN = ("loss", "resampling_power", "debias_power")  # what a role may have of its own
_OF_ROLES = tuple(f"{role}_{name}" for role in ("observer", "teacher") for name in _OWN)
_IMITATION = (
    "distil_from",
    "distil_from_weights",
    "distil_from_epochs",
    "distil_from_resizing",
    "distil_from_randaugment",
    "distil_share",
    "distil_temperature",
    "distil_prior",
)


@settings
class _Experts(Stage):
    """Expert training on the long-tailed data: what every form of it has."""

    STAGE = "experts"
    FORM = "loss"
    # Who is trained; how each one is decides its result.
    NOT_IN_KEYS = (
        "observer", "teacher", "extra_observers", "extra_teachers",
        "observer_weights", "teacher_weights", "class_map", "init_weights",
        "distil_from", "distil_from_weights", "distil_from_epochs", "distil_from_resizing",
        "distil_from_randaugment", "teacher_course", *_OF_ROLES,
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
    init_weights: str | None = None
    """Where trained experts start: a weights file, or `torchvision:NAME` for the weights published
    with that network. All but the classifier is taken, so their classes may be others. None: fresh
    weights, which have seen nothing but the long-tailed data."""
    distil_from: str | None = None
    """Architecture of a stronger network, a master, that is trained first; observers and teachers
    then imitate its logits on every view (arXiv:1503.02531)."""
    distil_from_weights: str | None = None
    """File with the master's weights; it is then not trained."""
    distil_from_epochs: Count | None = None
    """Epochs of the master; None: `epochs`."""
    distil_from_resizing: bool | None = None
    """`progressive_resizing` of the master; None: as all."""
    distil_from_randaugment: bool | None = None
    """`randaugment` of the master; None: as all."""
    distil_share: Annotated[Number, Interval(ge=0, le=1)] = 0.9
    """Weight of the imitation; what an expert minimises otherwise has the rest."""
    distil_temperature: Temperature = 1.0
    """Both sides' logits are divided by it."""
    distil_prior: Weight = 0.0
    """tau: the master's logits lose tau * log(class frequency) first, which favours rare classes
    (arXiv:2007.07314)."""
    teacher_course: Shares = (1.0,)
    """After which shares of their training teachers label, ascending: as many equal parts of the
    students' epochs learn from them in order (arXiv:1904.09149). `[1]` is the finished teacher
    alone; the last share may be below 1. Only with labels `fkd`."""
    observer_loss: ExpertLoss | None = None
    """What observers minimise; None: `loss`."""
    teacher_loss: ExpertLoss | None = None
    """What teachers minimise; None: `loss`."""
    observer_resampling_power: Weight | None = None
    """rho of the observers; None: `resampling_power`."""
    teacher_resampling_power: Weight | None = None
    """rho of the teachers; None: `resampling_power`."""
    observer_debias_power: Weight | None = None
    """q of the observers; None: `debias_power`."""
    teacher_debias_power: Weight | None = None
    """q of the teachers; None: `debias_power`."""
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
    randaugment: bool = False
    """RandAugment(2, 9) before the crop."""

    @property
    def teacher_name(self) -> str:
        """Architecture of the teacher, or of several, joined by `+`."""
        first = [self.observer, *self.extra_observers] if self.teacher == "same" else [self.teacher]
        return "+".join([*first, *self.extra_teachers])

    @property
    def all_given(self) -> bool:
        """Whether the weights of every observer and teacher are given, so that none is trained."""
        first = self.observer_weights and (self.teacher == "same" or self.teacher_weights)
        return bool(first) and not self.extra_observers and not self.extra_teachers

    def of_role(self, role: str) -> Any:
        """Return how networks of a role are trained.

        Args:
            role: `observer`, `teacher`, `master`, or `baseline` on the long-tailed images; the
                last two imitate nobody.
        """
        changes = self._own_of(role) | dict.fromkeys(_OF_ROLES)
        if role in ("master", "baseline"):
            defaults = {spec.name: spec.default for spec in fields_of(_Experts)}
            changes |= {name: defaults[name] for name in _IMITATION}
        return with_form(self, changes.pop("loss", self.loss), **changes)

    def _own_of(self, role: str) -> dict[str, Any]:
        """Return what a role has of its own, by the names of the common fields."""
        observers = (self.observer_loss, self.observer_resampling_power, self.observer_debias_power)
        teachers = (self.teacher_loss, self.teacher_resampling_power, self.teacher_debias_power)
        of_roles: dict[str, dict[str, Any]] = {
            "observer": dict(zip(_OWN, observers, strict=True)),
            "teacher": dict(zip(_OWN, teachers, strict=True)),
            "master": {
                "epochs": self.distil_from_epochs,
                "progressive_resizing": self.distil_from_resizing,
                "randaugment": self.distil_from_randaugment,
            },
            "baseline": {},
        }
        return {name: value for name, value in of_roles[role].items() if value is not None}

    def _check_roles(self) -> None:
        apart = self.teacher != "same" or self.extra_teachers
        given = [(role, own) for role in ("observer", "teacher") for own in self._own_of(role)]
        for role, field in given:
            name, loss = f"{role}_{field}", self._own_of(role).get("loss", self.loss)
            if role == "teacher" and not apart:
                raise UserError(
                    f"expected experts.teacher to name the architecture of a teacher that "
                    f"experts.{name} makes another network than the observer, got 'same'"
                )
            if field not in {spec.name for spec in fields_of(form_of("experts", loss))}:
                raise UserError(
                    f"expected experts.{role}_loss rldd with experts.{name}, got {loss!r}"
                )
        imitates = self.distil_from is not None
        for name in _IMITATION[1:]:
            default = next(spec.default for spec in fields_of(_Experts) if spec.name == name)
            if not imitates and getattr(self, name) != default:
                raise UserError(
                    f"expected experts.distil_from to name the master's architecture with "
                    f"experts.{name}, got null"
                )

    def _check_course(self) -> None:
        if not self.teacher_course or list(self.teacher_course) != sorted(set(self.teacher_course)):
            raise UserError(
                f"expected experts.teacher_course with one share or several ascending ones, got "
                f"{list(self.teacher_course)}"
            )
        ways = [share for share in self.teacher_course if share < 1]
        if ways and (self.teacher_weights or (self.teacher == "same" and self.observer_weights)):
            raise UserError(
                f"expected experts.teacher_course [1] with a teacher whose weights are given, got "
                f"{list(self.teacher_course)}"
            )
        if ways and self.averaging != "none":
            raise UserError(
                f"expected experts.averaging none with experts.teacher_course "
                f"{list(self.teacher_course)}, got {self.averaging!r}"
            )

    def __post_init__(self) -> None:
        self._check_roles()
        if self.teacher == "same" and self.teacher_weights is not None:
            raise UserError(
                "expected experts.teacher to name the architecture of experts.teacher_weights, "
                "got 'same'"
            )
        self._check_course()
        if self.init_weights and self.all_given:
            raise UserError(
                "expected experts.init_weights where an expert is trained, got weights of each"
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


AnyExperts: TypeAlias = ExpertsConfig | PlainExperts | UniMixExperts
STAGES["experts"] = get_args(AnyExperts)
