"""Start from whole real images, several of them shrunk into one (arXiv:2205.14959, 2302.14416)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ltdd.config import Tiled
from ltdd.data.formation import tile
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.runtime import Runtime
from ltdd.models import build_model
from ltdd.stages.initialization.random_real import draw_random_real
from ltdd.stages.initialization.whole_images import seen_in_class
from ltdd.stages.representatives import representatives


@dataclass(frozen=True)
class Tiling:
    """Whole real images, f x f of them shrunk into every synthetic one."""

    data: LongTailedData
    ipc: int
    config: Tiled
    runtime: Runtime
    chunks: Chunks

    def images(self, members: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Return the images of a class, and the real image in the first block of each.

        A class with fewer than ipc * f^2 images starts over.
        """
        tiles = self.config.tiles
        wanted = self.ipc * tiles**2
        if self.config.choice == "random":
            source = draw_random_real(members, wanted, label, self.runtime)
        else:
            chosen = self._representatives(members, label, wanted)
            source = chosen[torch.arange(wanted) % len(chosen)]
        whole = tile(self.data.train_images[source] / 255, tiles, self.config.resampling)
        return whole.clamp(0, 1), source[:: tiles**2]

    def _representatives(self, members: Tensor, label: int, wanted: int) -> Tensor:
        """Return at most as many images as wanted, one near the centre of each cluster.

        Deviation: networks see normalised images, as everywhere; the published code clusters the
        features of images that are not.
        """
        data, runtime, device = self.data, self.runtime, self.runtime.device
        with runtime.global_stream("initialization", "network"):
            name, size = self.config.network, data.image_size
            network = build_model(name, data.num_classes, size, data.channels)
        network = network.to(device).to(memory_format=torch.channels_last).eval()
        look = cast(Callable[[Tensor], Tensor], network.features)
        features = seen_in_class(look, data, members, label, runtime, self.chunks)
        generator = runtime.stream("initialization", "clusters", label)
        return members[representatives(features, wanted, generator)]
