"""Networks that real and synthetic images are matched in: made, drawn for, and trained a little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltdd.config import DistributionMatching, GradientMatching
from ltdd.data.augmentation.crops import normalize
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.models import Network, build_model
from ltdd.stages.losses import soft_cross_entropy


class RealImages:
    """Draws real images, and shows them as networks see them.

    Args:
        data: the long-tailed data.
        runtime: device.

    Attributes:
        members: int64 (n_c,) each, the training images of every class.
    """

    def __init__(self, data: LongTailedData, runtime: Runtime) -> None:
        self.data, self._device = data, runtime.device
        self.members = [data.members(label) for label in range(data.num_classes)]
        self._moments = data.normalization.tensors(runtime.device)

    def drawn(self, most: int) -> list[int]:
        """Return how many images `of_class` draws of every class."""
        return [min(most, len(members)) for members in self.members]

    def of_class(self, label: int, most: int, generator: torch.Generator) -> Tensor:
        """Draw images of a class without replacement; all of them where there are no more."""
        members = self.members[label]
        return members[torch.randperm(len(members), generator=generator)[:most]]

    def of_all(self, count: int, balanced: bool, generator: torch.Generator) -> Tensor:
        """Draw images of all classes.

        Args:
            count: how many; not more than there are unless balanced.
            balanced: as many of every class, with replacement, else as they lie.
            generator: CPU generator.
        """
        if not balanced:
            return torch.randperm(len(self.data.train_labels), generator=generator)[:count]
        labels = torch.randperm(count, generator=generator) % len(self.members)
        places = torch.rand(count, generator=generator, dtype=torch.float64)
        return torch.stack(
            [
                self.members[label][int(place * len(self.members[label]))]
                for label, place in zip(labels.tolist(), places.tolist(), strict=True)
            ]
        )

    def shown(self, indices: Tensor) -> Tensor:
        """Return training images by their positions, float32 (N, C, H, W), normalised."""
        images = self.data.train_images[indices].to(self._device, non_blocking=True)
        return normalize(images, *self._moments)

    def labels(self, indices: Tensor) -> Tensor:
        """Return their classes, int64 (N,), on the device."""
        return self.data.train_labels[indices].to(self._device, non_blocking=True)


def fresh_network(
    number: int, data: LongTailedData, architecture: str, runtime: Runtime
) -> Network:
    """Return an untrained network; its number names the stream of its parameters."""
    with runtime.global_stream("recovery", "network", number):
        network = build_model(architecture, data.num_classes, data.image_size, data.channels)
    return network.to(runtime.device).to(memory_format=torch.channels_last).train()


def network_optimizer(
    network: nn.Module, config: GradientMatching | DistributionMatching
) -> torch.optim.Optimizer:
    """Return the SGD of a network."""
    return torch.optim.SGD(
        network.parameters(),
        lr=config.network_learning_rate,
        momentum=config.network_momentum,
        weight_decay=config.network_weight_decay,
    )


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Train a network on a batch.

    Args:
        network: in float32.
        optimizer: of its parameters.
        images: normalised, (N, C, H, W).
        targets: class probabilities (N, K).

    Returns:
        The cross-entropy, and the share of images that the network got right before the step.
    """
    logits = network(images)
    loss = soft_cross_entropy(logits, targets)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    right = (logits.detach().argmax(1) == targets.argmax(1)).float().mean()
    return loss.detach(), right
