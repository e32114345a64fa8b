"""Train other students on a finished run: other architectures, other labels, more baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ltdd.config import DistillConfig, Labels, OnBadImage
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine import provenance
from ltdd.engine.events import Sink
from ltdd.engine.files import write_json
from ltdd.engine.run_folder import open_run
from ltdd.errors import UserError
from ltdd.pipeline import build, load_source
from ltdd.preflight import check_networks
from ltdd.results.distilled_set import load
from ltdd.stages.baselines import score
from ltdd.stages.run import Context

BUILDING_STAGES = frozenset({"experts", "statistics", "initialization", "recovery"})


def evaluate(
    out: Path,
    students: Sequence[str],
    seeds: int,
    labels: Labels,
    quiet: bool = False,
    on_bad_image: OnBadImage = "fail",
    data: LongTailedData | None = None,
    baselines: Sequence[str] = (),
    sinks: Callable[[Path], Sequence[Sink]] = lambda folder: (),
) -> dict[str, dict[str, Any]]:
    """Train other students on a finished run and write ``evaluations/<student>-<labels>.json``.

    Their losses go to ``events.jsonl`` and ``metrics.csv`` in a folder of the same name, so that
    the run's own stay those of its own students.

    Args:
        out: folder of a finished run.
        students: architectures.
        seeds: number of students of each.
        labels: ``static``, ``fkd``, ``online`` or ``hard``.
        quiet: no progress output.
        on_bad_image: as the run was made with.
        data: those the run was made from, where they were given to `distill`.
        baselines: what each architecture is compared with, as in ``evaluation.baselines``.
        sinks: what receives every event beside the files, given their folder.

    Returns:
        For each architecture the same structure as ``results.json``.

    Raises:
        UserError: the folder holds no finished run, or its data are no longer the same.
    """
    stored = load(out).manifest
    config = DistillConfig.from_dict(stored.get("config"))
    settings = [
        dataclasses.replace(
            config.evaluation, student=student, seeds=seeds, baselines=tuple(baselines)
        )
        for student in students
    ]
    asked = [dataclasses.replace(config, evaluation=evaluation) for evaluation in settings]
    if data is None:
        data = load_source(config, on_bad_image, quiet)
    expected = str(stored.get("split_sha256"))
    if data.split_sha256 != expected:
        raise UserError(
            f"evaluate: expected the data of split {expected[:12]}, "
            f"got split {data.split_sha256[:12]} from {config.data}"
        )
    for wanted in asked:
        check_networks(wanted, data)
    found = {}
    with open_run(out, stored["config"], data.split_sha256):
        origin = provenance.collect(None)
        for wanted in asked:
            student = wanted.evaluation.student
            logs = out / "evaluations" / f"{file_stem(student)}-{labels}"
            context = Context.create(
                wanted,
                data,
                out,
                quiet=quiet,
                stored=BUILDING_STAGES,
                logs=logs,
                sinks=sinks(logs),
            )
            results = score(context, build(context), student, labels)
            results["provenance"] = origin
            write_json(logs.with_name(f"{logs.name}.json"), results)
            found[student] = results
    return found


def file_stem(student: str) -> str:
    """Return an architecture's name as part of a file's: some systems allow no colon there."""
    return student.replace(":", "-")
