"""Stage 1: train an observer and a teacher on the long-tailed data (arXiv:2511.18858, Eq. 5-7).

Every step mixes a plainly drawn batch A with a resampled batch R twice, once by MixUp and once by
CutMix. Two classifiers share the backbone: a plain one that dominates early and a class-debiased
one that takes over as ``(e/T)^2``; a SimSiam-like term keeps the two views' projections consistent.
Only the backbone and the debiased classifier are kept. Two other losses are there to compare with:
plain cross-entropy, and UniMix (arXiv:2111.03874).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import update_bn

from ltdd.config import AnyExperts, ExpertsConfig, UniMixExperts, deciding_settings
from ltdd.data.augmentation.expert_batches import (
    Batches,
    Drawn,
    Labelled,
    Mixture,
    Pairs,
    part_of,
)
from ltdd.data.augmentation.student_views import one_hot
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import whole_batch
from ltdd.engine.cuda_graphs import MovingAverage, RecordedSteps, adjustable_rate
from ltdd.engine.finite import mean_of_losses
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Call, Stored
from ltdd.engine.storage.files import fingerprint
from ltdd.engine.tensor_trees import to_device
from ltdd.errors import UserError
from ltdd.models import Network, build_model
from ltdd.models.data_parallel import DataParallel
from ltdd.models.ensemble import MeanLogits
from ltdd.models.weights import (
    Weights,
    given_weights,
    load_body,
    load_weights,
    starting_weights,
)
from ltdd.stages.losses import (
    bayias_loss,
    class_debias_weights,
    consistency_loss,
    debias_progress,
    expert_loss,
    soft_cross_entropy,
)
from ltdd.stages.run import Run

OBSERVER, TEACHER = "observer", "teacher"

GROWTH = ((0.4, 0.5), (0.7, 0.75))  # until this share of the epochs, this share of the image size
SMALLEST_SIZE = 16  # pixels to which `progressive_resizing` shrinks images
EMA_DECAY = 0.999  # per step, of `averaging: ema`


@dataclass(frozen=True)
class Experts:
    """The trained networks of a run.

    Attributes:
        observers: networks whose statistics are matched, in turns.
        teacher: network that scores crops and gives soft labels.
    """

    observers: list[Stored[nn.Module]]
    teacher: Stored[nn.Module]


def train_experts(run: Run) -> Experts:
    """Stage 1: train the observers and the teacher, or take weights that were given."""
    settings = run.config.experts
    extra = enumerate(settings.extra_observers, 2)
    wanted = [(OBSERVER, settings.observer, settings.observer_weights)]
    wanted += [(f"{OBSERVER}{n}", name, None) for n, name in extra]
    watched = len(wanted)
    if settings.teacher != "same":
        wanted.append((TEACHER, settings.teacher, settings.teacher_weights))
    extra = enumerate(settings.extra_teachers, 2)
    wanted += [(f"{TEACHER}{n}", name, None) for n, name in extra]
    made = run.stages.run_all([_trained_or_given(run, *who) for who in wanted], splittable=True)
    experts = [_frozen(run, who[1], stored) for who, stored in zip(wanted, made, strict=True)]
    observers, members = experts[:watched], experts[watched:]
    if settings.teacher == "same":
        members = experts
    if len(members) == 1:
        return Experts(observers, members[0])
    networks = [member.value for member in members]
    key = fingerprint([member.key for member in members])
    return Experts(observers, Stored(MeanLogits(networks), key))


def _trained_or_given(run: Run, role: str, architecture: str, file: str | None) -> Call:
    """Return how an expert gets the weights of a file, or is trained if there is none."""
    if file is None:
        return _training(run, role, architecture, run.config.experts, "experts")
    given = given_weights(run.config.experts, file)
    settings = {"weights": given.sha256, "class_names": given.class_names}

    def load(runtime: Runtime) -> Mapping[str, Tensor]:
        model = run.build(architecture)
        load_weights(model, given, run.data.class_names)
        if given.class_names is None:
            runtime.tell(
                "class_order_assumed",
                f"experts: {given.path} names no classes; its outputs are taken to be those of "
                "the data, in order; if they are not, give experts.class_map",
                file=str(given.path),
            )
        return model.state_dict()

    who = {"role": role, "architecture": architecture}
    return Call("experts", settings | who, [], load)


def train_network(
    run: Run, role: str, architecture: str, settings: AnyExperts, stage: str = "experts"
) -> Stored[nn.Module]:
    """Return one network trained on the long-tailed data.

    Args:
        run: the run.
        role: names the random streams and the events; another role is another network.
        architecture: a name that `build_model` knows.
        settings: how it is trained.
        stage: whose time and files it is.
    """
    stored = run.stages.run(*_training(run, role, architecture, settings, stage))
    return _frozen(run, architecture, stored)


def _training(run: Run, role: str, architecture: str, settings: AnyExperts, stage: str) -> Call:
    flip = run.config.horizontal_flip
    start = None if settings.init_weights is None else starting_weights(settings.init_weights)

    def train(runtime: Runtime) -> Mapping[str, Tensor]:
        trained = train_expert(role, architecture, run.data, settings, flip, runtime, start)
        return trained.state_dict()

    who = {"role": role, "architecture": architecture}
    if start is not None:
        who["init_weights"] = start.sha256
    return Call(stage, deciding_settings(settings) | who, [], train)


def _frozen(run: Run, architecture: str, stored: Stored[dict[str, Tensor]]) -> Stored[nn.Module]:
    model = run.build(architecture)
    model.load_state_dict(stored.value)
    moved = model.to(run.runtime.device).to(memory_format=torch.channels_last)
    return Stored(moved.eval().requires_grad_(False), stored.key)


class ExpertNetwork(nn.Module):
    """A backbone with the heads that only training needs.

    Args:
        backbone: its own classifier is the debiased one.
        num_classes: K.
        config: with variant ``printed`` the plain term uses the debiased classifier too.
    """

    def __init__(self, backbone: Network, num_classes: int, config: ExpertsConfig) -> None:
        super().__init__()
        width, hidden = backbone.feature_dim, config.projection_dim
        self.backbone = backbone
        printed = config.variant == "printed"
        self.plain = backbone.classifier if printed else nn.Linear(width, num_classes)
        self.projection = nn.Linear(width, hidden)
        self.prediction = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return plain logits, debiased logits, projection z and prediction p."""
        features = self.backbone.features(x)
        z = self.projection(features)
        return self.plain(features), self.backbone.classifier(features), z, self.prediction(z)


