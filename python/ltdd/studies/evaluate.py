"""Train other students on a finished run: other architectures, other labels, more baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ltdd.config import DistillConfig, Labels
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.distributed.ranks import current
from ltdd.engine.distributed.session import session
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import resolve_device
from ltdd.engine.stage_runner import Stored
from ltdd.engine.storage.files import tensors_sha256, write_json
from ltdd.engine.storage.run_folder import open_run
from ltdd.engine.watching import provenance
from ltdd.errors import UserError
from ltdd.pipeline import load_source
from ltdd.preflight import check_networks
from ltdd.results.distilled_set import DistilledSet
from ltdd.results.scores import score
from ltdd.stages.baselines import evaluate_references, training_sets
from ltdd.stages.evaluation import evaluate_students
from ltdd.stages.experts import train_experts
from ltdd.stages.relabeling import relabel_images
from ltdd.stages.run import Learned, Run


def evaluate(
    distilled: DistilledSet,
    students: Sequence[str],
    seeds: int,
    labels: Labels,
    baselines: Sequence[str] = (),
    options: RunOptions | None = None,
    data: LongTailedData | None = None,
) -> dict[str, dict[str, Any]]:
    """Train other students on a finished run and write ``evaluations/<student>-<labels>.json``.

    Their losses go to ``events.jsonl`` and ``metrics.csv`` in a folder of the same name, so that
    the run's own stay those of its own students.

    Args:
        distilled: the set of a finished run.
        students: architectures.
        seeds: number of students of each.
        labels: ``static``, ``fkd``, ``online``, ``hard``, or ``learned`` where the run's are.
        baselines: what each architecture is compared with, as in ``evaluation.baselines``.
        options: as the run was made with; None for the defaults.
        data: those the run was made from, where they were given to `distill`.

    Returns:
        For each architecture the same structure as ``results.json``.

    Raises:
        UserError: the run's experts are not there, or its data are no longer the same.
    """
    options = options or RunOptions()
    config = DistillConfig.from_dict(distilled.manifest.get("config"))
    if labels == "learned" != config.relabeling.labels:
        raise UserError(
            f"evaluate: expected a set whose labels were learned for labels learned, got one with "
            f"{config.relabeling.labels} labels in {distilled.root}"
        )
    relabeling = dataclasses.replace(config.relabeling, labels=labels)
    configs = [
        dataclasses.replace(
            config,
            relabeling=relabeling,
            evaluation=dataclasses.replace(
                config.evaluation, student=student, seeds=seeds, baselines=tuple(baselines)
            ),
        )
        for student in students
    ]
    with session(resolve_device(config.device)) as ranks:
        options = options.of_rank(ranks.rank)
        if data is None:
            data = load_source(config, options)
        _check_split(distilled, data)
        for wanted in configs:
            check_networks(wanted, data)
        results = {}
        for wanted in configs:
            student = wanted.evaluation.student
            name = f"{file_stem(student)}-{labels}"
            results[student] = evaluate_as(
                distilled, wanted, name, data, options, finished=frozenset({"experts"})
            )
    return results


def _check_split(distilled: DistilledSet, data: LongTailedData) -> None:
    expected = str(distilled.manifest.get("split_sha256"))
    if data.split_sha256 != expected:
        raise UserError(
            f"evaluate: expected the data of split {expected[:12]}, "
            f"got split {data.split_sha256[:12]} from {data.source}"
        )


def evaluate_as(
    distilled: DistilledSet,
    wanted: DistillConfig,
    name: str,
    data: LongTailedData,
    options: RunOptions,
    *,
    finished: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Train students on a finished run as any configuration says; write ``evaluations/<name>``.

    Args:
        distilled: the set of a finished run, the images of which are taken.
        wanted: its experts label the images, its relabeling and evaluation train students.
        name: of the files.
        data: those the run was made from.
        options: what does not change the result.
        finished: names of stages that must be found, never computed.

    Returns:
        The same structure as ``results.json``.
    """
    out, ranks = distilled.root, current()
    logs = out / "evaluations" / name
    shown = ImageSet(distilled.images, distilled.labels)
    images = Stored(shown, tensors_sha256(shown._asdict()))
    rate = float(distilled.manifest["student_training"]["learning_rate"])
    learned = Learned(distilled.logits, rate)
    config, split = distilled.manifest["config"], data.split_sha256
    with ranks.first_holds(lambda: open_run(out, config, split)):
        run = Run.create(wanted, data, out, options, finished=finished, logs=logs)
        run = run.with_learned_rate(learned)
        experts = train_experts(run)
        soft = relabel_images(run, experts.teacher, experts.course, images, learned)
        predictions = evaluate_students(run, training_sets(run, images, soft))
        predictions |= evaluate_references(run, experts)
        results = score(run, shown, soft, predictions)
        results["provenance"] = provenance.collect(options)
        ranks.first_only(lambda: write_json(logs.with_name(f"{name}.json"), results))
    return results


def file_stem(student: str) -> str:
    """Return an architecture's name as part of a file's: some systems allow no colon there."""
    return student.replace(":", "-")
