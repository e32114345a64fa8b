"""Run the benchmarks and write their report: ``python -m benchmarks [pytest options]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.report import write_report


def main() -> int:
    """Return the exit status of pytest."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "benchmarks.json"
        options = ["-o", "python_files=bench_*.py", "-o", "addopts=", "-p", "no:cacheprovider"]
        options += ["-o", f"pythonpath={root}", "--import-mode=importlib", "--benchmark-quiet"]
        arguments = sys.argv[1:] or ["-q"]
        status = pytest.main(
            [str(root / "benchmarks"), *options, f"--benchmark-json={result}", *arguments]
        )
        if result.exists() and result.stat().st_size:
            print(f"wrote {write_report(result)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
