"""``ltdd systems``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ltdd.cli.options import Request, parse_distill
from ltdd.cli.parser import OwnOptions
from ltdd.engine.machine.surroundings import processes
from ltdd.errors import UserError
from ltdd.recipes import RECIPES, Recipe, find_recipe
from ltdd.recipes.columns import COLUMNS

SUMMARY = "Run several methods on the same data and compare sets, accuracies and costs."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    own = OwnOptions(
        prog="ltdd systems",
        usage="ltdd systems --data SPEC --ipc N --recipes NAME,NAME --preset NAME --out DIR "
        "[options]",
        description=f"{SUMMARY} The same command again goes on where a stopped one was.",
    )
    own.add_argument(
        "--recipes",
        metavar="NAME,...",
        help=f"The methods, of {', '.join(RECIPES)}; all if left out.",
    )
    own.add_argument("--seeds", help="Number of students of every set and column.")
    own.add_argument("--out", help="Folder for the results; each method gets a folder there.")
    own.add_argument("--recipe", help=argparse.SUPPRESS)
    options, rest = own.parse_known_args(argv)
    if options.recipe is not None:
        raise UserError(f"expected --recipes NAME,NAME, got --recipe {options.recipe}")
    if options.out is None:
        raise UserError("expected --out DIR, a folder for the results, got none")
    names = list(dict.fromkeys((options.recipes or ",".join(RECIPES)).split(",")))
    words = [*rest, "--evaluation.baselines", "[]"]
    if options.seeds is not None:
        words += ["--evaluation.seeds", options.seeds]

    def request(recipe: Recipe) -> Request:
        given = ["--recipe", recipe.name, "--out", str(Path(options.out) / recipe.name), *words]
        return parse_distill(given, recipe)

    asked = [(recipe, request(recipe)) for recipe in map(find_recipe, names)]
    columns = {name: request(recipe).config for name, recipe in COLUMNS.items()}
    # One teacher for all columns, as the teacher's images and labels are.
    experts = columns["teacher"].experts
    columns = {n: dataclasses.replace(column, experts=experts) for n, column in columns.items()}
    from ltdd.results.systems_tables import accuracy_table
    from ltdd.studies.systems import System, compare_systems

    out, quiet = asked[0][1].out.parent, asked[0][1].options.quiet
    systems = [System(recipe, one.config, one.options) for recipe, one in asked]
    study = compare_systems(systems, columns, out)
    if processes()[0] > 0:
        return
    page = out / "systems.html"
    print(page if quiet else f"\n{accuracy_table(study).markdown}\n\nsystems: {page}")
