"""What a step of an expert's training is shown: views, mixtures, resampling, UniMix's pairs."""

import dataclasses
from typing import Any

import pytest
import torch
from helpers.colored import colored
from torch import Tensor, nn

from ltdd.config import ExpertsConfig, with_form
from ltdd.data.augmentation.crops import normalize
from ltdd.data.augmentation.expert_batches import Batches, fits
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.engine.tensor_trees import to_device

FAST = ExpertsConfig(batch_size=8)


def batches(runtime: Runtime, data: LongTailedData, **settings: Any) -> Batches:
    config = with_form(FAST, settings.pop("loss", "rldd"), crop_padding=0, **settings)
    return Batches(data, config, False, runtime)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mix(source: Batches, plain: Tensor, seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs, targets = source.mix_views(source.mixture(plain, generator(seed)))
    return inputs, targets.chunk(2)


def test_both_views_show_one_mixture_and_labels_match_pixels(runtime: Runtime) -> None:
    data = colored()
    source = batches(runtime, data)
    plain = torch.tensor([0, 1, 16, 24])
    shares = []
    for seed in range(60):
        inputs, (mixup, cutmix) = mix(source, plain, seed)
        assert inputs.shape == (8, 3, 32, 32)
        for targets in (mixup, cutmix):
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
        values = inputs * 255 / 10
        first, second = values[:4, 0], values[4:, 0]
        # MixUp is constant: lam * own + (1 - lam) * other. CutMix shows both images unmixed.
        assert float(first.flatten(1).std(dim=1).max()) < 1e-3
        own = plain.float()
        for row in range(4):
            shown = second[row].round().unique()
            other = [v for v in shown.tolist() if v != own[row]]
            if len(other) != 1:
                continue
            lam = (float(first[row].mean()) - other[0]) / (float(own[row]) - other[0])
            kept = float((second[row].round() == own[row]).float().mean())
            shares.append((lam, kept))
            label = data.train_labels[plain[row]]
            if data.train_labels[int(other[0])] != label:
                assert float(mixup[row, label]) == pytest.approx(lam, abs=1e-3)
                assert float(cutmix[row, label]) == pytest.approx(kept, abs=1e-3)
    assert len(shares) > 60
    # One lam for both views: clipping only uncovers, rounding covers two pixels a side at most.
    assert all(kept > lam - 0.13 for lam, kept in shares)
    assert min(lam for lam, _ in shares) < 0.2
    assert max(lam for lam, _ in shares) > 0.8


def test_own_and_resampled_views_are_two_draws(runtime: Runtime, data: LongTailedData) -> None:
    source = Batches(data, dataclasses.replace(FAST, crop_padding=8), True, runtime)
    assert source.padding == 2
    drawing = generator(0)
    indices = torch.arange(8)
    first, second = (source.view(source.shown(indices, drawing)) for _ in range(2))
    assert not torch.equal(first, second)
    plain = Batches(data, dataclasses.replace(FAST, crop_padding=0), False, runtime)
    expected = normalize(data.train_images[:8], torch.tensor(data.mean), torch.tensor(data.std))
    assert torch.equal(plain.view(plain.shown(indices, drawing)), expected)


@pytest.mark.parametrize("power", [0.0, 0.2, 1.0])
def test_resampling_draws_classes_by_their_power(runtime: Runtime, power: float) -> None:
    data = colored(8)
    weights = batches(runtime, data, resampling_power=power).draw_weights
    per_class = torch.zeros(3, dtype=torch.float64).index_add_(0, data.train_labels, weights)
    expected = torch.tensor([16.0, 8, 1], dtype=torch.float64) ** (1 - power)
    torch.testing.assert_close(per_class / per_class.sum(), expected / expected.sum())


def test_resampled_images_follow_the_weights(runtime: Runtime) -> None:
    data = colored(8)
    source = batches(runtime, data, resampling_power=1.0)
    plain = torch.zeros(25, dtype=torch.int64)
    partners = torch.zeros(3)
    for seed in range(80):
        _, (mixup, _) = mix(source, plain, seed)
        other = mixup.clone()
        other[:, 0] = 0
        partners += torch.tensor(
            [float((other.sum(1) == 0).sum()), *(other[:, 1:] > 0).sum(0).tolist()]
        )
    # Uniform over classes: 2000 draws.
    torch.testing.assert_close(partners / 2000, torch.full((3,), 1 / 3), rtol=0, atol=0.05)


def test_crop_padding_scales_with_the_image(runtime: Runtime, data: LongTailedData) -> None:
    assert Batches(data, FAST, False, runtime).padding == 1
    assert Batches(colored(64), FAST, False, runtime).padding == 8


def test_images_go_to_a_device_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    images, gpu = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.device("cuda")
    assert fits(images, torch.device("cpu"))
    for free, enough in ((4 * images.numel() + 1, True), (4 * images.numel(), False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert fits(images, gpu) is enough


@pytest.mark.cuda
def test_gathered_batches_are_those_of_images_on_the_device(
    monkeypatch: pytest.MonkeyPatch, data: LongTailedData
) -> None:
    runtime = Runtime(torch.device("cuda"))
    inside = batches(runtime, data)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    outside = batches(runtime, data)
    assert inside.images.is_cuda
    assert not outside.images.is_cuda
    indices = torch.tensor([3, 1, 30])
    views = [
        b.view(to_device(b.shown(indices, generator(0)), runtime.device)) for b in (inside, outside)
    ]
    assert views[1].is_cuda
    assert torch.equal(*views)


def test_resized_crops_replace_padding(runtime: Runtime, data: LongTailedData) -> None:
    whole = Batches(data, dataclasses.replace(FAST, crop_min_scale=1.0), False, runtime)
    cut = Batches(data, dataclasses.replace(FAST, crop_min_scale=0.1), False, runtime)
    expected = normalize(data.train_images[:8], torch.tensor(data.mean), torch.tensor(data.std))
    drawing = generator(0)
    torch.testing.assert_close(whole.view(whole.shown(torch.arange(8), drawing)), expected)
    assert not torch.allclose(cut.view(cut.shown(torch.arange(8), drawing)), expected, atol=0.1)


def test_colours_change_where_asked(runtime: Runtime, data: LongTailedData) -> None:
    config = dataclasses.replace(FAST, crop_padding=0, color_jitter=0.0)
    kept = Batches(data, config, False, runtime)
    config = dataclasses.replace(config, color_jitter=0.4)
    changed = Batches(data, config, False, runtime)
    plain = Batches(data, dataclasses.replace(config, color_jitter=None), False, runtime)
    levels = [
        source.view(source.shown(torch.arange(34), generator(0))).mean((1, 2, 3))
        for source in (plain, kept, changed)
    ]
    assert float((levels[1] - levels[0]).abs().max()) < 0.1  # blur keeps the level
    assert float((levels[2] - levels[0]).abs().max()) > 0.3


def test_randaugment_changes_images_by_the_generator_alone(
    runtime: Runtime, data: LongTailedData
) -> None:
    config = dataclasses.replace(FAST, crop_padding=0)
    plain = Batches(data, config, False, runtime)
    changed = Batches(data, dataclasses.replace(config, randaugment=True), False, runtime)
    kept = data.train_images.clone()
    views = [
        source.view(source.shown(torch.arange(34), generator(seed)))
        for source, seed in ((plain, 0), (changed, 0), (changed, 0), (changed, 1))
    ]
    assert torch.equal(views[1], views[2])
    assert not torch.equal(views[1], views[3])
    different = (views[1] != views[0]).flatten(1).any(1)
    assert 0.5 < float(different.float().mean()) < 1  # two changes an image, one of 14 is none
    assert torch.equal(data.train_images, kept)


def test_unimix_leans_towards_the_tail_and_its_shares_match_the_pixels(runtime: Runtime) -> None:
    data = colored()
    source = batches(runtime, data, loss="unimix")
    plain, shares, partners = torch.arange(25), torch.zeros(3), torch.zeros(3)
    for seed in range(200):
        drawn = source.pairs(plain, generator(seed))
        view, partner, lam = source.unimix(drawn), drawn.partner, drawn.lam
        assert float(lam.min()) >= 0
        assert float(lam.max()) <= 1
        shown = view[:, 0, 0, 0] * 255 / 10
        torch.testing.assert_close(shown, lam * plain + (1 - lam) * partner, rtol=0, atol=1e-3)
        partners += torch.bincount(data.train_labels[partner], minlength=3)
        one_hot = nn.functional.one_hot(data.train_labels, 3).float()
        shares += (lam[:, None] * one_hot + (1 - lam)[:, None] * one_hot[partner]).sum(0)
    # A class of n images is drawn with n * n^(-1/2).
    drawn = torch.tensor([16.0, 8, 1]).sqrt()
    torch.testing.assert_close(partners / partners.sum(), drawn / drawn.sum(), rtol=0, atol=0.02)
    assert float(shares[2] / shares.sum()) > 2 * 1 / 25
