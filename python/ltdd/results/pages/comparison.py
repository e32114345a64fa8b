"""One self-contained HTML page about several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltdd.engine.storage.files import write_text
from ltdd.errors import UserError
from ltdd.results.distilled_set import DistilledSet
from ltdd.results.pages.accuracy_charts import WHO, Scores, class_chart, group_chart, rows_of
from ltdd.results.pages.charts import STYLES
from ltdd.results.pages.galleries import ImagesOfClass, gallery
from ltdd.results.pages.rendering import render
from ltdd.results.pages.report import class_order, load_finished
from ltdd.results.pages.run_charts import drift_summary
from ltdd.results.tables import unmeasured
from ltdd.results.terminal import total_cost


@dataclass(frozen=True)
class Run:
    """One of the runs.

    Attributes:
        name: what the page calls it.
        style: of its lines and bars.
        folder: where it lies.
        distilled: its distilled set.
        results: the content of its ``results.json``.
    """

    name: str
    style: int
    folder: Path
    distilled: DistilledSet
    results: Mapping[str, Any]

    @property
    def total(self) -> dict[str, float]:
        """Seconds and peak bytes of the whole run."""
        return total_cost(self.results["stages"])

    def scores(self, who: str) -> Scores | None:
        """Return the accuracies of one kind of network, if the run has it."""
        row = rows_of(self.results).get(who)
        return None if row is None else Scores(self.name, self.style, row)

    def images(self) -> ImagesOfClass:
        """Return the distilled images of a class."""
        return lambda label: self.distilled.images[self.distilled.labels == label]


def write_comparison(folders: Sequence[Path], page: Path) -> Path:
    """Write a page that shows finished runs side by side.

    Args:
        folders: two to eight run folders.
        page: the HTML file.

    Returns:
        The path of the page: one file below 5 MB that asks for nothing else.

    Raises:
        UserError: too few or too many runs, one that is not finished, or runs over other classes.
    """
    if not 2 <= len(folders) <= STYLES:
        raise UserError(f"compare: expected 2 to {STYLES} runs, got {len(folders)}")
    repeated = {folder for folder in folders if folders.count(folder) > 1}
    if repeated:
        raise UserError(f"compare: expected different runs, got {sorted(repeated)[0]} twice")
    runs = _read(folders)
    _check_same_classes(runs)
    write_text(page, render("compare.html.j2", _content(runs)))
    return page


def _read(folders: Sequence[Path]) -> list[Run]:
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    sets = [load_finished(folder) for folder in folders]
    return [
        Run(name, style, folder, distilled, distilled.results or {})
        for style, (name, folder, distilled) in enumerate(zip(names, folders, sets, strict=True))
    ]


def _check_same_classes(runs: Sequence[Run]) -> None:
    first, *others = runs
    wanted = first.distilled.class_names
    for other in others:
        found = other.distilled.class_names
        if found != wanted:
            raise UserError(
                f"compare: expected runs over the same classes in the same order, got "
                f"{len(wanted)} classes from {wanted[0]!r} to {wanted[-1]!r} in {first.folder} and "
                f"{len(found)} from {found[0]!r} to {found[-1]!r} in {other.folder}"
            )


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[0]
    names, counts = first.distilled.class_names, list(first.distilled.manifest["counts"])
    order, groups = class_order(counts), first.results["groups"]
    tables = {
        title: [scores for scores in (run.scores(who) for run in runs) if scores is not None]
        for who, title in WHO.items()
    }
    students = tables[WHO["student"]]
    every_count = [run.distilled.manifest["counts"] for run in runs]
    notes = [
        "training images: " + ", ".join(str(n) for n in dict.fromkeys(of_class))
        for of_class in zip(*every_count, strict=True)
    ]
    return {
        "runs": runs,
        "class_names": names,
        "unmeasured": {run.name: unmeasured(run.results) for run in runs},
        "best": max(students, key=lambda s: s.mean("accuracy")),
        "tables": {title: rows for title, rows in tables.items() if rows},
        "same_groups": all(run.results["groups"] == groups for run in runs),
        "charts": {
            "groups": group_chart(students),
            "classes": class_chart(students, names, order, groups),
        },
        "settings": _differences(runs),
        "gallery": gallery({run.name: run.images() for run in runs}, order, names, notes),
        "drift": {
            run.name: drift_summary(run.results["drift"])
            for run in runs
            if run.results.get("drift")
        },
        "stage_names": list(dict.fromkeys(s for run in runs for s in run.results["stages"])),
    }


def _differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the fields of configuration and data that are not equal in all runs."""
    flat = [
        dict(_flatten(run.distilled.manifest["config"]))
        | {
            "training split": run.distilled.manifest["split_sha256"][:12],
            "training images": sum(run.distilled.manifest["counts"]),
        }
        for run in runs
    ]
    fields = dict.fromkeys(name for values in flat for name in values)
    rows = {name: [_shown(values, name) for values in flat] for name in fields}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "-"
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value)
