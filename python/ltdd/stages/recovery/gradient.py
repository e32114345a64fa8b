"""Learn images that teach networks what real ones do: gradient matching.

DC (arXiv:2006.05929), DSA (2102.08259), IDC (2205.14959) and DREAM (2302.14416) are settings of it:

    for every fresh network: for every matching step:
        for every class c: d_c = distance(gradient of CE on real images, on synthetic ones)
        one SGD step of the images on sum_c d_c; then train the network

Classes are looked at one by one, each in its own real batch, so no imbalance enters the distance. A
class with fewer images than a batch shows all it has. Memory holds the images and their momentum,
and the graph of one class with at most ``real_batch`` and ``synthetic_batch`` images, whatever ipc.
All is in float32: a gradient of gradients wants it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.config import GradientMatching
from ltdd.data.augmentation.crops import paste, random_cut_box
from ltdd.data.augmentation.dsa import DsaMode, apply_dsa, draw_dsa, usable_operations
from ltdd.data.augmentation.student_views import one_hot
from ltdd.data.image_spec import ImageSpec
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks, whole_batch
from ltdd.engine.runtime import Runtime
from ltdd.engine.tensor_trees import to_device
from ltdd.models.inference import view_logits
from ltdd.stages.recovery.distances import rows_cosine, squared
from ltdd.stages.recovery.matching import Matching, match
from ltdd.stages.recovery.matching_networks import (
    RealImages,
    fresh_network,
    network_optimizer,
    train_step,
)
from ltdd.stages.recovery.synthetic_images import (
    SyntheticImages,
    augment_alike,
    to_channels_last,
)
from ltdd.stages.representatives import representatives
from ltdd.stages.run import InitialImages

DISTANCES = {"rows_cosine": rows_cosine, "squared": squared}


@whole_batch("recovery", "recovery.real_batch")
def match_gradients(
    start: InitialImages,
    data: LongTailedData,
    spec: ImageSpec,
    config: GradientMatching,
    runtime: Runtime,
) -> Tensor:
    """Return the images after matching.

    Args:
        start: the images to begin with, class-major.
        data: the real images.
        spec: form of the images.
        config: what is matched, and how long.
        runtime: device, seed, checkpoint.

    Returns:
        float32 (M, C, H, W) in [0, 1], on the CPU.

    Raises:
        UserError: a cross-entropy or a distance became NaN or infinite, or a batch does not fit
            into memory.
    """
    real = RealImages(data, runtime)
    images = SyntheticImages(start, spec, config, real.drawn(config.real_batch), runtime)
    match(_Gradients(images, real, spec, config, runtime), runtime)
    return images.images()


class _Gradients(Matching):
    """One network after another, and the images that are to teach each of them like real ones."""

    compared = "gradients"

    def __init__(
        self,
        images: SyntheticImages,
        real: RealImages,
        spec: ImageSpec,
        config: GradientMatching,
        runtime: Runtime,
    ) -> None:
        self._images, self._real, self._spec = images, real, spec
        self._config, self._runtime = config, runtime
        self.rounds, self.steps, self.logged = config.outer, config.inner, range(0)
        self._operations = usable_operations(config.augmentation, spec.flip)
        self._network_operations = usable_operations(config.network_augmentation, spec.flip)
        self._sizes = real.drawn(config.real_batch)
        self._chosen = [torch.zeros(size, dtype=torch.int64) for size in self._sizes]
        synthetic = min(config.synthetic_batch, images.of_class)
        self.seen = sum(self._sizes) + len(self._sizes) * synthetic
        self._chunks = Chunks("recovery", config.network_batch, runtime)

    def renew(self, number: int) -> None:
        """Start over with a fresh network."""
        config = self._config
        self._network = fresh_network(number, self._real.data, config.network, self._runtime)
        self._optimizer = network_optimizer(self._network, config)
        smallest = 4 if config.parameters == "convolutions" else 2
        self._matched = [p for p in self._network.parameters() if p.ndim >= smallest]
        self.parts = {
            "pixels": self._images.pixels,
            "images": self._images.optimizer,
            "network": self._network,
            "optimizer": self._optimizer,
            **{f"real{label}": chosen for label, chosen in enumerate(self._chosen)},
        }

    def begin(self) -> None:
        """Let the images start within their range."""
        if self._config.clamp:
            self._images.clamp()

    def advance(self, outer: int, inner: int) -> Tensor:
        """Take a matching step of all classes, then train the network.

        Returns:
            float64 (2,) on the CPU: the distance, and the cross-entropy of the real images, each a
            mean over classes.
        """
        config, classes = self._config, self._images.classes
        if config.representatives == "clusters" and inner % config.interval == 0:
            self._choose(outer, inner)
        losses = torch.zeros(len(classes.mine), 2, device=self._runtime.device)
        for row, label in zip(losses, classes.mine, strict=True):
            distance, entropy = self._distance(label, outer, inner)
            self._images.learn(label, distance)
            row.copy_(torch.stack([distance.detach(), entropy]))
        self._images.step()
        if inner + 1 < config.inner:  # what it learns after the last step is thrown away
            self._train_network(outer, inner)
        whole = classes.gather(losses, [1] * self._spec.num_classes)
        return torch.cat(whole).double().mean(0).cpu()

    def _distance(self, label: int, outer: int, inner: int) -> tuple[Tensor, Tensor]:
        """Return the distance of a class, and the cross-entropy of its real images."""
        config, images = self._config, self._images
        generator = self._runtime.stream("recovery", "matching", outer, inner, label)
        if config.representatives == "random":
            chosen = self._real.of_class(label, config.real_batch, generator)
        else:
            chosen = self._chosen[label]
        picked = None
        if images.of_class > config.synthetic_batch:
            order = torch.randperm(images.of_class, generator=generator)
            picked = order[: config.synthetic_batch].to(self._runtime.device)
        mode: DsaMode = "siamese" if config.augmentation_mode == "single" else "idc"
        real, synthetic = augment_alike(
            self._real.shown(chosen),
            images.shown(label, picked),
            self._operations,
            mode,
            generator,
        )
        wanted, entropy = self._gradients(real, label)
        taught, _ = self._gradients(synthetic, label, differentiable=True)
        return DISTANCES[config.distance](taught, wanted), entropy

    def _gradients(
        self, images: Tensor, label: int, differentiable: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the gradients of a class's cross-entropy by the matched weights, and itself."""
        labels = torch.full((len(images),), label, device=images.device)
        entropy = F.cross_entropy(self._network(images), labels)
        gradients = torch.autograd.grad(entropy, self._matched, create_graph=differentiable)
        return gradients, entropy.detach()

    def _choose(self, outer: int, inner: int) -> None:
        """Let the network choose the real images that stand for their class.

        Deviation: at most as many as the class has (the published code stops at a class of fewer),
        and of normalised images, as the network is trained on.
        """
        classes, found = self._images.classes, [torch.empty(0, dtype=torch.int64)]
        for label in classes.mine:
            members = self._real.members[label]

            def look(part: slice, members: Tensor = members) -> Tensor:
                shown = self._real.shown(members[part])
                return view_logits(self._network.features, shown, self._exact, self._chunks)

            features = torch.cat(list(self._chunks.map(look, len(members))))
            generator = self._runtime.stream("recovery", "clusters", outer, inner, label)
            found.append(members[representatives(features, self._sizes[label], generator)])
        for chosen, rows in zip(
            self._chosen, classes.gather(torch.cat(found), self._sizes), strict=True
        ):
            chosen.copy_(rows)

    @property
    def _exact(self) -> Runtime:
        return dataclasses.replace(self._runtime, precision="fp32")

    def _train_network(self, outer: int, inner: int) -> None:
        """Train the network between two matching steps."""
        config = self._config
        for epoch in range(config.network_epochs):
            generator = self._runtime.stream("recovery", "training", outer, inner, epoch)
            for images, labels in self._batches(generator):
                targets = one_hot(labels, self._spec.num_classes)
                if self._network_operations:
                    size, mode = self._spec.size, config.augmentation_mode
                    draw = draw_dsa(len(images), size, self._network_operations, mode, generator)
                    images = to_channels_last(apply_dsa(images, draw))
                if float(torch.rand((), generator=generator)) < config.network_cutmix:
                    images, targets = _mix(images, targets, generator)
                train_step(self._network, self._optimizer, images, targets)

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and labels of an epoch, without graph."""
        config, real = self._config, self._real
        if config.network_data == "synthetic":
            order = torch.randperm(len(self._images.labels), generator=generator)
            for picked in order.to(self._runtime.device).split(config.network_batch):
                yield self._images.batch(picked), self._images.labels[picked]
            return
        balanced = config.network_data == "balanced"
        for indices in real.of_all(config.network_images, balanced, generator).split(
            config.network_batch
        ):
            yield real.shown(indices), real.labels(indices)


def _mix(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste a box of other images into images (CutMix), and mix the class probabilities alike."""
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    height, width = images.shape[2:]
    box = to_device(random_cut_box(height, width, generator), images.device)
    mixed = to_channels_last(paste(images, images[partner], box))
    kept = box.kept.float()
    return mixed, kept * targets + (1 - kept) * targets[partner]
