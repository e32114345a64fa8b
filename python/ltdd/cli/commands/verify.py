"""``ltdd verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltdd.cli.parser import Parser
from ltdd.errors import UserError

SUMMARY = "Check every file of a run: hashes, formats, finite values."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd verify", description=SUMMARY)
    parser.add_argument("folder", type=str, help="Folder of a run, finished or not.")
    options = parser.parse_args(argv)
    from ltdd.results.verify import verify

    findings = verify(Path(options.folder))
    for found in findings:
        print(f"{'BAD' if found.problem else 'ok ':<4}{found.name} {found.problem or found.note}")
    bad = [found for found in findings if found.problem]
    if bad:
        raise UserError(
            f"verify: {len(bad)} of {len(findings)} parts of {options.folder} are damaged, "
            f"first {bad[0].name}"
        )
