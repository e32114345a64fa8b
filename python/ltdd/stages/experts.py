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
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from ltdd.chunks import whole_batch
from ltdd.config import ExpertsConfig
from ltdd.data.augment import crop, cut_box, normalise, pad_crop_flip, paste, random_crops
from ltdd.data.colour import distort
from ltdd.data.datasets import LongTailedData
from ltdd.errors import UserError
from ltdd.losses import (
    bayias_loss,
    class_debias_weights,
    consistency_loss,
    debias_progress,
    expert_loss,
    soft_cross_entropy,
)
from ltdd.models import Network, build_model
from ltdd.passes import TrainingPasses
from ltdd.runtime import Runtime, mean_of_losses

PADDING_REFERENCE_SIZE = 32  # pixels at which `crop_padding` is stated
GROWTH = ((0.4, 0.5), (0.7, 0.75))  # until this share of the epochs, this share of the image size
SMALLEST_SIZE = 16  # pixels to which `progressive_resizing` shrinks images
EMA_DECAY = 0.999  # per step, of `averaging: ema`
SWA_SHARE = 0.25  # of the epochs, at the end, that `averaging: swa` averages
UNIMIX_ALPHA = 0.8  # published
UNIMIX_POWERS = {10: -0.5, math.inf: -0.1}  # tau, published for up to 10 classes and for 100


