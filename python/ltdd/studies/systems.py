"""Run several methods on the same data, and put what their sets are worth side by side.

Every method is a run of its own, in its own folder, which resumes, verifies and reports like any
other; all share one store of stage results. Then students learn from each one's images in the
columns of `ltdd.recipes.columns`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltdd.config import DistillConfig, RecoveryConfig
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.distributed.ranks import current
from ltdd.engine.distributed.session import session
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import resolve_device
from ltdd.engine.storage.files import write_json, write_text
from ltdd.errors import UserError
from ltdd.pipeline import distill_loaded, load_source
from ltdd.recipes import Recipe
from ltdd.results.distilled_set import DistilledSet, load
from ltdd.results.pages.systems import write_systems_page
from ltdd.results.systems_tables import systems_markdown
from ltdd.studies.evaluate import evaluate_as
from ltdd.studies.published_systems import published_accuracy

RESULT = "systems.json"
_NOT_OF_THE_SET = ("evaluation", "drift", "nearest")
"""Stages that measure a set which is finished."""
_LABELS_WITHOUT_TEACHER = ("hard", "learned")
_OF_THE_DATA = ("data", "imbalance_factor", "image_size", "fit", "incomplete_classes")
"""What `load_source` goes by."""


@dataclass(frozen=True)
class System:
    """A method to run.

    Attributes:
        recipe: the method.
        config: that answers it.
        options: of its run.
    """

    recipe: Recipe
    config: DistillConfig
    options: RunOptions


def compare_systems(
    systems: Sequence[System], columns: Mapping[str, DistillConfig], out: Path
) -> dict[str, Any]:
    """Run methods and write ``systems.json``, ``systems.md`` and ``systems.html``.

    The files are written after every method. The same call goes on where a stopped one was.

    Args:
        systems: methods on the same data, with the same number of images.
        columns: name -> configuration whose experts, labels and students the images get.
        out: gets one folder for every method; without a store they share ``out/stages``.

    Returns:
        The content of ``systems.json``.

    Raises:
        UserError: the folder holds a run, the data are not the same, or as `distill`.
    """
    with session(resolve_device(systems[0].config.device)):
        return _compare(systems, columns, out)


def _compare(
    systems: Sequence[System], columns: Mapping[str, DistillConfig], out: Path
) -> dict[str, Any]:
    if (out / "run.json").exists():
        raise UserError(f"out: expected a folder for several runs, got that of a run, {out}")
    ranks, data = current(), _load(systems)
    entries: list[dict[str, Any]] = []
    study: dict[str, Any] = {}
    for number, system in enumerate(systems, 1):
        store = system.options.store or out / "stages"
        options = dataclasses.replace(system.options, store=store).of_rank(ranks.rank)
        if not options.quiet:
            print(f"\n[{number}/{len(systems)}] {system.recipe.name}", flush=True)
        folder = out / system.recipe.name
        results = distill_loaded(system.config, data, folder, options)
        taught = {
            name: _evaluate(system, load(folder), name, column, data, options)
            for name, column in columns.items()
        }
        published = published_accuracy(system.recipe.name, data, system.config.ipc)
        entries.append(_entry(system, results, taught) | {"published": published})
        study = {
            "systems": entries,
            "columns": ["own", *columns],
            "teacher": taught["teacher"]["teacher"],
            **{name: results[name] for name in ("ipc", "counts", "class_names", "groups")},
            "provenance": results["provenance"],
        }
        ranks.first_only(functools.partial(_write, study, out))
    return study


def _write(study: Mapping[str, Any], out: Path) -> None:
    write_json(out / RESULT, study)
    write_text(out / "systems.md", systems_markdown(study))
    write_systems_page(study, out)


def _load(systems: Sequence[System]) -> LongTailedData:
    """Load the data of all methods, once."""
    first, *others = (system.config for system in systems)
    for name in _OF_THE_DATA:
        for other in others:
            if getattr(other, name) != getattr(first, name):
                raise UserError(
                    f"systems: expected the same data for all methods, got {name} "
                    f"{getattr(first, name)!r} and {getattr(other, name)!r}"
                )
    return load_source(first, systems[0].options)


def _evaluate(
    system: System,
    distilled: DistilledSet,
    name: str,
    column: DistillConfig,
    data: LongTailedData,
    options: RunOptions,
) -> dict[str, Any]:
    """Train the students of a column on the set of a finished run."""
    if not options.quiet:
        print(f"{system.recipe.name}, column {name}", flush=True)
    decode = system.config.evaluation.decode  # how the set's images are to be read, in any column
    wanted = dataclasses.replace(
        system.config,
        experts=column.experts,
        relabeling=column.relabeling,
        evaluation=dataclasses.replace(column.evaluation, decode=decode),
    )
    return evaluate_as(distilled, wanted, f"column-{name}", data, options)


def _entry(
    system: System, results: Mapping[str, Any], taught: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what ``systems.json`` holds of a method."""
    unneeded = unneeded_stages(system.config)
    stages = {
        name: {**cost, "needed": name not in unneeded} for name, cost in results["stages"].items()
    }
    needed = [cost for cost in stages.values() if cost["needed"]]
    labels = 0 if system.config.relabeling.labels == "hard" else results["bytes"]["labels"]
    return {
        "recipe": system.recipe.name,
        "title": system.recipe.title,
        "paper": system.recipe.paper,
        "folder": system.recipe.name,
        "columns": {
            "own": results["student"],
            **{name: row["student"] for name, row in taught.items()},
        },
        "stages": stages,
        "seconds": sum(cost["seconds"] for cost in needed),
        "peak_bytes": max(cost["peak_bytes"] for cost in needed),
        "bytes": {"images": results["bytes"]["images"], "labels": labels},
    }


def unneeded_stages(config: DistillConfig) -> set[str]:
    """Return the stages of the pipeline that the images and labels of a set do not come from."""
    aligned = isinstance(config.recovery, RecoveryConfig)
    soft = config.relabeling.labels not in _LABELS_WITHOUT_TEACHER
    unneeded = set(_NOT_OF_THE_SET)
    if not soft:
        unneeded.add("relabeling")
    if not aligned:
        unneeded.add("statistics")
    if not (soft or aligned or config.initialization.ASKS_TEACHER):
        unneeded.add("experts")
    return unneeded
