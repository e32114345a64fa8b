"""``ltdd reproduce``."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from ltdd.cli.options import Request, parse_distill
from ltdd.cli.parser import OwnOptions
from ltdd.engine.machine.surroundings import processes
from ltdd.errors import UserError
from ltdd.results.tables import markdown_table
from ltdd.studies.published_tables import ROWS, Row

SUMMARY = "Run a row of the published tables and say whether its figure comes out."


def run(argv: Sequence[str]) -> int:
    """Run the command; return 0 if the figure is reached and 1 if it is not."""
    own = OwnOptions(
        prog="ltdd reproduce",
        usage="ltdd reproduce ROW --out DIR [--preset NAME] [options], or ltdd reproduce --list",
        description=f"{SUMMARY} Exit status 0: inside, 1: outside the tolerance.",
    )
    own.add_argument("--list", action="store_true", help="Show the rows and their figures.")
    own.add_argument("--filter", default="", help="Show rows with this text in them.")
    own.add_argument("--data", help="Where the images are, as in ltdd distill; else downloaded.")
    own.add_argument("--preset", default="paper", help="Settings: paper (default), cpu, ...")
    own.add_argument("--out", help="Folder for the rows; each gets a folder there.")
    own.add_argument("--record", help="Markdown file whose table gets the finished row.")
    name = argv[0] if argv and not argv[0].startswith("-") else None
    options, rest = own.parse_known_args(argv if name is None else argv[1:])
    if options.list:
        print(listing(options.filter))
        return 0
    if name is None:
        raise UserError("expected a row, as ltdd reproduce --list names them, got none")
    row = find_row(name)
    if options.out is None:
        raise UserError("expected --out DIR, a folder for the results, got none")
    out = Path(options.out)
    request = request_of(row, options.preset, options.data, out / row.name, rest)
    from ltdd.results.pages.report import write_report
    from ltdd.results.terminal import accuracy_table
    from ltdd.studies.reproduce import page_text, record, reproduce

    if options.record:
        page_text(Path(options.record))  # a wrong file must not be found out after hours
    # Rows of one data set have the same experts.
    store = request.options.store or out / "stages"
    shared = dataclasses.replace(request.options, store=store)
    outcome = reproduce(row, request.config, request.out, shared)
    if processes()[0] > 0:
        return 0  # the first one's exit status says whether the figure is reached
    report = write_report(request.out)
    if not request.options.quiet:
        print(f"\n{accuracy_table(outcome.results)}\n\nreport: {report}")
    print(outcome)
    if options.record:
        words = ["ltdd", "reproduce", row.name, "--preset", options.preset]
        if row.data.source is None:
            words += ["--data", options.data.partition(":")[0] + ":PATH"]
        words += [word for word in rest if word != "--quiet"]
        record(Path(options.record), outcome, shlex.join(words))
    return 0 if outcome.inside else 1


def listing(text: str) -> str:
    """Return the table of the rows whose name or table holds a text.

    Raises:
        UserError: there is none.
    """
    others = ("DAMED", "EDC")
    cells = [
        [
            row.name,
            row.table,
            str(row.imbalance_factor),
            str(row.ipc),
            row.student,
            f"{row.published:.1f}",
            *(f"{row.others[name]:.1f}" if name in row.others else "-" for name in others),
        ]
        for row in ROWS.values()
        if text.lower() in f"{row.name} {row.table}".lower()
    ]
    if not cells:
        raise UserError(f"expected --filter to be part of the name of a row, got {text!r}")
    return markdown_table(["row", "table", "IF", "ipc", "student", "RLDD", *others], cells)


def find_row(name: str) -> Row:
    """Return a row by its name.

    Raises:
        UserError: there is none; the message names the closest.
    """
    if name in ROWS:
        return ROWS[name]
    close = difflib.get_close_matches(name, ROWS, n=1)
    hint = f", did you mean {close[0]}?" if close else ";"
    raise UserError(f"unknown row {name!r}{hint} ltdd reproduce --list shows all {len(ROWS)}")


def request_of(row: Row, preset: str, data: str | None, out: Path, words: Sequence[str]) -> Request:
    """Return the run that answers a row.

    Args:
        row: the row.
        preset: name of the preset, made for the row's data set wherever the images come from.
        data: where the images are; None downloads them.
        out: folder of the run.
        words: further options of ``ltdd distill``.

    Raises:
        UserError: the images cannot be downloaded, or an option changes what the row is.
    """
    source = data or row.data.source
    if source is None:
        raise UserError(
            f"expected --data for {row.name}, where the images of {row.data.title} are, such as "
            "imagefolder:PATH, got none"
        )
    fixed = {
        "imbalance_factor": row.imbalance_factor if row.data.cut else None,
        "image_size": row.data.image_size,
        "ipc": row.ipc,
        "evaluation.student": row.student,
    } | dict(row.settings)
    given = ["--preset", preset, "--data", row.data.source or row.data.prefix, "--out", str(out)]
    for field, value in fixed.items():
        given += [] if value is None else [f"--{field}", str(value)]
    request = parse_distill([*given, *words])
    values = request.config.to_dict()
    for field, value in fixed.items():
        stage, _, name = field.rpartition(".")
        found = (values[stage] if stage else values)[name]
        if found != value:
            raise UserError(f"expected {field} {value} in the row {row.name}, got {found}")
    config = dataclasses.replace(request.config, data=source)
    return dataclasses.replace(request, config=config)
