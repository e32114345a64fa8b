"""``ltdd ablate``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ltdd.cli.options import parse_distill
from ltdd.cli.parser import OwnOptions
from ltdd.engine.machine.surroundings import processes
from ltdd.errors import UserError
from ltdd.studies.switches import SWITCHES, all_values, chosen_values, plan

SUMMARY = "Exchange parts of the method one at a time and compare the accuracies."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    own = OwnOptions(
        prog="ltdd ablate",
        usage="ltdd ablate --data SPEC --out DIR [--switch NAME ...] [options]",
        description=f"{SUMMARY} The same command again goes on where a stopped one was.",
    )
    own.add_argument("--list", action="store_true", help="Show the switches and their values.")
    own.add_argument(
        "--switch",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="Switches, or NAME=VALUE,VALUE for some values of one; all if left out.",
    )
    own.add_argument(
        "--grid", action="store_true", help="Every combination of the switches that are named."
    )
    options, rest = own.parse_known_args(argv)
    if options.list:
        for name, switch in SWITCHES.items():
            print(f"{name:<15}{', '.join(switch.values):<36}{switch.summary}")
        return
    if options.grid and not options.switch:
        raise UserError("expected --switch with the switches to combine beside --grid, got none")
    request = parse_distill(rest)
    evaluation = dataclasses.replace(request.config.evaluation, baselines=())
    base = dataclasses.replace(request.config, evaluation=evaluation)
    chosen = chosen_values(options.switch) if options.switch else all_values(base)
    variants = plan(base, chosen, options.grid)
    from ltdd.studies.ablate import ablate, table

    outcomes = ablate(variants, request.out, request.options)
    if processes()[0] > 0:
        return
    page = request.out / "ablation.md"
    print(page if request.options.quiet else f"\n{table(outcomes)}\n\nablation: {page}")
