"""Learn images that networks in training see as they see real ones: distribution matching.

IDM (arXiv:2307.09742) and CSDM (2603.01698) are settings of it:

    for every iteration: one network of the pool looks
        for every class c: d_c = distance(features of real images, of synthetic ones)
                                 + w * accuracy in percent * CE of the synthetic ones
        one SGD step of the images on the sum; then train some of the pool

Classes are looked at one by one, so their means know no imbalance, though the networks do unless
they are trained on as many images of every class. Memory holds the images and their momentum, the
pool with its optimizers, and the graph of one class: all its ipc * f^2 training images, whose mean
it is about, so it grows with ipc. All is in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.config import DistributionMatching
from ltdd.data.augmentation.dsa import usable_operations
from ltdd.data.image_spec import ImageSpec
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks, whole_batch
from ltdd.engine.runtime import Runtime
from ltdd.models import Network
from ltdd.models.inference import view_logits
from ltdd.stages.recovery.distances import Spectrum, characteristic
from ltdd.stages.recovery.matching import Matching, match
from ltdd.stages.recovery.matching_networks import RealImages
from ltdd.stages.recovery.network_pool import Member, NetworkPool
from ltdd.stages.recovery.synthetic_images import (
    SyntheticImages,
    augment_alike,
)
from ltdd.stages.run import InitialImages

LOG_EVERY = 10  # iterations between two events
SCALE_SAMPLE = 1000  # images, of all classes, whose distances give the scale of frequencies


@whole_batch("recovery", "recovery.real_batch")
def match_distributions(
    start: InitialImages,
    data: LongTailedData,
    spec: ImageSpec,
    config: DistributionMatching,
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
    match(_Distributions(images, real, spec, config, runtime), runtime)
    return images.images()


def amplitude_weights(counts: Sequence[int], head: float, tail: float) -> list[float]:
    """Return the share of amplitudes in the distance of every class.

    Linear in the logarithm of the class size from ``tail`` to ``head``, and half-way between them
    for all where classes have one size. That the head has more is arXiv:2603.01698; the form is
    ours.

    Args:
        counts: training images of every class.
        head, tail: shares of the largest and the smallest class.
    """
    smallest, span = min(counts), math.log(max(counts) / min(counts))
    places = [math.log(count / smallest) / span if span else 0.5 for count in counts]
    return [tail + (head - tail) * place for place in places]


class _Distributions(Matching):
    """The images, the real ones, and the pool of networks that look at both."""

    compared, rounds = "features", 1

    def __init__(
        self,
        images: SyntheticImages,
        real: RealImages,
        spec: ImageSpec,
        config: DistributionMatching,
        runtime: Runtime,
    ) -> None:
        self._images, self._real, self._spec = images, real, spec
        self._config, self._runtime = config, runtime
        self._exact = dataclasses.replace(runtime, precision="fp32")
        self.steps, self.logged = config.iterations, range(0, config.iterations, LOG_EVERY)
        self._pool = NetworkPool(real, config, runtime)
        self.parts = {"pixels": images.pixels, "images": images.optimizer, "pool": self._pool}
        self._operations = usable_operations(config.augmentation, spec.flip)
        self._chunks = Chunks("recovery", config.network_batch, runtime)
        head, tail = config.amplitude_head, config.amplitude_tail
        self._amplitudes = amplitude_weights(real.data.counts, head, tail)
        self._directions: Tensor | None = None
        self.seen = sum(real.drawn(config.real_batch)) + len(images.labels)

    def renew(self, number: int) -> None:
        """Leave the pool as it is: there is one round."""

    def begin(self) -> None:
        """Fill the pool."""
        for _ in range(self._config.pool_start):
            self._pool.admit()

    def advance(self, number: int, iteration: int) -> Tensor:
        """Take a step of all classes, as one network sees them, then train some networks.

        Returns:
            float64 (2,) on the CPU: distance and cross-entropy, each a mean over classes.
        """
        config, classes = self._config, self._images.classes
        if config.pool_period and iteration and iteration % config.pool_period == 0:
            self._pool.admit()
        generator = self._runtime.stream("recovery", "pool", iteration)
        member = self._pool.draw(generator)
        member.network.eval()
        if not self._operations and member.reality is None:
            member.reality = self._reality(member)
        losses = torch.zeros(len(classes.mine), 2, device=self._runtime.device)
        for row, label in zip(losses, classes.mine, strict=True):
            distance, entropy = self._distance(member, label, iteration)
            weight = config.ce_weight * 100 * member.accuracy
            self._images.learn(label, distance + weight * entropy)
            row.copy_(torch.stack([distance.detach(), entropy.detach()]))
        self._images.step()
        member.network.train()
        self._pool.train(iteration, generator)
        whole = classes.gather(losses, [1] * self._spec.num_classes)
        return torch.cat(whole).double().mean(0).cpu()

    def _distance(self, member: Member, label: int, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the distance of a class, and the cross-entropy of its synthetic images."""
        network, synthetic = member.network, self._images.shown(label)
        if member.reality is None:
            generator = self._runtime.stream("recovery", "matching", iteration, label)
            chosen = self._real.of_class(label, self._config.real_batch, generator)
            shown = self._real.shown(chosen)
            shown, synthetic = augment_alike(
                shown, synthetic, self._operations, "siamese", generator
            )
            reality: Tensor | Spectrum = self._features(network, shown).mean(0)
        else:
            reality = member.reality[label]
        features = network.features(synthetic)
        labels = torch.full((len(features),), label, device=features.device)
        entropy = F.cross_entropy(network.classifier(features), labels)
        if isinstance(reality, Spectrum):
            seen = Spectrum.of(features, self._frequencies(member))
            return characteristic(seen, reality, self._amplitudes[label]), entropy
        return (features.mean(0) - reality).square().sum(), entropy

    @torch.no_grad()
    def _reality(self, member: Member) -> dict[int, Tensor] | dict[int, Spectrum]:
        """Return what a network makes of the bare real images of this rank's classes."""
        generator = self._runtime.stream("recovery", "real", member.number, member.steps)
        num_classes, most = self._spec.num_classes, self._config.real_batch
        drawn = [self._real.of_class(label, most, generator) for label in range(num_classes)]
        classes = self._images.classes
        seen = {
            label: self._features(member.network, self._real.shown(drawn[label]))
            for label in classes.mine
        }
        if self._config.distance == "mean":
            return {label: features.mean(0) for label, features in seen.items()}
        share = max(1, SCALE_SAMPLE // num_classes)
        none = torch.empty(0, member.network.feature_dim, device=self._runtime.device)
        sample = torch.cat([none, *(features[:share] for features in seen.values())])
        whole = classes.gather(sample, [min(share, len(rows)) for rows in drawn])
        member.scale = 1 / _median_distance(torch.cat(whole))
        frequencies = self._frequencies(member)
        return {label: Spectrum.of(features, frequencies) for label, features in seen.items()}

    def _features(self, network: Network, shown: Tensor) -> Tensor:
        return view_logits(network.features, shown, self._exact, self._chunks)

    def _frequencies(self, member: Member) -> Tensor:
        """Return frequencies (T, D): the same directions for all networks, scaled to each."""
        if self._directions is None:
            generator = self._runtime.stream("recovery", "frequencies")
            shape = self._config.frequencies, member.network.feature_dim
            drawn = torch.randn(shape, generator=generator)
            self._directions = drawn.to(self._runtime.device)
        return self._directions * member.scale


def _median_distance(features: Tensor) -> float:
    """Return the median distance between different rows (N, D); 1 if all are alike."""
    distances = torch.cdist(features, features)
    rows, columns = torch.triu_indices(len(features), len(features), 1, device=features.device)
    middle = float(distances[rows, columns].median()) if len(features) > 1 else 0.0
    return middle or 1.0
