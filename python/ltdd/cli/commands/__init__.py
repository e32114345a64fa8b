"""One module a command of ``ltdd``: ``SUMMARY`` in one line, and ``run``.

``run`` takes the arguments and may return an exit status. A module imports what it needs when it
runs, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def module(name: str) -> ModuleType:
    """Return the module of a command, as ``check-teacher``."""
    return importlib.import_module(f"ltdd.cli.commands.{name.replace('-', '_')}")
