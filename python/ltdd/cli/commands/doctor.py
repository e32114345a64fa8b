"""``ltdd doctor``."""

from __future__ import annotations

from collections.abc import Sequence

from ltdd.cli.parser import Parser

SUMMARY = "Show versions, and which backend every compiled operator has."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd doctor", description=SUMMARY)
    parser.parse_args(argv)
    from ltdd.cli.installation import describe_installation

    print(describe_installation())
