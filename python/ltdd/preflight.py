"""Check what can be known before a run starts: wrong networks, a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from ltdd.config import (
    AnyExperts,
    CorrectReal,
    DistillConfig,
    DistributionMatching,
    GradientMatching,
    InitializationConfig,
    RecoveryConfig,
    Tiled,
    TrajectoryRecovery,
)
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.data.packed_logits import check_packing, packed_bytes
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.flat_network import FlatNetwork
from ltdd.models.observer import watched_layers
from ltdd.models.weights import given_weights, load_body, load_weights, starting_weights
from ltdd.stages.trajectories import trajectory_bytes

_SMALL_FILES = 16 << 20  # events, metrics, manifest, results, report and its figures
_ADAM_STATES = 4  # parameters, their average and two moments of the gradient


def estimated_bytes(config: DistillConfig, data: LongTailedData) -> int:
    """Return the bytes that the folder of a run holds at its largest moment.

    A file that is replaced counts twice, because the old one stays until the new one is whole.
    """
    config = config.of_classes(data.num_classes)

    def network(architecture: str) -> int:
        with torch.device("meta"):
            model = build_model(architecture, data.num_classes, data.image_size, data.channels)
        return sum(t.numel() * t.element_size() for t in model.state_dict().values())

    experts = [network(name) for _, name, _ in expert_networks(config.experts)]
    student = network(config.evaluation.student)
    if "full_long_tailed" in config.evaluation.baselines:
        experts.append(student)
    shown = config.ipc * data.num_classes * config.evaluation.decode**2
    paths = 0
    if isinstance(config.recovery, TrajectoryRecovery):
        paths = trajectory_bytes(config.recovery, _matched_network(config.recovery, data))
    images = config.ipc * data.num_classes
    pixels = images * data.channels * data.image_size**2
    labels = 0
    if config.relabeling.labels == "fkd":  # the stage's result in float16, and what is published
        rows, classes = config.evaluation.epochs * shown, data.num_classes
        labels = 2 * rows * classes + packed_bytes(config.relabeling, rows, classes, 2)
    # Initial and recovered images as float32, the distilled ones as uint8 with float32 logits.
    stored = sum(experts) + 2 * 4 * pixels + pixels + 4 * images * data.num_classes + labels
    predictions = 8 * len(data.test_labels) * config.evaluation.seeds * 2
    # The largest file that is written beside an older version of itself.
    largest = max(2 * max(experts), _ADAM_STATES * student, 4 * 4 * pixels, labels)
    match config.recovery:
        case GradientMatching(network=name):
            largest = max(largest, 2 * network(name) + 2 * 4 * pixels)
        case DistributionMatching(network=name, pool=pool):
            largest = max(largest, 2 * pool * network(name) + 2 * 4 * pixels)
    return stored + paths + predictions + 2 * largest + _SMALL_FILES


def check_disk_space(config: DistillConfig, data: LongTailedData, out: Path) -> int:
    """Return the estimate of `estimated_bytes` if it fits on the disk of the run folder.

    Raises:
        UserError: it does not, not counting what the folder already holds.
    """
    needed = estimated_bytes(config, data)
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    present = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    free = shutil.disk_usage(existing).free
    if free + present < needed:
        raise UserError(
            f"out: expected about {needed / 2**20:.0f} MiB free in {existing} for this run, got "
            f"{free / 2**20:.0f} MiB"
        )
    return needed


def check_networks(config: DistillConfig, data: LongTailedData) -> None:
    """Build every network once, so that a wrong name fails before hours of training.

    Raises:
        UserError: unknown architecture, images too small for it, an observer without layers to
            match, a network to match in with batch norm, options for convolutions that are not
            matched, or labels that cannot be packed as asked.
    """
    check_packing(config.relabeling, data.num_classes)
    check_matched_layers(config)
    check_tiles(config, data)
    experts, start = config.experts, None
    if experts.init_weights is not None:
        try:
            start = starting_weights(experts.init_weights)
        except UserError as error:
            raise UserError(f"experts.init_weights: {error}") from error
    if isinstance(config.recovery, TrajectoryRecovery):
        _matched_network(config.recovery, data)
    elif isinstance(config.initialization, CorrectReal):
        raise UserError(
            "expected recovery.method trajectory, whose experts initialization.method correct_real "
            f"asks, got recovery.method {config.recovery.method}"
        )
    student = ("evaluation.student", config.evaluation.student, None)
    for field, name, file in [*expert_networks(experts), *matching_networks(config), student]:
        try:
            model = build_model(name, data.num_classes, data.image_size, data.channels)
        except UserError as error:
            raise UserError(f"{field}: {error}") from error
        if field in ("experts.observer", "experts.extra_observers"):
            watched_layers(model, config.statistics.layers, name)
        if field == "recovery.network" and any(
            isinstance(module, nn.BatchNorm2d) for module in model.modules()
        ):
            raise UserError(
                f"recovery.network: expected a network without batch norm, which would take its "
                f"statistics from one class at a time; got {name!r} (try it without _bn)"
            )
        if file is not None:
            try:
                load_weights(model, given_weights(experts, file), data.class_names)
            except UserError as error:
                raise UserError(f"{field}_weights: {error}") from error
        elif start is not None and field.startswith("experts."):
            try:
                load_body(model, start)
            except UserError as error:
                raise UserError(f"experts.init_weights: for {field} {name}: {error}") from error


def check_matched_layers(config: DistillConfig) -> None:
    """Refuse settings of recovery that are about convolutions if those are not matched.

    Raises:
        UserError: names the setting.
    """
    if not isinstance(config.recovery, RecoveryConfig) or config.statistics.layers != "batch_norm":
        return
    for name in ("hook_drop", "patch_weight"):
        value = getattr(config.recovery, name)
        if value != getattr(RecoveryConfig, name):
            raise UserError(
                f"expected statistics.layers batch_norm_and_conv with recovery.{name}, which is "
                f"about convolutions, got batch_norm and {value:g}"
            )


def check_tiles(config: DistillConfig, data: LongTailedData) -> None:
    """Refuse tiles that do not fill an image.

    Raises:
        UserError: the image size is no multiple.
    """
    start = config.initialization
    if isinstance(start, InitializationConfig) and data.image_size % start.tiles:
        raise UserError(
            "expected initialization.tiles to divide the image size "
            f"{data.image_size}, got {start.tiles}"
        )


def matching_networks(config: DistillConfig) -> list[tuple[str, str, None]]:
    """Return field and architecture of the networks that images are made in."""
    networks: list[tuple[str, str, None]] = []
    if isinstance(config.initialization, Tiled):
        networks.append(("initialization.network", config.initialization.network, None))
    if isinstance(config.recovery, GradientMatching | DistributionMatching):
        networks.append(("recovery.network", config.recovery.network, None))
    return networks


def _matched_network(recovery: TrajectoryRecovery, data: LongTailedData) -> FlatNetwork:
    try:
        model = build_model(recovery.network, data.num_classes, data.image_size, data.channels)
        return FlatNetwork(model, recovery.network)
    except UserError as error:
        raise UserError(f"recovery.network: {error}") from error


def expert_networks(experts: AnyExperts) -> list[tuple[str, str, str | None]]:
    """Return field, architecture and weights file of every expert, in the order of training."""
    networks: list[tuple[str, str, str | None]] = []
    if experts.distil_from is not None and not experts.all_given:
        networks.append(("experts.distil_from", experts.distil_from, experts.distil_from_weights))
    networks.append(("experts.observer", experts.observer, experts.observer_weights))
    networks += [("experts.extra_observers", name, None) for name in experts.extra_observers]
    if experts.teacher != "same":
        networks.append(("experts.teacher", experts.teacher, experts.teacher_weights))
    networks += [("experts.extra_teachers", name, None) for name in experts.extra_teachers]
    return networks
