"""Frozen dataclasses whose fields are checked, and in one sentence what is wrong with a value.

A field's type says what it may hold (``Annotated[int, Ge(1)]``) and the string below it what it
means; the command line is made of both. pydantic does the checking. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import numbers
import reprlib
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic.dataclasses
from annotated_types import Ge, Interval, Le
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import dataclass_transform

from ltdd.errors import UserError

Class = TypeVar("Class", bound=type["Settings"])

_CHECKS = ConfigDict(
    strict=True,
    extra="forbid",
    allow_inf_nan=False,
    use_attribute_docstrings=True,
    defer_build=True,
)
_SHORT = reprlib.Repr()  # of wrong values, which may be long or contain themselves
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_PLACEHOLDERS = {int: "N", float: "X", bool: "true|false", str: "TEXT"}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _python_number(value: Any) -> Any:
    """Take the numbers of NumPy, which come out of loops over arrays, for Python's."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _tuple(value: Any) -> Any:
    """Take lists, as JSON has them, for tuples."""
    return tuple(value) if isinstance(value, list) else value


Whole = Annotated[int, BeforeValidator(_python_number)]
"""A whole number, no bool."""
Number = Annotated[float, BeforeValidator(_python_number)]
"""A finite number."""
Count = Annotated[Whole, Ge(1)]
"""1, 2, 3..."""
Weight = Annotated[Number, Ge(0)]
"""0 or more."""
Temperature = Annotated[Number, Interval(ge=0.01, le=1000)]
"""Divides logits."""
AreaShare = Annotated[Number, Interval(ge=1e-3, le=1)]
"""Part of an image's area."""
Shares = Annotated[tuple[Annotated[Number, Interval(gt=0, le=1)], ...], BeforeValidator(_tuple)]
"""Parts of a whole, each above 0 and at most 1."""
Names = Annotated[tuple[str, ...], BeforeValidator(_tuple)]
"""Names in order; none is `()`."""


@dataclasses.dataclass(frozen=True)
class Hint:
    """Beside a type: what a sentence about a number out of range says after a semicolon."""

    text: str


