"""The exceptions a user is meant to read."""

from typing import ClassVar


class UserError(ValueError):
    """Bad input from the user: one sentence that says what was expected and what came.

    The command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status: ClassVar[int] = 2


class FolderInUse(UserError):
    """Another process works in the run folder; trying again later may help."""

    exit_status: ClassVar[int] = 3
