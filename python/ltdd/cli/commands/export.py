"""``ltdd export``."""

from __future__ import annotations

from collections.abc import Sequence

from ltdd.cli.parser import Parser
from ltdd.errors import UserError
from ltdd.results.exports import FORMATS, export

SUMMARY = "Write a distilled set in the format of another library, with a dataset card."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd export", description=SUMMARY)
    parser.add_argument("folder", type=str, help="Folder of a finished run or a published set.")
    parser.add_argument(
        "--format", type=str | None, default=None, help=f"One of {', '.join(FORMATS)}."
    )
    parser.add_argument("--to", type=str | None, default=None, help="New folder for the result.")
    parser.add_argument(
        "--license", type=str | None, default=None, help="For the card, such as cc-by-4.0."
    )
    options = parser.parse_args(argv)
    for name in ("format", "to"):
        if getattr(options, name) is None:
            raise UserError(f"ltdd export: expected --{name}, got none; see ltdd export --help")
    print(f"written: {export(options.folder, options.format, options.to, options.license)}")
