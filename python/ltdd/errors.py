"""The exceptions a user is meant to read."""

from pathlib import PurePath
from typing import ClassVar


class UserError(ValueError):
    """Bad input from the user: one sentence that says what was expected and what came.

    The command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status: ClassVar[int] = 2


class FolderInUse(UserError):
    """Another process works in the run folder; trying again later may help."""

    exit_status: ClassVar[int] = 3


_LONGEST = 80  # characters of a value


def shown(value: object) -> str:
    """Describe any value in part of a line, for a message that says what came."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape:  # its values may be many
        name = str(dtype).removeprefix("torch.")
        return f"a {name} {type(value).__name__} of shape {tuple(shape)}"
    if isinstance(value, PurePath):
        value = str(value)
    if value is None or dtype is not None or isinstance(value, str | bytes | int | float):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"a {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """Return kind and first line of an exception that came from anybody's code."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