class ExpertNetwork(nn.Module):
    """A backbone with the heads that only training needs.

    Args:
        backbone: its own classifier is the debiased one.
        num_classes: K.
        config: ``single_head`` lets the plain term use the debiased classifier too.
    """

    def __init__(self, backbone: Network, num_classes: int, config: ExpertsConfig) -> None:
        super().__init__()
        width, hidden = backbone.feature_dim, config.projection_dim
        self.backbone = backbone
        self.plain = backbone.classifier if config.single_head else nn.Linear(width, num_classes)
        self.projection = nn.Linear(width, hidden)
        self.prediction = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return plain logits, debiased logits, projection z and prediction p."""
        features = self.backbone.features(x)
        z = self.projection(features)
        return self.plain(features), self.backbone.classifier(features), z, self.prediction(z)


class _Batches:
    """Draws augmented, normalised batches from images that stay where they are as uint8."""

    def __init__(
        self, data: LongTailedData, config: ExpertsConfig, flip: bool, runtime: Runtime
    ) -> None:
        self.device = runtime.device
        # On the device where there is room; a larger set is gathered batch by batch.
        small = _fits(data.train_images, runtime.device)
        self.images = data.train_images.to(runtime.device) if small else data.train_images
        self.labels = data.train_labels.to(runtime.device)
        self.mean = torch.tensor(data.mean, device=runtime.device)
        self.std = torch.tensor(data.std, device=runtime.device)
        self.num_classes, self.flip, self.config = data.num_classes, flip, config
        self.padding = round(config.crop_padding * data.image_size / PADDING_REFERENCE_SIZE)
        self.counts = torch.tensor(data.counts, dtype=torch.float64)
        self.draw_weights = self.counts.pow(-config.resampling_power)[data.train_labels]

    def view(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        images = self.images[self._at(indices, self.images)].to(self.device)
        if self.config.color_jitter is not None:
            images = distort(images / 255, self.config.color_jitter, generator)
        if self.config.crop_min_scale is not None:
            crops = random_crops(len(indices), self.config.crop_min_scale, self.flip, generator)
            return crop(normalise(images, self.mean, self.std), crops)
        picked = pad_crop_flip(images, self.padding, self.flip, generator)
        return normalise(picked, self.mean, self.std)

    def classes(self, indices: Tensor) -> Tensor:
        return self.labels[self._at(indices, self.labels)]

    def one_hot(self, indices: Tensor) -> Tensor:
        return nn.functional.one_hot(self.classes(indices), self.num_classes).float()

    @staticmethod
    def _at(indices: Tensor, table: Tensor) -> Tensor:
        """Return the indices where the table is, without waiting for that device."""
        return indices.to(table.device, non_blocking=True)

    def mixed_views(
        self, plain: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the MixUp and the CutMix view (2B, C, H, W) and their label probabilities."""
        resampled = torch.multinomial(
            self.draw_weights, len(plain), replacement=True, generator=generator
        )
        first, second = self.view(plain, generator), self.view(plain, generator)
        other_first, other_second = (self.view(resampled, generator) for _ in range(2))
        y, other_y = self.one_hot(plain), self.one_hot(resampled)
        # One lam for both views: they must show the same mixture to be consistent.
        lam, row, column = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        box = cut_box(self.images.shape[2], self.images.shape[3], lam, row, column)
        mixup = lam * first + (1 - lam) * other_first
        cutmix = paste(second, other_second, box)
        targets = (lam * y + (1 - lam) * other_y, box.kept * y + (1 - box.kept) * other_y)
        return torch.cat([mixup, cutmix]), targets

    def unimixed(self, plain: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Mix each image with one of the batch, tail classes more often and with more weight.

        Returns:
            The mixed view (B, C, H, W), the partners' places (B,) and lam (B,), an image's share.
        """
        power = next(tau for most, tau in UNIMIX_POWERS.items() if self.num_classes <= most)
        own = self.counts[self.classes(plain).cpu()]
        partner = torch.multinomial(
            own.pow(power), len(plain), replacement=True, generator=generator
        )
        other = own[partner]
        seed = int(torch.randint(2**62, (), generator=generator))
        beta = np.random.default_rng(seed).beta(UNIMIX_ALPHA, UNIMIX_ALPHA, len(plain))
        lam = (torch.from_numpy(beta) + other / (own + other)).float()
        lam = torch.where(lam > 1, lam - 1, lam).to(self.device)
        view, share = self.view(plain, generator), lam.view(-1, 1, 1, 1)
        partner = partner.to(self.device)
        return share * view + (1 - share) * view[partner], partner, lam


class _Objective:
    """The loss of one step of training."""

    def __init__(
        self, network: ExpertNetwork, batches: _Batches, data: LongTailedData, runtime: Runtime
    ) -> None:
        self.batches, self.counts = batches, data.counts
        self.config, self.runtime = batches.config, runtime
        weights = class_debias_weights(
            data.counts, self.config.debias_power, self.config.weight_norm
        )
        self.weights = weights.to(runtime.device)
        passed: nn.Module = network if self.config.loss == "rldd" else network.backbone
        self.passes = TrainingPasses(passed, runtime)

    def inputs(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return images as the network is shown them in a step, both views together."""
        if self.config.loss == "rldd":
            return self.batches.mixed_views(indices, generator)[0]
        if self.config.loss == "unimix":
            return self.batches.unimixed(indices, generator)[0]
        return self.batches.view(indices, generator)

    def loss(self, indices: Tensor, generator: torch.Generator, share: float, size: int) -> Tensor:
        """Return the loss of a batch; ``share`` is that of the rebalanced term.

        Images are drawn and mixed whole, then shown with sides of ``size`` pixels.
        """
        batches = self.batches
        if self.config.loss == "ce":
            inputs, labels = batches.view(indices, generator), batches.one_hot(indices)
            return soft_cross_entropy(self.passes(_resized(inputs, size)), labels)
        if self.config.loss == "unimix":
            inputs, partner, kept = batches.unimixed(indices, generator)
            logits, classes = self.passes(_resized(inputs, size)), batches.classes(indices)
            return bayias_loss(logits, classes, classes[partner], kept, self.counts)
        inputs, targets = batches.mixed_views(indices, generator)
        plain, rebalanced, z, p = (o.chunk(2) for o in self.passes(_resized(inputs, size)))
        consistency = consistency_loss(p[0], z[0], p[1], z[1])
        return expert_loss(
            plain, rebalanced, consistency, targets, self.weights, share, self.config
        )


def _fits(images: Tensor, device: torch.device) -> bool:
    """Return whether images may be copied to a device: a quarter of its free memory holds them."""
    return device.type == "cpu" or 4 * images.numel() < torch.cuda.mem_get_info(device)[0]


def training_size(config: ExpertsConfig, epoch: int, image_size: int) -> int:
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
def _check_sizes(backbone: nn.Module, config: ExpertsConfig, data: LongTailedData) -> None:
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
    config: ExpertsConfig,
    flip: bool,
    runtime: Runtime,
) -> nn.Module:
    """Train one expert and return its backbone with the debiased classifier, in evaluation mode.

    Both views go through one forward pass, so batch-norm layers see them together.

    Args:
        role: ``observer``, ``teacher`` or a baseline's name; names the random streams and events.
        architecture: a name of `ltdd.models.ARCHITECTURES`.
        data: the long-tailed data.
        config: loss and schedule; ``loss="ce"`` is plain training without mixing or debiasing.
        flip: whether images may be mirrored.
        runtime: device, precision, seed.

    Raises:
        UserError: the loss became NaN or infinite, a batch does not fit into memory, or the
            network cannot take the smaller images of ``progressive_resizing``.
    """
    with runtime.global_stream("experts", role, "parameters"):
        backbone = build_model(architecture, data.num_classes, data.image_size, data.channels)
        network = ExpertNetwork(backbone, data.num_classes, config)
    _check_sizes(backbone, config, data)
    network = network.to(runtime.device).to(memory_format=torch.channels_last).train()
    batches = _Batches(data, config, flip, runtime)
    batch_size = min(config.batch_size, len(data.train_labels))
    steps = len(data.train_labels) // batch_size
    if config.min_steps is not None:
        enough = math.ceil(config.min_steps / steps)
        config = dataclasses.replace(config, epochs=max(config.epochs, enough))
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=runtime.device.type == "cuda",
    )
    schedule, step_every_batch = _schedule(optimizer, config, steps)
    objective, averaged = _Objective(network, batches, data, runtime), _averaged(network, config)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if averaged is not None:
        parts["averaged"] = averaged
    restored = runtime.checkpoint.restore()
    if restored:
        for name, part in parts.items():
            part.load_state_dict(restored[name])
    start, step = restored.get("epoch", 0), restored.get("step", 0)
    title = f"experts: {role} ({architecture})"
    with runtime.progress(config.epochs * steps, title, start * steps + step) as progress:
        for epoch in range(start, config.epochs):
            generator = runtime.stream("experts", role, "epoch", epoch)
            order = torch.randperm(len(data.train_labels), generator=generator)
            share, first, losses = debias_progress(epoch, config.epochs), 0, list[Tensor]()
            size = training_size(config, epoch, data.image_size)
            if restored and epoch == start:  # in the middle of an epoch
                first, losses = step, restored["losses"]
                generator.set_state(restored["generator"])
            drawn = order[: steps * batch_size].view(steps, batch_size)
            for number, indices in enumerate(drawn[first:], first + 1):
                loss = objective.loss(indices, generator, share, size)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                if step_every_batch or number == steps:
                    schedule.step()
                if averaged is not None and _joins(config, epoch, number == steps):
                    averaged.update_parameters(network)
                losses.append(loss.detach())
                progress.step(images=batch_size)
                runtime.checkpoint.step(
                    **parts,
                    epoch=epoch,
                    step=number,
                    losses=losses,
                    generator=generator.get_state(),
                )
            mean_loss = mean_of_losses(losses, f"experts: {role}", epoch * steps + 1)
            runtime.log.write("train", stage="experts", role=role, epoch=epoch, loss=mean_loss)
    if averaged is not None:
        backbone = _finished(averaged, objective, len(data.train_labels), batch_size, role)
    return backbone.eval().requires_grad_(False)


