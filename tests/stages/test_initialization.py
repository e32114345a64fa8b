"""Initial images: selection in rounds, the teacher's scores, classes with too few images."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ltdd.config import form_of
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.models import build_model
from ltdd.models.ensemble import MeanLogits
from ltdd.stages.initialization import initial_images
from ltdd.stages.initialization.crops import nearest_to_centres, select_in_rounds
from ltdd.stages.run import InitialImages

Start = Callable[..., InitialImages]


class Brightness(nn.Module):
    """A teacher whose logit of class k is `sign` times the mean of channel k."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return self.sign * 20 * images.mean(dim=(2, 3))

    def features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) + 3


@pytest.fixture
def start(data: LongTailedData, runtime: Runtime) -> Start:
    def run(ipc: int, teacher: nn.Module | None = None, **settings: object) -> InitialImages:
        config = form_of("initialization", settings.get("method"))(**settings)
        return initial_images(teacher or Brightness(), data, ipc, config, runtime)

    return run


def literal_selection(scores: list[list[float]], wanted: int) -> list[tuple[int, int]]:
    """The selection as it is written down: rounds of each image's best unused crop."""
    unused = [set(range(len(row))) for row in scores]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < wanted and any(unused):
        best = [
            (image, max(left, key=lambda crop: (scores[image][crop], -crop)))
            for image, left in enumerate(unused)
            if left
        ]
        best.sort(key=lambda pair: (-scores[pair[0]][pair[1]], pair[0]))
        taken = best[: wanted - len(chosen)]
        chosen += taken
        for image, crop in best:
            unused[image].discard(crop)
    return chosen


@given(st.data(), st.integers(1, 6), st.integers(1, 5))
def test_selection_follows_the_rounds(given_data: st.DataObject, images: int, crops: int) -> None:
    # Few distinct values, so that ties are common.
    row = st.lists(st.integers(0, 3).map(float), min_size=crops, max_size=crops)
    scores = given_data.draw(st.lists(row, min_size=images, max_size=images))
    wanted = given_data.draw(st.integers(1, images * crops))
    image, column = select_in_rounds(torch.tensor(scores), wanted)
    picked = list(zip(image.tolist(), column.tolist(), strict=True))
    assert picked == literal_selection(scores, wanted)
    assert len(set(picked)) == wanted


def test_one_image_gives_distinct_crops() -> None:
    image, column = select_in_rounds(torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]]), 3)
    assert image.tolist() == [0, 0, 0]
    assert column.tolist() == [1, 3, 2]


def test_every_cluster_gives_the_row_in_its_middle() -> None:
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    around = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    rows = torch.cat([torch.cat([middle[None], middle + around]) for middle in middles])
    rows = torch.cat([rows, middles[2:] + 0.01])  # the largest cluster, which chooses first
    picked = nearest_to_centres(rows, 3, seed=0).tolist()
    assert picked[0] == 10
    assert sorted(picked) == [0, 5, 10]


@pytest.mark.parametrize("wanted", [1, 3, 6])
def test_centres_pick_distinct_rows_even_among_equals(wanted: int) -> None:
    rows = torch.tensor([[1.0, 2.0]] * 5 + [[3.0, 4.0]])
    picked = nearest_to_centres(rows, wanted, seed=0).tolist()
    assert len(set(picked)) == wanted


def test_clusters_show_more_of_a_class_than_scores(start: Start) -> None:
    def spread(method: str) -> float:
        return float(start(4, method=method).images[:4].mean(dim=(2, 3)).std(dim=0).mean())

    assert spread("clustered_crops") > spread("scored_crops")


def test_a_class_of_few_images_is_refilled_for_clusters(start: Start) -> None:
    result = start(11, method="clustered_crops", crops_per_image=2)
    tail = result.images.view(3, 11, 3, 8, 8)[2]
    assert len(tail.flatten(1).unique(dim=0)) == 11


def test_a_teacher_of_several_has_features_of_all() -> None:
    members = [build_model("convnet3", 3, 8, 3) for _ in range(2)]
    features = MeanLogits(members).features(torch.rand(2, 3, 8, 8))
    assert features.shape == (2, 2 * members[0].feature_dim)
    assert torch.allclose(features.norm(dim=1), torch.tensor(2.0).sqrt())


def test_shape_range_and_order(start: Start, data: LongTailedData) -> None:
    for method in ("scored_crops", "clustered_crops", "random_real", "noise", "tiled"):
        result = start(4, method=method)
        assert result.images.shape == (12, 3, 8, 8)
        assert result.images.dtype == torch.float32
        assert result.images.is_contiguous()
        assert float(result.images.min()) >= 0
        assert float(result.images.max()) <= 1 + 1e-6
        assert result.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        if method == "noise":
            assert result.source.tolist() == [-1] * 12
        else:
            # Nothing but training images of the class itself, never a placeholder.
            assert torch.equal(data.train_labels[result.source], result.labels)


def test_large_classes_use_an_image_once(start: Start) -> None:
    source = start(8).source.view(3, 8)
    assert len(source[0].unique()) == 8
    assert len(source[1].unique()) == 8
    assert len(source[2].unique()) == 2


