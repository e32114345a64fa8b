"""The tables of a study of several methods, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ltdd.engine.watching import units
from ltdd.results.tables import GROUP_COLUMNS, markdown_table, percent
from ltdd.stages.metrics import THIRDS

EXPLANATION = """\
Accuracy in % on the balanced test set, last epoch, mean ± standard deviation over students. `own`:
labels and students as the method has them; `hard`: class labels and one way of training for all;
`teacher`: the debiased teacher labels every view, and students train as in `rldd`. `published`:
the figure of the field's tables for `own`, the best of several epochs."""
COSTS = """\
`set`: all that the method's own set needs. A stage in brackets was computed for the columns alone;
students, drift and nearest images measure a set and are not counted either. Memory is the whole
process's, libraries included. Labels that are asked `online` need the teacher beside the set, whose
bytes are not counted."""


class Table(NamedTuple):
    """A table as text.

    Attributes:
        title: what it shows.
        header: titles of the columns.
        rows: cells, one row a method.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(self.header, self.rows)


def accuracy_table(study: Mapping[str, Any]) -> Table:
    """Return the overall accuracies of every column beside what is published, and the costs."""
    rows = [
        [
            system["recipe"],
            *(percent(system["columns"][name]["accuracy"]) for name in study["columns"]),
            "-" if system["published"] is None else f"{system['published']:.1f}",
            units.duration(system["seconds"]),
            units.size(system["peak_bytes"]),
            units.size(sum(system["bytes"].values())),
        ]
        for system in study["systems"]
    ]
    header = ["system", *study["columns"], "published", "time", "memory", "bytes"]
    return Table("Accuracy and cost", header, rows)


def group_tables(study: Mapping[str, Any]) -> list[Table]:
    """Return for each column the accuracies of head, medium and tail."""
    groups = ("accuracy", *THIRDS)
    return [
        Table(
            f"{name}, by group of classes",
            ["system", *(GROUP_COLUMNS[group] for group in groups), "student", "labels", "epochs"],
            [
                [
                    system["recipe"],
                    *(percent(system["columns"][name].get(group)) for group in groups),
                    *(
                        str(system["columns"][name][field])
                        for field in ("arch", "labels", "epochs")
                    ),
                ]
                for system in study["systems"]
            ],
        )
        for name in study["columns"]
    ]


def cost_table(study: Mapping[str, Any]) -> Table:
    """Return the seconds of every stage, its peak memory behind them, and the bytes of the set."""
    systems = study["systems"]
    stages = list(dict.fromkeys(name for system in systems for name in system["stages"]))
    rows = [
        [
            system["recipe"],
            *(_cost(system["stages"].get(name)) for name in stages),
            units.duration(system["seconds"]),
            *(units.size(system["bytes"][kind]) for kind in ("images", "labels")),
        ]
        for system in systems
    ]
    return Table("Time and peak memory", ["system", *stages, "set", "images", "labels"], rows)


def systems_markdown(study: Mapping[str, Any]) -> str:
    """Return ``systems.md``: what was run, and the tables."""
    origin, counts = study["provenance"], study["counts"]
    where = f"{origin['machine']}, {origin['threads']} threads, torch {origin['torch']}"
    named = [f"* `{s['recipe']}`: {s['title']} ({s['paper']})" for s in study["systems"]]
    grouped = [f"### {table.title}\n\n{table.markdown}" for table in group_tables(study)]
    return "\n\n".join(
        [
            "# Systems side by side",
            f"{sum(counts)} training images of {len(counts)} classes, {study['ipc']} images a "
            f"class. The teacher itself: {percent(study['teacher']['accuracy'])} %.",
            EXPLANATION,
            accuracy_table(study).markdown,
            *grouped,
            f"### Time and peak memory\n\n{COSTS}",
            cost_table(study).markdown,
            "\n".join(named),
            f"{where}, ltdd {origin['ltdd']}, commit {origin['commit'] or '-'}, "
            f"{origin['date'][:10]}:\n\n```sh\n{origin['command']}\n```\n",
        ]
    )


def _cost(stage: Mapping[str, Any] | None) -> str:
    if stage is None:
        return "-"
    told = f"{units.duration(stage['seconds'])}, {units.size(stage['peak_bytes'])}"
    return told if stage["needed"] else f"({told})"
