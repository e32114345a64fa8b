"""``ltdd evaluate``."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ltdd.cli.parser import Parser
from ltdd.cli.shared_options import (
    add_on_bad_image,
    add_store,
    add_watching,
    check_watching,
    chosen_store,
    event_sinks,
)
from ltdd.config import Labels
from ltdd.config.settings import Count
from ltdd.engine.machine.surroundings import processes

SUMMARY = "Train other students on the distilled set of a finished run."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd evaluate", description=SUMMARY)
    parser.add_argument("folder", type=str, help="Folder of a finished run.")
    parser.add_argument(
        "--arch",
        type=str | None,
        default=None,
        help="Architecture of the students, or several separated by commas; as the run's.",
    )
    parser.add_argument(
        "--seeds", type=Count | None, default=None, help="Number of students; as the run's."
    )
    parser.add_argument(
        "--labels",
        type=Labels | None,
        default=None,
        help="Labels they learn from; as the run's.",
    )
    parser.add_argument(
        "--lrs",
        action="store_true",
        help="Also the label-robust score of DD-Ranking: three times as many students, and one "
        "network on all images.",
    )
    parser.add_argument(
        "--ars",
        action="store_true",
        help="Also its augmentation-robust score: four times as many students.",
    )
    add_watching(parser)
    add_on_bad_image(parser)
    add_store(parser)
    options = parser.parse_args(argv)
    check_watching(options.quiet, options.verbose, options.tensorboard)
    from ltdd.config import DistillConfig
    from ltdd.engine.run_options import RunOptions
    from ltdd.results.distilled_set import load
    from ltdd.results.pages.report import write_report
    from ltdd.results.scores import ARS_BASELINES, LRS_BASELINES
    from ltdd.results.tables import architecture_tables
    from ltdd.results.terminal import accuracy_table
    from ltdd.studies.evaluate import evaluate

    distilled = load(options.folder)
    config = DistillConfig.from_dict(distilled.manifest.get("config"))
    architectures = list(dict.fromkeys((options.arch or config.evaluation.student).split(",")))
    wanted = (LRS_BASELINES if options.lrs else ()) + (ARS_BASELINES if options.ars else ())
    results = evaluate(
        distilled,
        architectures,
        options.seeds or config.evaluation.seeds,
        options.labels or config.relabeling.labels,
        list(dict.fromkeys(wanted)),
        RunOptions(
            quiet=options.quiet,
            on_bad_image=options.on_bad_image,
            store=chosen_store(options.store),
            sinks=functools.partial(event_sinks, options.verbose, options.tensorboard),
        ),
    )
    if processes()[0] > 0:
        return
    report = write_report(distilled.root)
    if options.quiet:
        print(report)
        return
    tables = [accuracy_table(results[architectures[0]])] if len(architectures) == 1 else []
    print("", *tables, architecture_tables(results), f"report: {report}", sep="\n\n")