def test_small_classes_use_distinct_crops(start: Start) -> None:
    # The last class has 2 images and 5 crops of each: 10 fit.
    result = start(10)
    assert result.source.view(3, 10)[2].bincount().max() == 5
    assert len(result.images[20:].unique(dim=0)) == 10


def test_crops_are_drawn_again_when_they_do_not_fit(start: Start) -> None:
    result = start(11, crops_per_image=2)
    assert len(result.images[22:].unique(dim=0)) == 11
    counts = result.source.view(3, 11)[2].unique(return_counts=True)[1]
    assert sorted(counts.tolist()) == [5, 6]


def class_brightness(result: InitialImages, label: int) -> float:
    chosen = result.images[result.labels == label]
    own = chosen[:, label].mean()
    return float(own - chosen.mean())


def test_the_teacher_decides(start: Start) -> None:
    settings = {"crop_min_scale": 0.1}
    best, worst = start(2, Brightness(), **settings), start(2, Brightness(-1.0), **settings)
    for label in range(2):  # the last class has too few crops to choose from
        assert class_brightness(best, label) > class_brightness(worst, label) + 0.02


def test_the_best_crop_of_all_is_chosen_first(start: Start, data: LongTailedData) -> None:
    teacher = Brightness()
    result = start(3, teacher)
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    for label in range(3):
        scores = 20 * ((result.images[result.labels == label] - mean) / std).mean(dim=(2, 3))
        chosen = scores.log_softmax(1)[:, label]
        # Every crop the teacher saw of this class; the class's first choice is their best.
        shown = 20 * teacher.seen[label].mean(dim=(2, 3))
        assert len(shown) == 5 * data.counts[label]
        assert float(chosen[0]) == pytest.approx(
            float(shown.log_softmax(1)[:, label].max()), abs=1e-4
        )


def test_the_teacher_sees_its_own_normalization(start: Start, data: LongTailedData) -> None:
    teacher = Brightness()
    start(1, teacher, crop_min_scale=1.0, crops_per_image=1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    members = data.train_images[data.train_labels == 1] / 255
    torch.testing.assert_close(teacher.seen[1], (members - mean) / std, rtol=1e-4, atol=1e-4)


def test_full_crops_are_the_images_themselves(start: Start, data: LongTailedData) -> None:
    result = start(2, crop_min_scale=1.0)
    torch.testing.assert_close(
        result.images, data.train_images[result.source] / 255, rtol=0, atol=1e-5
    )


def test_random_real_images_are_spread_evenly(start: Start, data: LongTailedData) -> None:
    result = start(5, method="random_real")
    assert torch.equal(result.images, data.train_images[result.source] / 255)
    source = result.source.view(3, 5)
    assert len(source[0].unique()) == len(source[1].unique()) == 5
    assert sorted(source[2].unique(return_counts=True)[1].tolist()) == [2, 3]


@pytest.mark.parametrize("choice", ["random", "clusters"])
@pytest.mark.parametrize("tiles", [1, 2])
def test_tiles_are_whole_real_images(
    choice: str, tiles: int, start: Start, data: LongTailedData
) -> None:
    """Of classes of 24, 8 and 2 images; the last two repeat theirs, all as often."""
    result = start(4, method="tiled", tiles=tiles, choice=choice)
    shrunk = data.train_images[:, :, ::tiles, ::tiles] / 255  # the nearest pixels
    side, used = 8 // tiles, []
    for image, label in zip(result.images, result.labels, strict=True):
        for block in (
            image[:, y : y + side, x : x + side]
            for y in range(0, 8, side)
            for x in range(0, 8, side)
        ):
            same = (shrunk == block).all(dim=(1, 2, 3)).nonzero().flatten()
            assert (data.train_labels[same] == label).all()
            used.append(int(same[0]))
    blocks = torch.tensor(used).view(3, -1)
    for label, size in enumerate(data.counts):
        times = blocks[label].unique(return_counts=True)[1]
        assert len(times) == min(size, blocks.shape[1])
        assert int(times.max() - times.min()) <= 1
    assert torch.equal(result.source.view(3, 4), blocks[:, :: tiles**2])


def test_the_middle_of_clusters_in_an_untrained_network_is_drawn_by_the_seed(
    data: LongTailedData, runtime: Runtime
) -> None:
    config = form_of("initialization", "tiled")(tiles=1, choice="clusters")
    plain = form_of("initialization", "tiled")(tiles=1)
    chosen = initial_images(Brightness(), data, 2, config, runtime)
    assert torch.equal(chosen.images, initial_images(Brightness(), data, 2, config, runtime).images)
    assert not torch.equal(
        chosen.images, initial_images(Brightness(), data, 2, plain, runtime).images
    )


def test_noise_has_the_moments_of_the_data(start: Start, data: LongTailedData) -> None:
    images = start(60, method="noise").images
    assert len(images.unique(dim=0)) == 180
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    # Clamping to [0, 1] pulls both in a little.
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), std, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "method", ["scored_crops", "clustered_crops", "random_real", "noise", "tiled"]
)
def test_the_seed_decides(data: LongTailedData, runtime: Runtime, method: str) -> None:
    config = form_of("initialization", method)()

    def run(seed: int) -> Tensor:
        own = dataclasses.replace(runtime, seed=seed)
        return initial_images(Brightness(), data, 3, config, own).images

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
