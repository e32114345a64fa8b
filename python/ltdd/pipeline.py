"""Read this first: the six stages in order, and what flows between them.

    data --> experts --> statistics --> recovery --> relabeling --> evaluation
                 \\--> initialization --^

Every arrow is a stored artifact under a hash of everything that decides it (the stage's
configuration, its inputs' hashes, the split). The same command therefore continues where an earlier
one stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import DistillConfig, OnBadImage
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.data.packed_logits import pack
from ltdd.data.summary import describe, facts
from ltdd.engine import provenance
from ltdd.engine.checkpoint import DEFAULT_SECONDS
from ltdd.engine.events import Sink
from ltdd.engine.files import fingerprint, write_json
from ltdd.engine.run_folder import open_run
from ltdd.engine.runtime import Runtime, resolve_device
from ltdd.engine.surroundings import user_path
from ltdd.errors import UserError
from ltdd.models.observer import batch_norm_layers, batch_norm_names
from ltdd.preflight import check_disk_space, check_networks
from ltdd.results.distilled_set import record_files, save_distilled
from ltdd.stages.alignment_targets import LayerStatistics
from ltdd.stages.baselines import Distillation, fkd_logits, score, static_logits, to_uint8
from ltdd.stages.initialization import initialize_images
from ltdd.stages.label_calibration import calibration_strength, label_shift
from ltdd.stages.recovery import recover_images
from ltdd.stages.run import Context
from ltdd.stages.statistics import calibrate_statistics, synthetic_statistics
from ltdd.stages.statistics_drift import layer_drift

REAL_EXAMPLES = 5  # real images a class kept for the report


def distill(
    config: DistillConfig,
    out: Path,
    *,
    data: LongTailedData | None = None,
    preset: str | None = None,
    quiet: bool = False,
    checkpoint_seconds: float = DEFAULT_SECONDS,
    on_bad_image: OnBadImage = "fail",
    pool: Path | None = None,
    sinks: Sequence[Sink] = (),
) -> dict[str, Any]:
    """Distill a long-tailed image set into ``config.ipc`` images a class, and evaluate them.

    Args:
        config: everything that decides the result.
        out: run folder; the same configuration continues an earlier run there.
        data: what to distil, as ``ltdd.data.from_tensors`` or ``from_datasets`` makes it; None
            loads ``config.data``.
        preset: name of the preset the configuration came from, for the record.
        quiet: no progress output.
        checkpoint_seconds: time between two saves of an unfinished stage; 0 saves after every step.
        on_bad_image: ``fail`` or ``skip``, for image files that cannot be read.
        pool: folder of stage results shared with other runs; the run folder holds what it needs.
        sinks: receive every event beside ``events.jsonl`` and ``metrics.csv``.

    Returns:
        The content of ``results.json``; accuracies are fractions of 1.

    Raises:
        UserError: the data, the configuration or the folder cannot be used, or the disk is full.
        FolderInUse: another process works in the folder.
    """
    resolve_device(config.device)
    out = user_path(out)
    if data is None:
        data = load_source(config, on_bad_image, quiet)
    else:
        config = with_data(config, data)
    check_networks(config, data)
    check_disk_space(config, data, out)
    with open_run(out, config.to_dict(), data.split_sha256):
        if not quiet:
            print(describe(data), flush=True)
        origin = provenance.collect(preset)
        context = Context.create(
            config,
            data,
            out,
            quiet=quiet,
            checkpoint_seconds=checkpoint_seconds,
            pool=pool,
            sinks=sinks,
        )
        for left_out in data.left_out:
            context.log.write("bad_image", file=left_out)
        context.log.write("data", **facts(data))
        made = build(context)
        if config.relabeling.labels == "fkd":
            made = dataclasses.replace(made, fkd=fkd_logits(context, made))
        publish(context, made)
        drift = statistics_drift(context, made)
        results = score(context, made, config.evaluation.student, config.relabeling.labels)
        results["drift"] = drift
        results["originals"] = data.originals
        results["provenance"] = origin | {
            "seconds": sum(stage["seconds"] for stage in results["stages"].values())
        }
        write_json(out / "results.json", results)
        record_files(out, ["results.json"])
        context.log.write("done")
    return results


def load_source(config: DistillConfig, on_bad_image: OnBadImage, quiet: bool) -> LongTailedData:
    """Load the data that a configuration names."""
    return load_data(
        config.data,
        config.imbalance_factor,
        config.image_size,
        on_bad_image,
        quiet,
        config.fit,
        config.incomplete_classes,
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


def build(context: Context) -> Distillation:
    """Run stages 1 to 4 and label the images."""
    config, stages = context.config, context.stages
    observers = context.observers()
    teacher, teacher_key = context.teacher(observers)
    statistics = [fair_statistics(context, *observer) for observer in observers]
    initial, initial_key = initial_images(context, teacher, teacher_key)
    recovered_key = stages.key(
        "recovery",
        dataclasses.asdict(config.recovery) | dataclasses.asdict(config.statistics),
        [*(key for _, key in statistics), initial_key],
    )
    recovered = stages.run(
        "recovery",
        recovered_key,
        lambda runtime: {
            "images": recover_images(
                initial["images"],
                initial["labels"],
                [
                    (network, own)
                    for (network, _), (own, _) in zip(observers, statistics, strict=True)
                ],
                context.mean,
                context.std,
                config.horizontal_flip,
                config.recovery,
                config.statistics,
                runtime,
            )
        },
    )
    images = to_uint8(recovered["images"])
    images_key = fingerprint([recovered_key, teacher_key])
    logits_key = stages.key("relabeling", {"labels": "static"}, [images_key])
    logits = stages.run(
        "relabeling",
        logits_key,
        lambda runtime: {"logits": static_logits(context, teacher, images, runtime)},
    )["logits"]
    tau = calibrate_labels(context, logits, initial["labels"], logits_key)
    shift = label_shift(tau, context.data.counts)
    return Distillation(
        observer=observers[0][0],
        teacher=teacher,
        teacher_key=teacher_key,
        statistics=statistics[0][0],
        initial=initial["images"],
        images=images,
        images_key=images_key,
        labels=initial["labels"],
        logits=pack(logits - shift, config.relabeling),
        tau=tau,
        shift=shift,
    )


def calibrate_labels(context: Context, logits: Tensor, labels: Tensor, logits_key: str) -> float:
    """Return the strength of the label calibration, 0 if none is wanted."""
    method, counts = context.config.relabeling.calibration, context.data.counts
    if method == "none":
        return 0.0
    key = context.stages.key("relabeling", {"calibration": method}, [logits_key])

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        tau = calibration_strength(logits, labels, counts)
        return {"tau": torch.tensor(tau, dtype=torch.float64)}

    return float(context.stages.run("relabeling", key, compute)["tau"])


def fair_statistics(
    context: Context, observer: nn.Module, observer_key: str
) -> tuple[list[LayerStatistics], str]:
    """Stage 2: return the per-class statistics of the observer and their key."""
    config = context.config.statistics
    upstream = [observer_key, context.config.backend]
    key = context.stages.key("statistics", {"batch_size": config.batch_size}, upstream)

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        layers = calibrate_statistics(observer, context.data, config, runtime)
        return {
            name: tensor
            for number, layer in enumerate(layers)
            for name, tensor in layer.tensors(str(number)).items()
        }

    tensors = context.stages.run("statistics", key, compute)
    layers = range(len(batch_norm_layers(observer)))
    return [LayerStatistics.from_tensors(str(n), tensors) for n in layers], key


def statistics_drift(context: Context, made: Distillation) -> list[dict[str, Any]]:
    """Measure how far other statistics of every layer are from the fair ones, for the report.

    The synthetic images are measured in crops as recovery sees them, before and after it, and
    whole as they are published.
    """
    config, layers = context.config.statistics, range(len(made.statistics))
    crops = (context.config.recovery.crop_min_scale, context.config.horizontal_flip)
    sets = {
        "start": (made.initial, crops),
        "distilled": (made.images, crops),
        "published": (made.images, None),
    }
    key = context.stages.key(
        "drift", {"of": list(sets), "batch_size": config.batch_size}, [made.images_key]
    )

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, (images, crops) in sets.items():
            statistics = synthetic_statistics(
                made.observer,
                images,
                made.labels,
                context.mean,
                context.std,
                crops,
                config,
                runtime,
            )
            for number, layer in enumerate(statistics):
                found |= layer.tensors(f"{name}.{number}")
        return found

    tensors = context.stages.run("drift", key, compute)
    synthetic = {
        name: [LayerStatistics.from_tensors(f"{name}.{n}", tensors) for n in layers]
        for name in sets
    }
    return layer_drift(batch_norm_names(made.observer), made.statistics, synthetic)


def initial_images(
    context: Context, teacher: nn.Module, teacher_key: str
) -> tuple[dict[str, Tensor], str]:
    """Stage 3: return initial images, their labels and some real images for the report."""
    config, ipc = context.config.initialization, context.config.ipc
    key = context.stages.key(
        "initialization", dataclasses.asdict(config) | {"ipc": ipc}, [teacher_key]
    )

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        start = initialize_images(teacher, context.data, ipc, config, runtime)
        return {
            "images": start.images,
            "labels": start.labels,
            "source": start.source,
            "real_examples": real_examples(context.data),
        }

    return context.stages.run("initialization", key, compute), key


def publish(context: Context, made: Distillation) -> None:
    """Write the distilled set and its manifest."""
    config, data = context.config, context.data
    save_distilled(
        context.out,
        made.images,
        made.labels,
        made.logits,
        fkd=made.fkd,
        class_names=data.class_names,
        counts=data.counts,
        split_sha256=data.split_sha256,
        normalization=(data.mean, data.std),
        config=config.to_dict(),
        student_recipe=dataclasses.asdict(config.evaluation)
        | {
            "labels": config.relabeling.labels,
            "calibration": config.relabeling.calibration,
            "calibration_tau": made.tau,
            "horizontal_flip": config.horizontal_flip,
        },
    )


def real_examples(data: LongTailedData) -> Tensor:
    """Return the first real training images of every class, uint8 (K, 5, C, H, W)."""
    rows = []
    for label in range(data.num_classes):
        members = torch.nonzero(data.train_labels == label).flatten()
        rows.append(data.train_images[members[torch.arange(REAL_EXAMPLES) % len(members)]])
    return torch.stack(rows)
