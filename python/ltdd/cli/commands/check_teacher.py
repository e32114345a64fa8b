"""``ltdd check-teacher``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from ltdd.cli.parser import Parser
from ltdd.cli.shared_options import add_cut
from ltdd.config.settings import Number
from ltdd.errors import UserError

SUMMARY = "Show how good a teacher is on the held-out images: a run's, or weights from a file."


def run(argv: Sequence[str]) -> int:
    """Run the command; the status is 1 if a given floor is missed."""
    parser = Parser(prog="ltdd check-teacher", description=SUMMARY)
    parser.add_argument("teacher", type=str, help="Folder of a run, or a file with weights.")
    parser.add_argument(
        "--arch",
        type=str | None,
        default=None,
        help="Architecture of the weights, as in --experts.teacher; a run knows its own.",
    )
    parser.add_argument(
        "--class-map",
        type=str | None,
        default=None,
        help="JSON file with the class names in the order of the weights' outputs.",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="As in ltdd distill; a run's own data if left out.",
    )
    parser.add_argument(
        "--floor",
        type=Annotated[Number, Interval(ge=0, le=1)] | None,
        default=None,
        help="Accuracy as a fraction below which the exit status is 1; without it a teacher less "
        "than a tenth of the way from chance to perfect is warned about.",
    )
    add_cut(parser)
    options = parser.parse_args(argv)
    from ltdd.studies.check_teacher import check_run, check_weights

    place = Path(options.teacher)
    if place.is_dir():
        for name in ("arch", "class_map"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"expected --{name.replace('_', '-')} with a file of weights only, got the run "
                    f"{place}"
                )
        found = check_run(
            place,
            options.data,
            options.imbalance_factor,
            options.image_size,
            options.on_bad_image,
        )
    else:
        if options.arch is None or options.data is None:
            raise UserError(f"expected --arch and --data to go with the weights {place}")
        found = check_weights(
            place,
            options.arch,
            None if options.class_map is None else Path(options.class_map),
            options.data,
            options.imbalance_factor,
            options.image_size,
            options.on_bad_image,
        )
    print(found.table())
    floor = found.usual_floor if options.floor is None else options.floor
    if found.accuracy >= floor:
        return 0
    print(
        f"warning: the teacher is right on {100 * found.accuracy:.1f} % of the held-out images, "
        f"expected {100 * floor:.1f} % or more (chance is {100 * found.chance:.1f} %); are its "
        "classes in another order, or its images normalised in another way?",
        file=sys.stderr,
    )
    return 0 if options.floor is None else 1
