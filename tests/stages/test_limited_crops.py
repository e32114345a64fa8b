"""RDED's start: crops of some images of a class, stitched; classes of 1, 2 and 5 images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.stripes import make_data
from torch import Tensor, nn

from ltdd.config import DistillConfig, InitializationConfig
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.preflight import check_tiles
from ltdd.stages.initialization import initial_images
from ltdd.stages.initialization.crops import shrink, stitch
from ltdd.stages.run import InitialImages

COUNTS = (40, 5, 2, 1)
SETTINGS = InitializationConfig(images_per_class=10, crops_per_image=5)


class Teacher(nn.Module):
    """Likes bright images in every class; keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        bright = images.mean(dim=(1, 2, 3))
        return torch.stack([bright, bright.square(), bright, -bright], dim=1)


def start(
    runtime: Runtime, ipc: int, teacher: nn.Module | None = None, **settings: int
) -> InitialImages:
    config = dataclasses.replace(SETTINGS, **settings)
    return initial_images(teacher or Teacher(), make_data(COUNTS), ipc, config, runtime)


def test_a_head_class_offers_so_many_images_and_a_tail_class_all(runtime: Runtime) -> None:
    teacher = Teacher()
    source = start(runtime, 12, teacher).source.view(4, 12)
    # 10 of 40 images, and all 5, 2 and 1: once for every crop, again where a class has too few.
    assert [len(batch) for batch in teacher.seen] == [50, 25, 10, 10, 5, 5, 5]
    assert [len(own.unique()) for own in source] == [10, 5, 2, 1]
    labels = make_data(COUNTS).train_labels
    assert torch.equal(labels[source], torch.arange(4)[:, None].expand(4, 12))


def test_other_seeds_offer_other_images(runtime: Runtime) -> None:
    def offered(seed: int) -> set[int]:
        own = start(dataclasses.replace(runtime, seed=seed), 10).source[:10]
        return set(own.tolist())

    assert offered(0) == offered(0) != offered(1)


def test_no_limit_below_the_class_is_no_limit(runtime: Runtime) -> None:
    data = make_data((5, 2, 1))
    results = [
        initial_images(Teacher(), data, 4, InitializationConfig(images_per_class=limit), runtime)
        for limit in (None, 5, 300)
    ]
    assert torch.equal(results[0].images, results[1].images)
    assert torch.equal(results[0].images, results[2].images)


def test_tiles_are_side_by_side() -> None:
    crops = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 2, 3)
    first, second = stitch(crops, 2)[:, 0]
    assert first.tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2
    assert torch.equal(second, first + 4)
    assert shrink(torch.rand(2, 3, 8, 8), 2).shape == (2, 3, 4, 4)


def test_an_image_of_tiles_holds_the_best_crops(runtime: Runtime) -> None:
    teacher = Teacher()
    result = start(runtime, 3, teacher, tiles=2)
    assert result.images.shape == (12, 3, 8, 8)
    assert result.images.is_contiguous()
    assert 0 <= float(result.images.min()) < float(result.images.max()) <= 1
    # 12 crops of every class: one each of 10 images and two more, all crops of the small ones.
    assert [len(batch) for batch in teacher.seen] == [50, 25, 10, 10, 5, 5, 5]
    # The teacher sees small crops in the middle, with nothing around.
    assert all(float(batch[:, :, :2].abs().max()) == 0 for batch in teacher.seen)
    assert all(float(batch[:, :, 2:6, 2:6].abs().min(0).values.max()) > 0 for batch in teacher.seen)
    tail = result.images.view(4, 3, 3, 2, 4, 2, 4).permute(0, 1, 3, 5, 2, 4, 6)[3]
    assert len(tail.reshape(12, -1).unique(dim=0)) == 12


def test_tiles_fill_the_image() -> None:
    config = DistillConfig(initialization=dataclasses.replace(SETTINGS, tiles=3))
    with pytest.raises(UserError, match=r"initialization\.tiles to divide the image size 8, got 3"):
        check_tiles(config, make_data(COUNTS))