class _OneSentence(type):
    """Classes that raise a `UserError` where pydantic lists what is wrong."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as errors:
            error = errors.errors(include_url=False)[0]
            raise UserError(f"config: {_sentence(cls, error, values)}") from None


class Settings(metaclass=_OneSentence):
    """Base of all classes of `settings`.

    Attributes:
        STAGE: goes before the names of fields in messages.
        DOCS: field -> the string below it.
    """

    STAGE: ClassVar[str] = ""
    DOCS: ClassVar[dict[str, str]] = {}

    @classmethod
    def explain(cls, field: str, value: Any) -> str | None:
        """Say what is wrong with a field or its value, better than a check of types can."""
        return None


class Field(NamedTuple):
    """A field of settings.

    Attributes:
        name: as in Python.
        hint: its type.
        default: its default.
        doc: what it means, on one line.
    """

    name: str
    hint: Any
    default: Any
    doc: str


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
def settings(cls: Class) -> Class:
    """Make a subclass of `Settings` a frozen dataclass whose fields are checked."""
    decorate: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_CHECKS)
    decorated = decorate(cls)
    # Taken now: pydantic forgets them when it builds the checks at the first use.
    infos = decorated.__pydantic_fields__.items()
    decorated.DOCS = {name: info.description for name, info in infos if info.description}
    return decorated  # type: ignore[no-any-return]


def _sentence(cls: Any, error: Any, values: dict[str, Any]) -> str:
    if error["type"] == "value_error":  # of a check in __post_init__
        return str(error["ctx"]["error"])
    if error["type"] == "unexpected_positional_argument":
        return f"expected fields of {cls.__name__} by name, got {shown(error['input'])}"
    field, prefix = str(error["loc"][0]), f"{cls.STAGE}." if cls.STAGE else ""
    value = values.get(field, error["input"])
    explained: str | None = cls.explain(field, value)
    if explained is not None:
        return explained
    known = {spec.name: spec.hint for spec in fields_of(cls)}
    if field not in known:
        return unknown_field(prefix + field, [prefix + name for name in known])
    return wrong_value(prefix + field, known[field], value, error["type"])


def unknown_field(name: str, known: Iterable[str]) -> str:
    """Say that a field is unknown, and which one comes close, or which there are if none does."""
    by_end = {one.rpartition(".")[2]: one for one in known}
    close = difflib.get_close_matches(name.rpartition(".")[2], by_end, n=1)
    hint = f"did you mean {by_end[close[0]]}?" if close else f"known: {', '.join(by_end.values())}"
    return f"unknown field {name}; {hint}"


def close_match(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean NAME?`` if a known name comes close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


@functools.cache
def fields_of(cls: Any) -> tuple[Field, ...]:
    """Return the fields of settings, inherited ones first."""
    hints = get_type_hints(cls, include_extras=True)
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docs |= vars(base).get("DOCS", {})
    return tuple(
        Field(f.name, hints[f.name], f.default, " ".join(docs.get(f.name, "").split()))
        for f in dataclasses.fields(cls)
    )


def check_value(name: str, hint: Any, value: Any) -> Any:
    """Return a value as a type has it, lists as tuples.

    Args:
        name: what to call the value in the message.
        hint: the type, of a field or of any option.
        value: to check.

    Raises:
        UserError: it is of another type or out of range.
    """
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as errors:
        kind = errors.errors(include_url=False)[0]["type"]
        raise UserError(wrong_value(name, hint, value, kind)) from None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def wrong_value(name: str, hint: Any, value: Any, error: str) -> str:
    """Say in one sentence what was expected and what came.

    Args:
        name: what to call the value.
        hint: its type.
        value: the wrong one.
        error: pydantic's name of what is wrong.
    """
    got = shown(value)
    if error in ("greater_than_equal", "less_than_equal"):
        hints = [f"; {m.text}" for m in _parts(hint).metadata if isinstance(m, Hint)]
        return f"expected {name} {bounds(hint)}, got {got}{''.join(hints)}"
    if error == "finite_number":
        return f"expected {name} to be a finite number, got {got}"
    close = close_match(value, choices(hint)) if isinstance(value, str) else ""
    return f"expected {name} to be {kind_of(hint)}, got {got}{close}"


def shown(value: Any) -> str:
    """Return a value as a sentence shows it, shortened where it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def kind_of(hint: Any) -> str:
    """Describe a type in words."""
    base, _, optional = _parts(hint)
    if names := choices(hint):
        return f"one of {', '.join(names)}" + optional * " or null"
    classes = [c for c in get_args(base) or (base,) if isinstance(c, _OneSentence)]
    if classes:
        return " or ".join(c.__name__ for c in classes)
    return _KINDS.get(base, "a list such as [random_real]") + optional * " or null"


def bounds(hint: Any) -> str:
    """Return the range of a number in words; empty if it has none."""
    low = [m.ge for m in _limits(hint) if isinstance(m, Ge)]
    high = [m.le for m in _limits(hint) if isinstance(m, Le)]
    if low and high:
        return f"between {low[0]} and {high[0]}"
    return f">= {low[0]}" if low else f"<= {high[0]}" if high else ""


def choices(hint: Any) -> list[str]:
    """Return the names that a field may hold; empty if it is no choice."""
    base = _parts(hint).base
    return [str(name) for name in get_args(base)] if get_origin(base) is Literal else []


def placeholder(hint: Any) -> str:
    """Return what stands for a value in a help text, such as ``N`` for a whole number."""
    named = "|".join(choices(hint))
    return named or _PLACEHOLDERS.get(_parts(hint).base, "[NAME,...]")


def is_text(hint: Any) -> bool:
    """Return whether values are text: taken as they are typed."""
    return _parts(hint).base is str or bool(choices(hint))


def is_optional(hint: Any) -> bool:
    """Return whether a value may be None."""
    return _parts(hint).optional


class _Parts(NamedTuple):
    base: Any
    metadata: tuple[Any, ...]
    optional: bool


def _parts(hint: Any) -> _Parts:
    """Take ``Annotated`` and ``| None`` off a type."""
    optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Annotated:
        base, *metadata = get_args(hint)
        return _Parts(base, tuple(metadata), optional)
    return _Parts(hint, (), optional)


def _limits(hint: Any) -> Iterator[Any]:
    for limit in _parts(hint).metadata:
        if isinstance(limit, Interval):
            yield from limit
        else:
            yield limit