def _averaged(network: ExpertNetwork, config: ExpertsConfig) -> AveragedModel | None:
    if config.averaging == "none":
        return None
    rule = get_ema_multi_avg_fn(EMA_DECAY) if config.averaging == "ema" else None
    return AveragedModel(network, multi_avg_fn=rule)


def _joins(config: ExpertsConfig, epoch: int, last_step: bool) -> bool:
    """Return whether the weights after a step count for the average."""
    if config.averaging == "ema":
        return True
    return last_step and epoch >= math.floor((1 - SWA_SHARE) * config.epochs)


@torch.no_grad()
def _finished(
    averaged: AveragedModel, objective: _Objective, images: int, batch_size: int, role: str
) -> Network:
    """Return the averaged backbone after its batch norms have seen an epoch of training views.

    Running statistics belong to the weights that made them; those of the last iterate do not fit.
    """
    network = cast(ExpertNetwork, averaged.module)
    generator = objective.runtime.stream("experts", role, "averaged")
    order = torch.randperm(images, generator=generator)

    def views() -> Iterator[Tensor]:
        for indices in order.split(batch_size):
            if len(indices) == batch_size:
                yield objective.inputs(indices, generator)

    with objective.runtime.autocast():
        update_bn(views(), network)
    return network.backbone


def _schedule(
    optimizer: torch.optim.Optimizer, config: ExpertsConfig, steps: int
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
