"""``ltdd evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from ltdd.config import Labels
from ltdd.errors import UserError
from ltdd.options import Parser, add_on_bad_image

SUMMARY = "Train other students on the distilled set of a finished run."
_LABELS = get_args(Labels)


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd evaluate", description=SUMMARY)
    parser.add_argument("folder", type=str, help="Folder of a finished run.")
    parser.add_argument(
        "--arch", type=str | None, default=None, help="Architecture of the students; as the run's."
    )
    parser.add_argument(
        "--seeds", type=int | None, default=None, help="Number of students; as the run's."
    )
    parser.add_argument(
        "--labels",
        type=str | None,
        default=None,
        help=f"Labels they learn from: {', '.join(_LABELS)}; as the run's.",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="Show nothing but errors and the path of the report."
    )
    add_on_bad_image(parser)
    options = parser.parse_args(argv)
    if options.labels not in (None, *_LABELS):
        raise UserError(f"expected --labels {', '.join(_LABELS)}; got {options.labels!r}")
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"expected --seeds 1 or more, got {options.seeds}")
    from ltdd.distilled import read_manifest

    folder = Path(options.folder)
    recipe = read_manifest(folder)["student_recipe"]
    from ltdd.pipeline import evaluate
    from ltdd.report import write_report
    from ltdd.summary import accuracy_table

    results = evaluate(
        folder,
        options.arch or recipe["student"],
        options.seeds or recipe["seeds"],
        cast(Labels, options.labels or recipe["labels"]),
        options.quiet,
        options.on_bad_image,
    )
    report = write_report(folder)
    print(report if options.quiet else f"\n{accuracy_table(results)}\n\nreport: {report}")
