"""Check the arguments of functions that users call, and run them under torch's own defaults.

Importing this module does not import torch, so that ``ltdd export --help`` answers at once.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from ltdd.errors import UserError, shown

P = ParamSpec("P")
R = TypeVar("R")


def public(**hints: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that users call.

    Arguments are checked against their annotations, so that a wrong kind is one sentence and not
    something that happens to work: numbers are finite, a truth value is no number, a text is no
    sequence. NumPy's scalars become Python's, what names a path becomes a `Path`.
    The function runs under `torch_defaults`.

    Args:
        hints: argument -> what to do instead, for the message.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                call = inspect.signature(function).bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}: {error}") from None
            kinds = _annotations(function)
            for name, value in call.arguments.items():
                if name in kinds:
                    call.arguments[name] = _checked(
                        function.__name__, name, value, kinds[name], hints.get(name)
                    )
            with torch_defaults():
                return function(*call.args, **call.kwargs)

        return checked

    return decorate


def check_fields(instance: Any) -> None:
    """Check the fields of a frozen dataclass against their annotations, as `public` does."""
    cls = type(instance)
    for name, kind in get_type_hints(cls).items():
        value = _checked(cls.__name__, name, getattr(instance, name), kind, None)
        object.__setattr__(instance, name, value)


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Use the settings torch starts with, whatever the program around has set.

    They are the device and the dtype of new tensors, whether gradients are recorded, and autocast.
    """
    import torch

    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # the context costs time in every call
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@functools.cache
def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    kinds = get_type_hints(function)
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in several:
            kinds.pop(name, None)
    return kinds


def _checked(function: str, name: str, value: Any, kind: Any, hint: str | None) -> Any:
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if Path in members:  # the text is one, too
        members = tuple(member for member in members if member is not str)
    attempts = [_converted(value, member) for member in members]
    for attempt in attempts:
        if not isinstance(attempt, _Unfit):
            return attempt
    reasons = "".join(f" ({attempt.reason})" for attempt in attempts if attempt.reason)
    wanted = " or ".join(_in_words(member) for member in members)
    advice = f"; {hint}" if hint else ""
    raise UserError(f"{function}: expected {name} as {wanted}, got {shown(value)}{reasons}{advice}")


@dataclass(frozen=True)
class _Unfit:
    """The value is of another kind, or has this fault."""

    reason: str = ""


def _converted(value: Any, kind: Any) -> Any:
    """Return the value as one of this kind, or `_Unfit`."""
    if isinstance(value, bool) or str(getattr(value, "dtype", None)) == "bool":
        if kind is bool and getattr(value, "shape", ()) == ():
            return bool(value)
    elif kind is int and _is_number(value, numbers.Integral):
        return int(value)
    elif kind is float and _is_number(value, numbers.Real):
        number = value if isinstance(value, int | float) else float(value)
        return number if math.isfinite(number) else _Unfit()
    if kind is Path:
        return _path(value)
    if get_origin(kind) is Literal:
        if isinstance(value, str) and value in get_args(kind):
            return value
    elif _is_class_of(kind, value):
        return value
    return _Unfit()


def _is_number(value: Any, numbers_of_a_kind: Any) -> bool:
    return isinstance(value, numbers_of_a_kind)


def _is_class_of(kind: Any, value: Any) -> bool:
    if kind in (bool, int, float):
        return False
    kind = get_origin(kind) or kind
    if kind is collections.abc.Sequence:
        return isinstance(value, kind) and not isinstance(value, str | bytes)
    # What only says which methods it wants is left to the function, and so are tuples.
    unchecked = kind in (Any, tuple) or getattr(kind, "_is_protocol", False)
    return unchecked or isinstance(value, kind)


def _path(value: Any) -> Path | _Unfit:
    """Return a path that the system can be asked about; an empty one would be this folder."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        return _Unfit()
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass  # whether it has to be there, the function says
    except (OSError, ValueError) as error:
        return _Unfit(str(getattr(error, "strerror", None) or error))
    return Path(text)


def _in_words(kind: Any) -> str:
    kind = type(None) if kind is None else kind
    words = {
        bool: "True or False",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        Path: "a path",
        type(None): "None",
    }
    if kind in words:
        return words[kind]
    if get_origin(kind) is Literal:
        return ", ".join(repr(choice) for choice in get_args(kind))
    name = (get_origin(kind) or kind).__name__
    return {"Sequence": "a list", "Module": "an nn.Module"}.get(name, f"a {name}")