class _Objective:
    """The loss of one step of training."""

    def __init__(
        self, network: nn.Module, batches: Batches, data: LongTailedData, runtime: Runtime
    ) -> None:
        self.network, self.batches, self.runtime = network, batches, runtime
        self.counts = batches.counts.to(runtime.device)
        if isinstance(batches.config, ExpertsConfig):
            config = batches.config
            weights = class_debias_weights(data.counts, config.debias_power, config.variant)
            self.config, self.weights = config, weights.to(runtime.device)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Drawn:
        """Draw what a step shows of the images with these indices."""
        match self.batches.config:
            case ExpertsConfig():
                return self.batches.mixture(indices, generator)
            case UniMixExperts():
                return self.batches.pairs(indices, generator)
        return Labelled(self.batches.shown(indices, generator), self.batches.labels[indices])

    def inputs(self, drawn: Drawn) -> Tensor:
        """Return images as the network is shown them in a step, both views together."""
        match drawn:
            case Mixture():
                return self.batches.mix_views(drawn)[0]
            case Pairs():
                return self.batches.unimix(drawn)
            case Labelled():
                return self.batches.view(drawn.shown)

    def loss(self, drawn: Drawn, share: Tensor, size: int) -> Tensor:
        """Return the loss of what was drawn; all tensors are on the runtime's device.

        Args:
            drawn: of `draw`.
            share: scalar, of the rebalanced term.
            size: images are mixed whole, then shown with sides of so many pixels.
        """
        batches = self.batches
        if isinstance(drawn, Labelled):
            logits = self._pass(batches.view(drawn.shown), size)
            return soft_cross_entropy(logits, one_hot(drawn.labels, batches.num_classes))
        if isinstance(drawn, Pairs):
            logits, labels = self._pass(batches.unimix(drawn), size), drawn.labels
            own, others = labels[: len(drawn.partner)], labels[drawn.partner]
            return bayias_loss(logits, own, others, drawn.lam, self.counts)
        inputs, targets = batches.mix_views(drawn)
        plain, rebalanced, z, p = (o.chunk(2) for o in self._pass(inputs, size))
        consistency = consistency_loss(p[0], z[0], p[1], z[1])
        return expert_loss(
            plain, rebalanced, consistency, targets, self.weights, share, self.config
        )

    def _pass(self, images: Tensor, size: int) -> Any:
        with self.runtime.autocast():
            return self.network(_resized(images, size))


def training_size(config: AnyExperts, epoch: int, image_size: int) -> int:
    """Return the side, in pixels, of the images that the network is shown in an epoch."""
    if config.progressive_resizing:
        for until, part in GROWTH:
            if epoch < until * config.epochs:
                return max(int(part * image_size), min(SMALLEST_SIZE, image_size))
    return image_size


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[2] == size:
        return images
    return nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


@torch.no_grad()
def _check_sizes(backbone: nn.Module, config: AnyExperts, data: LongTailedData) -> None:
    """Try a network on the smallest images it will be shown, before any work.

    Raises:
        UserError: it takes whole images only.
    """
    size = training_size(config, 0, data.image_size)
    try:
        backbone.eval()(torch.zeros(1, data.channels, size, size))
    except RuntimeError as error:
        raise UserError(
            "experts: expected a network that takes images of any size with "
            f"experts.progressive_resizing, got one of {data.image_size} px only; set "
            "experts.progressive_resizing false"
        ) from error


