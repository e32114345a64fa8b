"""``ltdd distill``."""

from __future__ import annotations

from collections.abc import Sequence

from ltdd.cli.options import parse_distill
from ltdd.engine.machine.surroundings import processes
from ltdd.recipes import find_recipe

SUMMARY = "Distil a long-tailed image set, evaluate the result and write a report."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    request = parse_distill(argv)
    from ltdd.results.card import CARD, write_card
    from ltdd.results.distilled_set import load

    config, options = request.config, request.options
    choice = find_recipe(options.recipe or "").choice if options.preset == "paper" else None
    is_first = processes()[0] == 0
    if choice is not None and is_first and not options.quiet:
        # The settings may have set the image size themselves; it leads to the same ones again.
        print(f"preset paper: {choice(config.data, config.image_size)}", flush=True)
    from ltdd.pipeline import distill
    from ltdd.results.pages.report import write_report
    from ltdd.results.terminal import run_summary

    results = distill(config, request.out, options=options)
    if not is_first:
        return
    report = write_report(request.out)
    if not (request.out / CARD).exists():  # its owner may have edited it
        write_card(load(request.out), request.out)
    print(report if options.quiet else f"\n{run_summary(results, request.out)}")
