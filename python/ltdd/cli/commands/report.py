"""``ltdd report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltdd.cli.parser import Parser

SUMMARY = "Write report.html again from the files of a run."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd report", description=SUMMARY)
    parser.add_argument("folder", type=str, help="Folder of a finished run.")
    options = parser.parse_args(argv)
    from ltdd.results.pages.report import write_report

    print(f"report: {write_report(Path(options.folder))}")
