"""Completion of commands and options in a shell, through argcomplete (extra ``completion``).

``eval "$(register-python-argcomplete ltdd)"`` in a shell's start-up file switches it on. The shell
then calls ``ltdd`` with the unfinished line in its environment instead of arguments.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ltdd.cli.commands import module


def requested() -> bool:
    """Return whether a shell asks for completions."""
    return "_ARGCOMPLETE" in os.environ


def complete(commands: Sequence[str]) -> None:
    """Print what may follow on the unfinished line and leave the process.

    Args:
        commands: names of the modules of `ltdd.cli.commands`.
    """
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))]
    words = line.split()
    finished = words if line.endswith(" ") else words[:-1]
    if len(finished) > 1 and finished[1] in commands:
        # The words before the command's own options; its parser completes the rest and exits.
        os.environ["_ARGCOMPLETE"] = "2"
        module(finished[1]).run([])
        return
    import argcomplete

    parser = argparse.ArgumentParser(prog="ltdd")
    parser.add_argument("command", choices=commands)
    argcomplete.autocomplete(parser)
