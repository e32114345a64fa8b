r"""Read this first: the six stages in order, and what flows between them.

    data --> experts --> statistics --> recovery --> relabeling --> evaluation
                 \--> initialization --^

Methods that match trajectories also train experts whose paths initialization and recovery follow
(``stages/trajectories``).

Every arrow is stored under a hash of everything that decides it: the settings of its stage that
differ from their defaults, the hashes of its inputs, the data. The same command therefore goes on
where an earlier one stopped, and other runs take from the shared store what they have in common.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ltdd.config import DistillConfig
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.data.summary import describe, facts
from ltdd.engine.distributed.ranks import current
from ltdd.engine.distributed.session import session
from ltdd.engine.machine.surroundings import user_path
from ltdd.engine.public import public
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import resolve_device
from ltdd.engine.storage.files import fingerprint, write_json
from ltdd.engine.storage.run_folder import open_run
from ltdd.engine.watching import provenance
from ltdd.errors import UserError
from ltdd.forecast import forecast
from ltdd.preflight import check_disk_space, check_networks
from ltdd.results.distilled_set import RESULTS, Origin, record_files, save_distilled
from ltdd.results.scores import score
from ltdd.stages.baselines import evaluate_references, training_sets
from ltdd.stages.evaluation import evaluate_students
from ltdd.stages.experts import train_experts
from ltdd.stages.initialization import initialize_images
from ltdd.stages.nearest_images import measure_nearness
from ltdd.stages.recovery import recover_images
from ltdd.stages.relabeling import SoftLabels, relabel_images
from ltdd.stages.run import Run
from ltdd.stages.statistics import calibrate_statistics, measure_drift
from ltdd.stages.trajectories import train_trajectories


@public(
    config="make one of a dict with DistillConfig.from_dict",
    data="make it with ltdd.data.from_datasets or from_tensors",
)
def distill(
    config: DistillConfig,
    out: str | Path,
    *,
    data: LongTailedData | None = None,
    options: RunOptions | None = None,
) -> dict[str, Any]:
    """Distill a long-tailed image set into ``config.ipc`` images per class, and evaluate them.

    Args:
        config: everything that decides the result.
        out: run folder; the same configuration continues an earlier run there.
        data: what to distil, as ``ltdd.data.from_tensors`` or ``from_datasets`` makes it; None
            loads ``config.data``.
        options: what does not change the result; None for the defaults.

    Returns:
        The content of ``results.json``; accuracies are fractions of 1.

    Raises:
        UserError: the data, the configuration or the folder cannot be used, or the disk is full.
        FolderInUse: another process works in the folder.
    """
    out, options = user_path(out), options or RunOptions()
    with session(resolve_device(config.device)) as ranks:
        options = options.of_rank(ranks.rank)
        if data is None:
            data = load_source(config, options)
        else:
            config = with_data(config, data)
        return distill_loaded(config, data, out, options)


def distill_loaded(
    config: DistillConfig, data: LongTailedData, out: Path, options: RunOptions
) -> dict[str, Any]:
    """Distil the data that a configuration names, once they are loaded; see `distill`."""
    ranks = current()
    check_networks(config, data)
    check_same(config, data)
    ranks.first_only(lambda: check_disk_space(config, data, out))
    with ranks.first_holds(lambda: open_run(out, config.to_dict(), data.split_sha256)):
        origin = provenance.collect(options)
        run = Run.create(config, data, out, options)
        introduce(run)
        announce(run)
        experts = train_experts(run)
        trajectories = train_trajectories(run)
        statistics = calibrate_statistics(run, experts.observers)
        start = initialize_images(run, experts.teacher, trajectories)
        recovered = recover_images(run, experts.observers, statistics, start, trajectories)
        images, run = recovered.images, run.with_learned_rate(recovered.learned)
        labels = relabel_images(run, experts.teacher, experts.course, images, recovered.learned)
        ranks.first_only(lambda: publish(run, config, images.value, labels))
        drift = measure_drift(run, experts.observers[0], statistics[0], start, images)
        nearest = measure_nearness(run, experts.teacher, images)
        students = evaluate_students(run, training_sets(run, images, labels))
        predictions = students | evaluate_references(run, experts)
        results = score(run, images.value, labels, predictions)
        results |= {"drift": drift, "nearest": nearest, "originals": data.originals}
        if recovered.measured is not None:
            results["matching"] = recovered.measured
        seconds = sum(stage["seconds"] for stage in results["stages"].values())
        results["provenance"] = origin | {"seconds": seconds}
        ranks.first_only(lambda: write_results(out, results))
        run.log.write("done")
    return results


def check_same(config: DistillConfig, data: LongTailedData) -> None:
    """Check that all ranks work on the same data with the same configuration.

    Raises:
        UserError: one of them does not.
    """
    own = fingerprint([config.to_dict(), data.split_sha256, data.content_sha256])
    found = current().all(own)
    others = [rank for rank, theirs in enumerate(found) if theirs != found[0]]
    if others:
        raise UserError(
            "expected the same configuration and data on all ranks, got others on rank "
            f"{', '.join(map(str, others))}"
        )


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write ``results.json`` and record it in the manifest."""
    write_json(out / RESULTS, results)
    record_files(out, [RESULTS])


def load_source(config: DistillConfig, options: RunOptions) -> LongTailedData:
    """Load the data that a configuration names; what the first rank decodes, the others map."""
    return current().in_turn(
        lambda: load_data(
            config.data,
            config.imbalance_factor,
            config.image_size,
            options.on_bad_image,
            options.quiet,
            config.fit,
            config.incomplete_classes,
        )
    )


def with_data(config: DistillConfig, data: LongTailedData) -> DistillConfig:
    """Return the configuration of a run on data that were given instead of named.

    Raises:
        UserError: the configuration asks for a cut, which has to be made with the data.
    """
    if config.imbalance_factor is not None:
        raise UserError(
            f"expected imbalance_factor None with data= given, got {config.imbalance_factor:g}; "
            "give it to from_tensors or from_datasets"
        )
    fit = config.fit if data.originals is None else data.originals.fit
    return dataclasses.replace(config, data=data.source, image_size=data.image_size, fit=fit)


def introduce(run: Run) -> None:
    """Say and log what the data are."""
    if not run.runtime.quiet:
        print(describe(run.data), flush=True)
    for left_out in run.data.left_out:
        run.log.write("bad_image", file=left_out)
    run.log.write("data", **facts(run.data))


def announce(run: Run) -> None:
    """Say what the run will take if nothing of it is found."""
    if not run.runtime.quiet:
        print(forecast(run), flush=True)


def publish(run: Run, config: DistillConfig, images: ImageSet, labels: SoftLabels) -> None:
    """Write the distilled set and its manifest.

    Args:
        run: its configuration has the learned rate, where one is learned.
        config: as it was given.
        images: with their classes.
        labels: of the images.
    """
    data, views = run.data, labels.views
    save_distilled(
        run.out,
        images,
        labels.static.value,
        Origin(data.class_names, data.counts, data.split_sha256, data.normalization),
        config.to_dict(),
        dataclasses.asdict(run.config.evaluation)
        | {
            "labels": config.relabeling.labels,
            "calibration": config.relabeling.calibration,
            "calibration_tau": labels.calibration.tau,
            "horizontal_flip": config.horizontal_flip,
        },
        None if views is None else views.value,
    )
