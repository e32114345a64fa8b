"""Nearest training images, against distances that are computed one pair at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.stripes import make_data
from helpers.tiny_run import FINISHED, QUIET
from torch import Tensor, nn

from ltdd.data import nearest_rows as search
from ltdd.data.image_spec import ImageSet, Normalization
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.files import read_json
from ltdd.engine.storage.stage_store import read_stage
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.ensemble import MeanLogits
from ltdd.pipeline import load_source
from ltdd.results.distilled_set import load
from ltdd.stages import nearest_images as stage
from ltdd.stages.nearest_images import (
    feature_rows,
    nearest_images,
    pixel_rows,
    sample_images,
    summarize_nearness,
)

GREY = Normalization((0.5,), (0.25,))


def noise(labels: list[int], size: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), 3, size, size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.tensor(labels))


def one_by_one(shown: ImageSet, training: ImageSet, own: Tensor | None = None) -> Tensor:
    """Return root mean square differences (M, N), infinite to an image itself."""
    rows = [
        [float((a.long() - b.long()).square().double().mean().sqrt()) for b in training.images]
        for a in shown.images
    ]
    distances = torch.tensor(rows, dtype=torch.float64)
    if own is not None:
        distances[torch.arange(len(own)), own] = torch.inf
    return distances


def find(shown: ImageSet, training: ImageSet, classes: int, runtime: Runtime) -> dict[str, Tensor]:
    """Compare pixels; they take the place of the features too."""

    def lengths_one(images: Tensor) -> Tensor:
        return F.normalize(images.flatten(1).float() - 128, dim=1)

    return nearest_images(shown, training, classes, lengths_one, runtime)


def test_pixels_agree_with_distances_one_by_one(runtime: Runtime) -> None:
    training = noise([0, 1, 2] * 12, 6, seed=1)
    shown = noise([0, 0, 1, 2, 2], 6, seed=2)
    found = find(shown, training, 3, runtime)
    assert torch.equal(found["sample"], torch.arange(36))
    distances = one_by_one(shown, training)
    others = one_by_one(training, training, torch.arange(36))
    of_class = distances.masked_fill(shown.labels[:, None] != training.labels, torch.inf)
    others_of_class = others.masked_fill(training.labels[:, None] != training.labels, torch.inf)
    for scope, wanted, reference in (
        ("any_class", distances, others),
        ("same_class", of_class, others_of_class),
    ):
        torch.testing.assert_close(found[f"pixels.{scope}.distance"], wanted.amin(1))
        assert torch.equal(found[f"pixels.{scope}.index"], wanted.argmin(1))
        torch.testing.assert_close(found[f"pixels.{scope}.reference"], reference.amin(1))
    order = distances.amin(1).argsort()[: stage.PAIRS]
    assert torch.equal(found["pixels.pairs"], order)
    assert torch.equal(found["pixels.real"], training.images[distances.argmin(1)[order]])


def test_features_are_compared_by_their_cosine(runtime: Runtime) -> None:
    training, shown = noise([0, 1] * 9, 8, seed=3), noise([0, 1, 1], 8, seed=4)
    torch.manual_seed(0)
    network = build_model("convnet3", 2, 8, 3)
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    rows = feature_rows(network, Normalization((0.5,) * 3, (0.25,) * 3), runtime)
    found = nearest_images(shown, training, 2, rows, runtime)
    with torch.no_grad():
        seen = [network.features((s.images / 255 - mean) / std).double() for s in (shown, training)]
    wanted = 1 - F.cosine_similarity(seen[0][:, None], seen[1][None], dim=2)
    torch.testing.assert_close(
        found["features.any_class.distance"], wanted.amin(1), rtol=1e-4, atol=1e-6
    )
    assert torch.equal(found["features.any_class.index"], wanted.argmin(1))


@pytest.mark.parametrize(
    ("setting", "value"), [("BATCH", 7), ("_ASKED", 3), ("HELD_BYTES", 500), ("_COLUMNS", 10)]
)
def test_sizes_of_chunks_do_not_change_a_bit_of_pixels(
    setting: str, value: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, shown = noise([0, 1, 2] * 12, 6, seed=1), noise([0, 1, 2] * 3, 6, seed=2)
    training.images[30] = training.images[3]  # the first of equal ones is found
    shown.images[4] = training.images[3]
    whole = find(shown, training, 3, runtime)
    monkeypatch.setattr(search, setting, value)
    parts = find(shown, training, 3, runtime)
    assert int(whole["pixels.any_class.index"][4]) == 3
    for name in whole:
        if name.startswith("pixels."):
            assert torch.equal(whole[name], parts[name]), name


def test_differences_of_one_in_many_large_pixels_are_exact(runtime: Runtime) -> None:
    # 12,288 products of 128 * 128: their sum is beyond the digits of float32.
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    images[1, 0, 0, 0] = 1
    images[2] = 255
    training = ImageSet(images, torch.tensor([0, 0, 0]))
    shown = ImageSet(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([0]))
    found = find(shown, training, 1, runtime)
    assert found["pixels.any_class.distance"].tolist() == [0]
    step = (1 / images[0].numel()) ** 0.5
    below = (255**2 - 509 / images[0].numel()) ** 0.5
    reference = torch.tensor([step, step, below], dtype=torch.float64)
    torch.testing.assert_close(found["pixels.any_class.reference"], reference, rtol=1e-15, atol=0)


def test_when_memory_runs_out_smaller_chunks_find_the_same(runtime: Runtime) -> None:
    training, shown = noise([0, 1, 2] * 12, 6, seed=1), noise([0, 1, 2] * 3, 6, seed=2)
    sizes = []

    def hungry(images: Tensor) -> Tensor:
        if len(images) > 5:
            raise MemoryError("not enough memory")
        sizes.append(len(images))
        return pixel_rows(images)

    found = nearest_images(shown, training, 3, hungry, runtime)
    assert max(sizes) <= 5
    assert torch.equal(found["features.any_class.index"], found["pixels.any_class.index"])


def test_an_exact_duplicate_is_another_training_image(runtime: Runtime) -> None:
    training = noise([0, 0, 1], 6, seed=1)
    training.images[2] = training.images[0]
    found = find(noise([0, 1], 6, seed=2), training, 2, runtime)
    assert found["pixels.any_class.reference"][[0, 2]].tolist() == [0, 0]
    assert found["pixels.same_class.reference"][0] > 0
    assert found["features.any_class.reference"][0] < 1e-12


def test_a_mirrored_copy_is_no_copy(runtime: Runtime) -> None:
    training = noise([0, 0], 6, seed=1)
    shown = ImageSet(training.images[:1].flip(3), torch.tensor([0]))
    assert find(shown, training, 1, runtime)["pixels.any_class.distance"][0] > 20


def summary(shown: ImageSet, training: ImageSet, classes: int, runtime: Runtime) -> dict[str, dict]:
    tensors = find(shown, training, classes, runtime)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    told = summarize_nearness(tensors, shown.labels, training.labels, classes)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return told


def test_a_class_of_one_training_image_has_no_reference_of_its_class(runtime: Runtime) -> None:
    told = summary(noise([0, 1], 6, seed=2), noise([0, 0, 1], 6, seed=1), 2, runtime)
    alone = told["pixels"]["same_class"]["classes"][1]
    assert alone["training"] is None
    assert alone["nearer"] is None
    assert alone["distilled"]["min"] > 0
    assert told["pixels"]["any_class"]["classes"][1]["training"]["min"] > 0


def test_one_class_one_distilled_and_one_training_image(runtime: Runtime) -> None:
    told = summary(noise([0], 6, seed=2), noise([0], 6, seed=1), 1, runtime)
    row = told["features"]["any_class"]["overall"]
    assert row["training"] is None
    assert row["nearer"] is None
    assert row["same_class"] == 1
    assert row["distilled"]["median"] == row["distilled"]["min"] > 0
    assert len(told["pixels"]["pairs"]) == 1


def test_the_summary_of_distances_that_can_be_checked_by_hand() -> None:
    tensors = {"sample": torch.tensor([0, 1, 2])}
    for measure in stage.MEASURES:
        for scope in stage.SCOPES:
            name = f"{measure}.{scope}"
            tensors[f"{name}.distance"] = torch.tensor([1.0, 3, 5, 7], dtype=torch.float64)
            tensors[f"{name}.index"] = torch.tensor([2, 0, 2, 1])
            tensors[f"{name}.reference"] = torch.tensor([4.0, 4, 8], dtype=torch.float64)
        tensors[f"{measure}.pairs"] = torch.tensor([0, 1])
    told = summarize_nearness(tensors, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    overall, (first, second) = (told["pixels"]["any_class"][of] for of in ("overall", "classes"))
    assert overall["distilled"] == pytest.approx({"median": 4, "q05": 1.3, "min": 1})
    assert overall["training"] == pytest.approx({"median": 4, "q05": 4, "min": 4})
    assert (overall["nearer"], overall["same_class"]) == (0.5, 0.5)
    assert first["training"] == pytest.approx({"median": 4, "q05": 4, "min": 4})
    assert (first["nearer"], second["nearer"]) == (1, 1)
    assert (first["same_class"], second["same_class"]) == (0.5, 0.5)
    pair = {"distilled": 0, "training": 2, "training_class": 1, "distance": 1}
    assert told["features"]["pairs"][0] == pair


def test_the_sample_is_addressed_by_class_and_bounded(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAMPLED", 12)
    labels = torch.tensor([0] * 20 + [1] * 3 + [2] * 9)
    sample = sample_images(labels, 3, runtime)
    assert torch.bincount(labels[sample]).tolist() == [4, 3, 4]
    assert sample.tolist() == sorted(set(sample.tolist()))
    assert sample[:4].tolist() != [0, 1, 2, 3]
    grown = torch.cat([labels, torch.full((5,), 2)])
    again = sample_images(grown, 3, runtime)
    assert torch.equal(again[labels[again.clamp(max=31)] == 0], sample[:4])
    monkeypatch.setattr(stage, "SAMPLED", 1)
    assert len(sample_images(labels, 3, runtime)) == 3  # at least one a class


def test_a_network_without_features_is_compared_by_its_logits(runtime: Runtime) -> None:
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    torch.manual_seed(0)
    own = build_model("convnet3", 3, 8, 1)
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for teacher, width in (
        (own, own.feature_dim),
        (foreign, 3),
        (MeanLogits([own, own]), 2 * own.feature_dim),
        (MeanLogits([own, foreign]), 3),
    ):
        rows = feature_rows(teacher, GREY, runtime)(images)
        assert rows.shape == (4, width)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))


def test_features_that_are_no_numbers_stop_with_the_name_of_the_stage(runtime: Runtime) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    nn.init.constant_(teacher[1].bias, torch.nan)
    rows = feature_rows(teacher, Normalization((0.5,) * 3, (0.2,) * 3), runtime)
    data: LongTailedData = make_data((4, 2, 1))
    training = ImageSet(data.train_images, data.train_labels)
    with pytest.raises(UserError, match="nearest: expected finite values in 'features'"):
        nearest_images(training, training, 3, rows, runtime)


def test_a_run_leaves_the_distances_and_the_nearest_images(run: Path) -> None:
    distilled, data = load(run), load_source(FINISHED, QUIET)
    training = ImageSet(data.train_images, data.train_labels)
    distances = one_by_one(ImageSet(distilled.images, distilled.labels), training)
    results = read_json(run / "results.json")
    told: Mapping[str, dict] = results["nearest"]
    assert told["features_of"] == "features"
    assert told["training_images"] == told["sampled"] == len(training.labels)
    row = told["pixels"]["any_class"]["overall"]
    assert row["distilled"]["min"] == pytest.approx(float(distances.min()))
    assert row["distilled"]["median"] == pytest.approx(float(distances.amin(1).quantile(0.5)))
    same = training.labels[distances.argmin(1)] == distilled.labels
    assert row["same_class"] == pytest.approx(float(same.double().mean()))
    assert len(told["features"]["same_class"]["classes"]) == 10
    (name,) = (name for name in results["files"] if name.startswith("nearest-"))
    tensors = read_stage(run / "stages" / name).tensors
    for measure in stage.MEASURES:
        for pair, real in zip(told[measure]["pairs"], tensors[f"{measure}.real"], strict=True):
            assert torch.equal(real, training.images[pair["training"]])
            assert pair["training_class"] == int(training.labels[pair["training"]])
