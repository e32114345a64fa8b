"""Base of the settings of all stages, and the words they share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval

from ltdd.config.settings import Number, Settings, Whole, fields_of, wrong_value
from ltdd.errors import UserError

Backend = Literal["compiled", "reference"]
Augmentation = Literal["crops", "padded", "dsa", "idc"]
WatchedLayers = Literal["batch_norm", "batch_norm_and_conv"]
TeacherMode = Literal["eval", "batch"]
Labels = Literal["static", "fkd", "online", "hard", "learned"]
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
    "all_real_soft",
    "distilled_hard",
    "distilled_bare",
    "random_real_bare",
)
DSA_OPERATIONS = ("flip", "color", "crop", "scale", "rotate", "cutout")
"""Operations of DSA, in the order in which they are applied."""


_ORDER = ("experts", "statistics", "initialization", "recovery", "relabeling", "evaluation")
STAGES: dict[str, tuple[type[Stage], ...]] = dict.fromkeys(_ORDER, ())
"""Stage name -> its forms, the default one first, in the order in which the stages run. Each module
of settings enters its own."""


class Stage(Settings):
    """Base of the settings of all stages.

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


def check_names(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise a `UserError` about the first name that is unknown."""
    for name in names:
        if name not in known:
            raise UserError(f"expected {field} among {', '.join(known)}; got {name!r}")


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
    if settings.FORM and type(settings) is not STAGES[settings.STAGE][0]:
        values[settings.FORM] = settings.form()
    return values
