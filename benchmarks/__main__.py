"""Run the benchmarks: ``python -m benchmarks [pytest options]``; report.py keeps the results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def main() -> int:
    """Return the exit status of pytest."""
    root = Path(__file__).resolve().parent.parent
    options = ["-o", "python_files=bench_*.py", "-o", "addopts=", "-p", "no:cacheprovider"]
    options += ["-o", f"pythonpath={root}", "--import-mode=importlib", "--benchmark-quiet"]
    return int(pytest.main([str(root / "benchmarks"), *options, *(sys.argv[1:] or ["-q"])]))


if __name__ == "__main__":
    sys.exit(main())
