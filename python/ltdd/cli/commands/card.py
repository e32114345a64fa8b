"""``ltdd card``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltdd.cli.parser import Parser

SUMMARY = "Write the dataset card README.md of a run again, with a licence."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd card", description=SUMMARY)
    parser.add_argument("folder", type=str, help="Folder of a finished run or a published set.")
    parser.add_argument(
        "--license",
        type=str | None,
        default=None,
        help="Identifier such as cc-by-4.0; unknown without, as the source's licence applies.",
    )
    options = parser.parse_args(argv)
    from ltdd.results.card import write_card
    from ltdd.results.distilled_set import load

    folder = Path(options.folder)
    print(f"card: {write_card(load(folder), folder, options.license)}")
