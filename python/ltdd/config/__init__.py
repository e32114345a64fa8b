"""The configuration of a run: frozen dataclasses, one per form of a stage, checked when made.

A stage may have several forms, each with the fields that mean something in it; one field names the
form (``experts.loss``). Every default here is "our default" of the method; ``recipes/`` overrides
them and says where each value comes from. Nothing in this module imports torch, so that
``ltdd --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Interval

from ltdd.config.experts import AnyExperts, ExpertsConfig, PlainExperts, UniMixExperts
from ltdd.config.initialization import (
    AnyInitialization,
    ClusteredCrops,
    CorrectReal,
    GraphCut,
    InitializationConfig,
    KCenter,
    Noise,
    RandomReal,
    Tiled,
)
from ltdd.config.recovery import (
    AnyRecovery,
    DistributionMatching,
    GradientMatching,
    NoRecovery,
    RecoveryConfig,
    TrajectoryRecovery,
)
from ltdd.config.settings import (
    Count,
    Settings,
    Whole,
    fields_of,
    settings,
    shown,
    unknown_field,
)
from ltdd.config.stage import (
    BASELINES,
    DSA_OPERATIONS,
    STAGES,
    Backend,
    Device,
    Fit,
    ImageSize,
    ImbalanceFactor,
    IncompleteClasses,
    Labels,
    OnBadImage,
    Precision,
    Stage,
    TeacherMode,
    WatchedLayers,
    deciding_settings,
    form_of,
    other_form,
    with_form,
)
from ltdd.config.statistics import StatisticsConfig
from ltdd.config.students import EvaluationConfig, RelabelingConfig
from ltdd.errors import UserError

__all__ = [
    "BASELINES",
    "DSA_OPERATIONS",
    "STAGES",
    "AnyExperts",
    "AnyInitialization",
    "AnyRecovery",
    "Backend",
    "ClusteredCrops",
    "CorrectReal",
    "Device",
    "DistillConfig",
    "DistributionMatching",
    "EvaluationConfig",
    "ExpertsConfig",
    "Fit",
    "GradientMatching",
    "GraphCut",
    "ImageSize",
    "ImbalanceFactor",
    "IncompleteClasses",
    "InitializationConfig",
    "KCenter",
    "Labels",
    "NoRecovery",
    "Noise",
    "OnBadImage",
    "PlainExperts",
    "Precision",
    "RandomReal",
    "RecoveryConfig",
    "RelabelingConfig",
    "Stage",
    "StatisticsConfig",
    "TeacherMode",
    "Tiled",
    "TrajectoryRecovery",
    "UniMixExperts",
    "WatchedLayers",
    "deciding_settings",
    "form_of",
    "other_form",
    "override",
    "with_form",
]


UNLABELLED = {"random_real_soft", "random_real_bare", "all_real_soft"}
"""Baselines of real images with soft labels."""


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

    def __post_init__(self) -> None:
        if isinstance(self.recovery, TrajectoryRecovery):
            learns = {"rate", "labels"} if self.recovery.learned_labels else {"rate"}
        else:
            learns = set()
        _check_learned(self, learns)
        _check_course(self)
        _check_formation(self)

    def of_classes(self, num_classes: int) -> DistillConfig:
        """Return the configuration with the epochs that students of so many classes train for."""
        shown = num_classes * self.ipc * self.evaluation.decode**2
        return dataclasses.replace(self, evaluation=self.evaluation.of_images(shown))

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


def _check_course(config: DistillConfig) -> None:
    """Refuse labels that do not know the student's epoch, with teachers that take turns.

    Raises:
        UserError: they do not.
    """
    course, labels = config.experts.teacher_course, config.relabeling.labels
    if course != (1.0,) and labels != "fkd":
        raise UserError(
            f"expected relabeling.labels fkd with experts.teacher_course {list(course)}, got "
            f"{labels!r}"
        )


def _check_learned(config: DistillConfig, learns: set[str]) -> None:
    """Refuse settings that want what recovery does not learn, or have no use for it.

    Raises:
        UserError: names the setting.
    """
    learned = config.relabeling.labels == "learned"
    if learned and "labels" not in learns:
        raise UserError(
            "expected recovery.method trajectory with recovery.learned_labels for "
            f"relabeling.labels learned, got recovery.method {config.recovery.method} without"
        )
    if learned and config.relabeling.calibration != "none":
        raise UserError(
            "expected relabeling.calibration none with relabeling.labels learned, which no teacher "
            f"gives, got {config.relabeling.calibration}"
        )
    if learned and config.relabeling.prior:
        raise UserError(
            "expected relabeling.prior 0 with relabeling.labels learned, which no teacher gives, "
            f"got {config.relabeling.prior:g}"
        )
    if learned and (unlabelled := UNLABELLED.intersection(config.evaluation.baselines)):
        raise UserError(
            "expected no baseline of real images with soft labels with relabeling.labels learned, "
            f"which those have not, got {min(unlabelled)}"
        )
    if config.evaluation.learning_rate is None and "rate" not in learns:
        raise UserError(
            "expected recovery.method trajectory, which learns evaluation.learning_rate, or a "
            f"number for it, got null with recovery.method {config.recovery.method}"
        )


def _check_formation(config: DistillConfig) -> None:
    """Refuse students that read images otherwise than they were matched.

    Raises:
        UserError: they do.
    """
    match config.recovery:
        case GradientMatching(formation=factor) | DistributionMatching(formation=factor):
            if factor != config.evaluation.decode:
                raise UserError(
                    f"expected evaluation.decode {factor} as recovery.formation, into which images "
                    f"are cut as they are matched, got {config.evaluation.decode}"
                )


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
