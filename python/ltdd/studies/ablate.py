"""Run a configuration with parts of the method exchanged, and put the accuracies side by side.

Every variant is a run of its own, in its own folder, which resumes, verifies and reports like any
other. All of them share one store of stage results, so nothing is computed twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltdd.engine.distributed.ranks import current
from ltdd.engine.distributed.session import session
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import resolve_device
from ltdd.engine.storage.files import write_json, write_text
from ltdd.errors import UserError
from ltdd.pipeline import distill
from ltdd.results.tables import markdown_table, percent, unmeasured
from ltdd.stages.metrics import THIRDS
from ltdd.studies.switches import Variant

COLUMNS = (
    "variant", "overall", "difference", "head", "medium", "tail", "teacher", "seconds", "reused",
)  # fmt: skip
_EXPLANATION = """\
Accuracies in % on the balanced test set, last epoch, mean ± standard deviation over students.
`difference`: to the base, ± its standard error. `seconds`: what a variant took beyond the stages it
shares with the rows above it; `reused`: the stages of which it computed nothing.
"""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a variant.

    Attributes:
        variant: the variant.
        results: content of its ``results.json``.
        seconds: what its results took that no earlier variant needed.
        reused: stages all results of which an earlier variant needed too.
    """

    variant: Variant
    results: Mapping[str, Any]
    seconds: float
    reused: tuple[str, ...]


def ablate(variants: Sequence[Variant], out: Path, options: RunOptions) -> list[Outcome]:
    """Run variants, the base first, and write ``ablation.md`` and ``ablation.json``.

    The files are written after every variant. The same command goes on where a stopped one was.

    Args:
        variants: of `plan`.
        out: gets one folder for every variant.
        options: of every run; without a store the variants share ``out/stages``.

    Raises:
        UserError: the folder holds a run or an ablation of another base, or as `distill`.
    """
    options = dataclasses.replace(options, store=options.store or out / "stages")
    with session(resolve_device(variants[0].config.device)) as ranks:
        return _ablate(variants, out, options.of_rank(ranks.rank))


def _ablate(variants: Sequence[Variant], out: Path, options: RunOptions) -> list[Outcome]:
    if (out / "run.json").exists():
        raise UserError(f"out: expected the folder of an ablation, got that of a run, {out}")
    outcomes: list[Outcome] = []
    known: set[str] = set()
    for number, variant in enumerate(variants, 1):
        if not options.quiet:
            print(f"\n[{number}/{len(variants)}] {variant.name}", flush=True)
        folder = out / variant.folder
        results = distill(variant.config, folder, options=options)
        files: Mapping[str, float] = results["files"]
        new = {name: seconds for name, seconds in files.items() if name not in known}
        stages = dict.fromkeys(_stage(name) for name in files)
        reused = tuple(stage for stage in stages if stage not in {_stage(name) for name in new})
        outcomes.append(Outcome(variant, results, sum(new.values()), reused))
        known |= set(files)
        current().first_only(lambda: _write(outcomes, out))
    return outcomes


def _write(outcomes: Sequence[Outcome], out: Path) -> None:
    write_text(out / "ablation.md", page(outcomes))
    write_json(out / "ablation.json", summary(outcomes))


def _stage(file: str) -> str:
    return file.rpartition("-")[0]


def page(outcomes: Sequence[Outcome]) -> str:
    """Return ``ablation.md``: what was run, and the table."""
    base = outcomes[0].results
    origin, student = base["provenance"], base["student"]
    where = f"{origin['machine']}, {origin['threads']} threads, torch {origin['torch']}"
    return "\n".join(
        [
            "# Ablation\n",
            f"{student['arch']} students on {sum(base['counts'])} training images of "
            f"{len(base['counts'])} classes, {base['ipc']} images a class.",
            _EXPLANATION,
            table(outcomes),
            *([f"\n{missing}."] if (missing := unmeasured(base)) else []),
            f"\n{where}, ltdd {origin['ltdd']}, commit {origin['commit'] or '-'}, "
            f"{origin['date'][:10]}:\n\n```sh\n{origin['command']}\n```\n",
        ]
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the accuracies of the variants as a Markdown table."""
    return markdown_table(COLUMNS, [list(_cells(outcome, outcomes[0])) for outcome in outcomes])


def _cells(outcome: Outcome, base: Outcome) -> Iterator[str]:
    student = outcome.results["student"]
    yield outcome.variant.name
    yield f"{percent(student['accuracy'])} ({student['accuracy']['n']})"
    if outcome is base:
        yield ""
    else:
        points, error = difference(student["accuracy"], base.results["student"]["accuracy"])
        yield f"{points:+.1f} ± {error:.1f}"
    yield from (percent(student[group]) for group in THIRDS)
    yield percent(outcome.results["teacher"]["accuracy"])
    yield f"{outcome.seconds:.0f}"
    yield ", ".join(outcome.reused)


def difference(score: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[float, float]:
    """Return the difference of two mean accuracies and its standard error, in points.

    Standard error: ``sqrt(sd^2 / n + base sd^2 / base n)``, students taken as independent.
    """
    variance = sum(s["std"] ** 2 / s["n"] for s in (score, base))
    return 100 * (score["mean"] - base["mean"]), 100 * math.sqrt(variance)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return ``ablation.json``."""
    return {
        "variants": [
            {
                "settings": dict(outcome.variant.settings),
                "folder": outcome.variant.folder,
                "student": outcome.results["student"],
                "teacher": outcome.results["teacher"],
                "calibration": outcome.results["calibration"],
                "seconds": outcome.seconds,
                "reused": list(outcome.reused),
            }
            for outcome in outcomes
        ],
        "base": outcomes[0].variant.config.to_dict(),
        "provenance": outcomes[0].results["provenance"],
    }
