"""``ltdd compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltdd.cli.parser import Parser
from ltdd.errors import UserError

SUMMARY = "Write one page about several finished runs, side by side."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(
        prog="ltdd compare", usage="ltdd compare DIR DIR... --to FILE.html", description=SUMMARY
    )
    parser.add_argument("folders", type=str, nargs="+", help="Folders of finished runs.")
    parser.add_argument("--to", type=str | None, default=None, help="The HTML file to write.")
    options = parser.parse_args(argv)
    if options.to is None:
        raise UserError("expected --to FILE.html, the page to write, got none")
    from ltdd.results.pages.comparison import write_comparison

    page = write_comparison([Path(folder) for folder in options.folders], Path(options.to))
    print(f"comparison: {page}")
