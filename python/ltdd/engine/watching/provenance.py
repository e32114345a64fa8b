"""Record where a result came from: command, commit, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ltdd import __version__
from ltdd.engine.run_options import RunOptions


def collect(options: RunOptions) -> dict[str, Any]:
    """Return the record that goes into ``results.json``.

    ``commit`` is that of the checkout the package runs from, with ``+`` behind it if files differ
    from the commit; None for an installed package.
    """
    program = Path(sys.argv[0]).name
    return {
        "command": shlex.join(["ltdd" if program == "__main__.py" else program, *sys.argv[1:]]),
        "recipe": options.recipe,
        "preset": options.preset,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ltdd": __version__,
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """Return the git commit of the source checkout, or None."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(folder), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        dirty = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> str:
    """Return the processor, the number of cores and the GPU if there is one."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # not Linux: the generic name has to do
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"
