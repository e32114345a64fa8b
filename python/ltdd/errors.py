"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Bad input from the user: one sentence that says what was expected and what came.

    The command line prints it without a traceback and exits with status 2.
    """
