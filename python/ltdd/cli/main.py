"""The ``ltdd`` command: finds the module of a command and turns failures into exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ltdd.cli import commands, completion
from ltdd.engine import interruption
from ltdd.engine.machine import cores
from ltdd.engine.machine.surroundings import prepare_streams, processes
from ltdd.errors import UserError

COMMANDS = (
    "distill",
    "evaluate",
    "check-teacher",
    "reproduce",
    "ablate",
    "report",
    "systems",
    "compare",
    "export",
    "card",
    "split",
    "verify",
    "store",
    "doctor",
)
"""Modules of `ltdd.cli.commands`, in the order of the overview."""
SHARED = ("distill", "evaluate", "reproduce", "ablate", "systems", "doctor")
"""Those that several processes may run together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit status: 0; 1 if a command's answer is no; 2 for bad input and for failures of disk
        or memory, 3 for a folder in use (one sentence on stderr); what a shell reports for a
        process that a signal ended (130 for SIGINT, 143 for SIGTERM).
    """
    prepare_streams()
    cores.prepare()
    words = [_with_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    if completion.requested():
        completion.complete(COMMANDS)
        return 0
    try:
        with interruption.handled():
            return _dispatch(words)
    except UserError as error:
        return error.exit_status if _told(error) else _fail(str(error), error.exit_status)
    except interruption.Interrupted as stop:
        if not _told(stop):
            print(f"ltdd: stopped by {stop}; resume with the same command", file=sys.stderr)
        return stop.exit_status
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        from ltdd.engine.chunks import is_out_of_memory  # imports torch, as has what raised this

        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        return _fail(f"out of memory: {reason}")


def _told(error: BaseException) -> bool:
    """Return whether another process of the run says it."""
    return bool(getattr(error, "told", False))


def _fail(reason: str, status: int = 2) -> int:
    print(f"ltdd: error: {' '.join(reason.splitlines())}", file=sys.stderr)
    return status


def _with_home(word: str) -> str:
    """Expand ``~`` where a shell leaves it: behind the equals sign of an option."""
    name, equals, value = word.partition("=")
    if name.startswith("--") and equals:
        return name + equals + os.path.expanduser(value)
    return os.path.expanduser(word)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from ltdd import __version__

        print(f"ltdd {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise UserError(f"unknown command {words[0]!r}; allowed: {', '.join(COMMANDS)}")
    rank, world = processes()
    if world > 1 and words[0] not in SHARED:
        error = UserError(
            f"ltdd {words[0]}: expected one process, got {world}; do without torchrun"
        )
        error.told = rank > 0  # type: ignore[attr-defined]
        raise error
    status: int | None = commands.module(words[0]).run(words[1:])
    return status or 0


def _overview() -> str:
    modules = {name: commands.module(name) for name in COMMANDS}
    lines = [
        "usage: ltdd COMMAND [options]",
        "",
        "Dataset distillation for long-tailed image data.",
        "",
        *(f"  {name:<15}{module.SUMMARY}" for name, module in modules.items()),
        "",
        "ltdd COMMAND --help lists the options of a command, ltdd --version the version.",
    ]
    return "\n".join(lines)