@whole_batch("experts", "experts.batch_size")
def train_expert(
    role: str,
    architecture: str,
    data: LongTailedData,
    config: AnyExperts,
    flip: bool,
    runtime: Runtime,
    start: Weights | None = None,
) -> nn.Module:
    """Train one expert and return its backbone with the debiased classifier, in evaluation mode.

    Both views go through one forward pass, so batch-norm layers see them together.

    Args:
        role: ``observer``, ``teacher`` or a baseline's name; names the random streams and events.
        architecture: a name of `ltdd.models.ARCHITECTURES`.
        data: the long-tailed data.
        config: loss and schedule; `PlainExperts` is training without mixing or debiasing.
        flip: whether images may be mirrored.
        runtime: device, precision, seed.
        start: weights of everything but the classifier; None for fresh ones.

    Raises:
        UserError: the loss became NaN or infinite, a batch does not fit into memory, or the
            network cannot take the smaller images of ``progressive_resizing``.
    """
    with runtime.global_stream("experts", role, "parameters"):
        backbone = build_model(architecture, data.num_classes, data.image_size, data.channels)
        network: nn.Module = backbone
        if isinstance(config, ExpertsConfig):
            network = ExpertNetwork(backbone, data.num_classes, config)
    if start is not None:
        load_body(backbone, start)
    _check_sizes(backbone, config, data)
    network = network.to(runtime.device).to(memory_format=torch.channels_last).train()
    batches = Batches(data, config, flip, runtime)
    batch_size = min(config.batch_size, len(data.train_labels))
    steps = len(data.train_labels) // batch_size
    if config.min_steps is not None:
        enough = math.ceil(config.min_steps / steps)
        config = dataclasses.replace(config, epochs=max(config.epochs, enough))
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=adjustable_rate(config.learning_rate, runtime.device),
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=runtime.device.type == "cuda",
    )
    schedule, step_every_batch = _schedule(optimizer, config, steps)
    parallel = DataParallel(network, batch_size)
    objective = _Objective(parallel.network, batches, data, runtime)
    averaged = MovingAverage(network, EMA_DECAY) if config.averaging == "ema" else None

    def take(drawn: Any, share: Tensor, size: int) -> Tensor:
        loss = parallel.weighted(objective.loss(drawn, share, size))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        if averaged is not None:
            averaged.update()
        return parallel.mean(loss.detach())

    training = RecordedSteps(take, network, runtime, recordable=not parallel.divides)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if averaged is not None:
        parts["averaged"] = averaged
    course = Resumable(runtime)
    course.restore(parts)
    total, done = config.epochs * steps, course.first * steps + course.step
    with runtime.progress(total, f"experts: {role} ({architecture})", done) as progress:
        for epoch in course.epochs(config.epochs):
            generator = runtime.stream("experts", role, "epoch", epoch.number)
            order = torch.randperm(len(data.train_labels), generator=generator)
            share = torch.tensor(debias_progress(epoch.number, config.epochs))
            size = training_size(config, epoch.number, data.image_size)
            shown = order[: steps * batch_size].view(steps, batch_size)
            for number, indices in epoch.steps(shown, parts, generator):
                drawn = part_of(objective.draw(indices, generator), parallel.rows)
                epoch.losses.append(training(drawn, share, variant=size))
                if step_every_batch or number == steps:
                    schedule.step()
                progress.step(images=batch_size)
            first_step = epoch.number * steps + 1
            loss = mean_of_losses(epoch.losses, f"experts: {role}", first_step)
            runtime.log.write("train", stage="experts", role=role, epoch=epoch.number, loss=loss)
    if averaged is not None:
        module = _finished(averaged.module, objective, len(data.train_labels), parallel, role)
        return module.eval().requires_grad_(False)
    return backbone.eval().requires_grad_(False)


@torch.no_grad()
def _finished(
    network: nn.Module, objective: _Objective, images: int, parallel: DataParallel, role: str
) -> nn.Module:
    """Return the averaged backbone after its batch norms have seen an epoch of training views.

    Running statistics belong to the weights that made them; those of the last iterate do not fit.
    """
    generator = objective.runtime.stream("experts", role, "averaged")
    order = torch.randperm(images, generator=generator)

    def views() -> Iterator[Tensor]:
        for indices in order.split(parallel.batch_size):
            if len(indices) == parallel.batch_size:
                drawn = part_of(objective.draw(indices, generator), parallel.rows)
                yield objective.inputs(to_device(drawn, objective.runtime.device))

    with objective.runtime.autocast():
        update_bn(views(), network)
    return network.backbone if isinstance(network, ExpertNetwork) else network


def _schedule(
    optimizer: torch.optim.Optimizer, config: AnyExperts, steps: int
) -> tuple[LRScheduler, bool]:
    """Return the learning-rate schedule and whether it advances every batch."""
    if config.schedule == "cosine" and config.warmup_epochs is not None:
        rise = min(config.warmup_epochs, config.epochs)

        def factor(epoch: int) -> float:
            if epoch < rise:
                return (epoch + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (epoch + 1 - rise) / (config.epochs + 1 - rise)))

        return LambdaLR(optimizer, factor), False
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, config.epochs), False
    total = config.epochs * steps + 1
    one_cycle = OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=total,
        pct_start=max(0.2, 2 / total),  # one step up at least: over none, it divides by zero
        cycle_momentum=False,
    )
    return one_cycle, True
