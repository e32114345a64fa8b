"""What an expert minimises in a step (arXiv:2511.18858, Eq. 5-7).

Every step mixes a plainly drawn batch A with a resampled batch R twice, once by MixUp and once by
CutMix. Two classifiers share the backbone: a plain one that dominates early and a class-debiased
one that takes over as ``(e/T)^2``; a SimSiam-like term keeps the two views' projections consistent.
Only the backbone and the debiased classifier are kept. Two other losses are there to compare with:
plain cross-entropy, and UniMix (arXiv:2111.03874). Whatever the loss, an expert may also imitate
the logits of a stronger network, its master (arXiv:1503.02531).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltdd.config import ExpertsConfig, UniMixExperts
from ltdd.data.augmentation.expert_batches import (
    Batches,
    Drawn,
    Labelled,
    Mixture,
    Pairs,
)
from ltdd.data.augmentation.student_views import one_hot
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.models import Network
from ltdd.stages.losses import (
    bayias_loss,
    class_debias_weights,
    consistency_loss,
    expert_loss,
    matching_loss,
    soft_cross_entropy,
)


class Master(NamedTuple):
    """A stronger network that an expert imitates.

    Attributes:
        network: frozen, in evaluation mode, on the runtime's device.
        shift: (K,), taken off its logits.
    """

    network: nn.Module
    shift: Tensor


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


class Objective:
    """The loss of one step of training: an expert's own, or with a master.

    ``(1 - w) * own + w * T^2 * KL(softmax(m / T) || softmax(s / T))``, m the master's logits and s
    those of the classifier that is kept, on every view as it was mixed (arXiv:1503.02531).
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Batches,
        data: LongTailedData,
        runtime: Runtime,
        master: Master | None = None,
    ) -> None:
        self.network, self.batches, self.runtime = network, batches, runtime
        self.master = master
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
        own, logits, views = self._own(drawn, share, size)
        if self.master is None:
            return own
        with torch.no_grad(), self.runtime.autocast():
            wanted = self.master.network(views).float() - self.master.shift
        config = self.batches.config
        temperature, weight = config.distil_temperature, config.distil_share
        distance = matching_loss(logits.float(), wanted, "kl", temperature)
        return (1 - weight) * own + weight * temperature**2 * distance

    def _own(self, drawn: Drawn, share: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss without a master, the logits that are kept, and the views as shown."""
        batches = self.batches
        if isinstance(drawn, Labelled):
            views = batches.view(drawn.shown)
            logits = self._pass(views, size)
            targets = one_hot(drawn.labels, batches.num_classes)
            return soft_cross_entropy(logits, targets), logits, views
        if isinstance(drawn, Pairs):
            views, labels = batches.unimix(drawn), drawn.labels
            logits = self._pass(views, size)
            first, others = labels[: len(drawn.partner)], labels[drawn.partner]
            return bayias_loss(logits, first, others, drawn.lam, self.counts), logits, views
        views, targets = batches.mix_views(drawn)
        plain, rebalanced, z, p = self._pass(views, size)
        consistency = consistency_loss(p, z)
        own = expert_loss(plain, rebalanced, consistency, targets, self.weights, share, self.config)
        return own, rebalanced, views

    def _pass(self, images: Tensor, size: int) -> Any:
        with self.runtime.autocast():
            return self.network(_resized(images, size))


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[2] == size:
        return images
    return nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
