"""The images that matching learns, class by class, and what the networks are shown of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltdd.config import DistributionMatching, GradientMatching
from ltdd.data.augmentation.dsa import DsaMode, apply_dsa, draw_dsa
from ltdd.data.formation import FILL, decode
from ltdd.data.image_spec import ImageSpec
from ltdd.engine.distributed.units import Shares
from ltdd.engine.runtime import Runtime
from ltdd.stages.run import InitialImages


class SyntheticImages:
    """Images in optimisation by SGD, a part of them for every class.

    The loss of a class has a gradient by its own images alone, so a step on the sum over classes is
    the same as a step for every class, and every rank looks at some of the classes.

    Deviation: of IDC and IDM, which take the latter. In their code the momentum moves the images of
    all classes in each of these steps; here a class moves once, which over time adds up to as much.

    Args:
        start: where they begin, class-major.
        spec: form of the images.
        config: learning rate, momentum, formation.
        real: real images of every class that a step looks at: they decide which rank has which.
        runtime: device.

    Attributes:
        classes: divided among the ranks.
        pixels: float32 (K, ipc, C, H, W), in the unit that the learning rate is for.
        optimizer: of the pixels.
        of_class: ipc * f^2, training images of a class.
        labels: int64 (K * ipc * f^2,), of all of them.
    """

    def __init__(
        self,
        start: InitialImages,
        spec: ImageSpec,
        config: GradientMatching | DistributionMatching,
        real: Sequence[int],
        runtime: Runtime,
    ) -> None:
        self._config = config
        self._mean, self._std = (
            v.view(-1, 1, 1) for v in spec.normalization.tensors(runtime.device)
        )
        images = start.images.to(runtime.device).view(spec.num_classes, -1, *start.images.shape[1:])
        unit = config.pixels == "unit"
        self.pixels = images.clone() if unit else (images - self._mean) / self._std
        self._low, self._high = (self._unit(torch.full_like(self._mean, v)) for v in (0.0, 1.0))
        self._fill = self._unit(torch.full_like(self._mean, FILL))
        self._leaves = [part.detach().requires_grad_() for part in self.pixels]
        rate, ipc = config.image_learning_rate, self.pixels.shape[1]
        if config.scaled_rate:
            rate *= ipc / 10 * (spec.size / 32) ** 2
        self.optimizer = torch.optim.SGD(self._leaves, lr=rate, momentum=config.image_momentum)
        self.of_class = ipc * config.formation**2
        self.classes = Shares([count + self.of_class for count in real])
        labels = torch.arange(spec.num_classes, device=runtime.device)
        self.labels = labels.repeat_interleave(self.of_class)

    def _unit(self, pixels: Tensor) -> Tensor:
        """Turn pixels of [0, 1] into the unit of the learning rate."""
        return pixels if self._config.pixels == "unit" else (pixels - self._mean) / self._std

    def shown(self, label: int, picked: Tensor | None = None) -> Tensor:
        """Return training images of a class as networks see them; differentiable in its pixels.

        Args:
            label: the class.
            picked: int64 (N,), which of its ipc * f^2; None for all.

        Returns:
            float32 (N, C, H, W), normalised, channels_last.
        """
        return self._decoded(self._leaves[label], picked)

    def batch(self, picked: Tensor) -> Tensor:
        """Return training images of all classes, by their places in `labels`, without graph."""
        return self._decoded(self.pixels.flatten(0, 1), picked)

    def _decoded(self, images: Tensor, picked: Tensor | None) -> Tensor:
        factor = self._config.formation
        if picked is None:
            whole = decode(images, factor, self._fill)
        else:
            blocks = decode(images[picked // factor**2], factor, self._fill)
            rows = torch.arange(len(picked), device=images.device) * factor**2
            whole = blocks[rows + picked % factor**2]
        if self._config.pixels == "unit":
            whole = (whole - self._mean) / self._std
        return whole.contiguous(memory_format=torch.channels_last)

    def learn(self, label: int, loss: Tensor) -> None:
        """Take in the gradient of the loss of a class."""
        leaf = self._leaves[label]
        (leaf.grad,) = torch.autograd.grad(loss, leaf)

    def step(self) -> None:
        """Move the images by the gradients that all ranks have taken in."""
        if len(self.classes.mine) < len(self._leaves):
            own = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
            rows = torch.cat([self.pixels[0, :0], *own])
            gradients = self.classes.gather(rows, [len(leaf) for leaf in self._leaves])
            for leaf, gradient in zip(self._leaves, gradients, strict=True):
                leaf.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the pixels back into their range."""
        self.pixels.copy_(torch.clamp(self.pixels, self._low, self._high))

    def images(self) -> Tensor:
        """Return the images, float32 (M, C, H, W) in [0, 1], on the CPU."""
        pixels = self.pixels.detach().flatten(0, 1)
        if self._config.pixels != "unit":
            pixels = pixels * self._std + self._mean
        return pixels.clamp(0, 1).cpu()


def augment_alike(
    real: Tensor,
    synthetic: Tensor,
    operations: tuple[str, ...],
    mode: DsaMode,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Change real and synthetic images in the same way, differentiably.

    Args:
        real, synthetic: normalised, (N, C, H, W) each.
        operations: to choose from; empty for none.
        mode: ``siamese`` or ``idc``.
        generator: CPU generator.
    """
    if not operations:
        return real, synthetic
    draw = draw_dsa(1, real.shape[2], operations, mode, generator, shared=True)
    return to_channels_last(apply_dsa(real, draw)), to_channels_last(apply_dsa(synthetic, draw))


def to_channels_last(images: Tensor) -> Tensor:
    """Return images in the memory layout that networks compute in."""
    return images.contiguous(memory_format=torch.channels_last)
