"""``ltdd distill``."""

from __future__ import annotations

from collections.abc import Sequence

from ltdd.cli.options import parse_distill

SUMMARY = "Distil a long-tailed image set, evaluate the result and write a report."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    request = parse_distill(argv)
    from ltdd.results.card import CARD, write_card
    from ltdd.results.distilled_set import load

    if request.options.preset == "paper" and not request.options.quiet:
        from ltdd.recipes.rldd import recipe_for

        # The recipe may have set the image size itself; it then is the one of its own choice.
        recipe, why = recipe_for(request.config.data, request.config.image_size)
        print(f"preset paper: the recipe of {recipe}, by {why}", flush=True)
    from ltdd.pipeline import distill
    from ltdd.results.pages.report import write_report
    from ltdd.results.terminal import run_summary

    results = distill(request.config, request.out, options=request.options)
    report = write_report(request.out)
    if not (request.out / CARD).exists():  # its owner may have edited it
        write_card(load(request.out), request.out)
    print(report if request.options.quiet else f"\n{run_summary(results, request.out)}")
