"""Fair statistics: exact per-class moments, any order of images, the worked toy of the targets."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import ltdd_ext
from ltdd.config import StatisticsConfig
from ltdd.data.augmentation.crops import normalize
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.finite import check_each
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.observer import batch_norm_layers
from ltdd.stages import statistics
from ltdd.stages.alignment_targets import (
    LayerStatistics,
    LayerTargets,
    batch_targets,
    layer_targets,
)
from ltdd.stages.statistics import VIEWS, class_statistics, synthetic_statistics

FIELDS = ("mean", "within", "between")


def layer_inputs(observer: nn.Module, data: LongTailedData) -> list[Tensor]:
    """Inputs of the batch-norm layers for all training images at once, in float64."""
    seen: list[Tensor] = []
    layers = [m for m in observer.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0].double())) for m in layers]
    images = normalize(data.train_images, torch.tensor(data.mean), torch.tensor(data.std))
    with torch.no_grad():
        observer.eval()(images)
    for handle in handles:
        handle.remove()
    return seen


def calibrate(
    observer: nn.Module, data: LongTailedData, runtime: Runtime, batch_size: int = 250
) -> list[LayerStatistics]:
    return class_statistics(observer, data, StatisticsConfig(batch_size=batch_size), runtime)


def assert_same(first: list[LayerStatistics], second: list[LayerStatistics]) -> None:
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.count, theirs.count)
        for name in FIELDS:
            torch.testing.assert_close(
                getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("batch_size", [1, 7, 250])
def test_statistics_equal_float64_over_all_elements(
    observer: nn.Module, data: LongTailedData, runtime: Runtime, backend: str, batch_size: int
) -> None:
    runtime = dataclasses.replace(runtime, backend=backend)
    layers = calibrate(observer, data, runtime, batch_size)
    for layer, inputs in zip(layers, layer_inputs(observer, data), strict=True):
        # The count of a class is its images, not a constant of the full data set.
        assert layer.count.tolist() == [24, 8, 2]
        for label in range(3):
            rows = inputs[data.train_labels == label].flatten(2)
            within = rows.var(dim=2, correction=0).mean(0)
            between = rows.mean(2).var(dim=0, correction=0)
            for name, expected in (
                ("mean", rows.mean((0, 2))),
                ("within", within),
                ("between", between),
            ):
                actual = getattr(layer, name)[label]
                assert actual.dtype == torch.float64
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
            # W + B is the variance of the class over all its pixels.
            torch.testing.assert_close(
                (layer.within + layer.between)[label],
                rows.transpose(0, 1).flatten(1).var(dim=1, correction=0),
                rtol=1e-5,
                atol=1e-7,
            )


def test_order_of_images_does_not_matter(
    observer: nn.Module, data: LongTailedData, runtime: Runtime
) -> None:
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(1))
    shuffled = dataclasses.replace(
        data, train_images=data.train_images[order], train_labels=data.train_labels[order]
    )
    assert_same(calibrate(observer, data, runtime, 5), calibrate(observer, shuffled, runtime, 5))


def test_only_training_images_count(
    observer: nn.Module, data: LongTailedData, runtime: Runtime
) -> None:
    other_test = dataclasses.replace(data, test_images=255 - data.test_images)
    assert_same(calibrate(observer, data, runtime), calibrate(observer, other_test, runtime))


def test_the_observer_stays_as_it_was(
    observer: nn.Module, data: LongTailedData, runtime: Runtime
) -> None:
    for layer in batch_norm_layers(observer):
        layer.running_mean.fill_(0.25)
    before = {name: tensor.clone() for name, tensor in observer.state_dict().items()}
    layers = calibrate(observer.train(), data, runtime)
    for name, tensor in observer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    # The checkpoint's own statistics travel along.
    assert layers[0].running_mean.tolist() == [0.25] * 6
    assert layers[0].running_var.tolist() == [1.0] * 6


def test_a_batch_is_looked_at_once(
    observer: nn.Module, data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def note(values: Tensor, stage: str, named: Sequence[tuple[str, int]]) -> None:
        looks.append(len(values))
        check_each(values, stage, named)

    monkeypatch.setattr(statistics, "check_each", note)
    calibrate(observer, data, runtime, 10)
    layers = len(batch_norm_layers(observer))
    assert layers > 1
    assert looks == [layers] * 4  # of 34 images
    with torch.no_grad():
        batch_norm_layers(observer)[0].weight[2] = torch.nan
    with pytest.raises(UserError, match="statistics: expected a finite moment of layer 1 at step "):
        calibrate(observer, data, runtime, 10)


def test_a_network_without_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"BatchNorm2d layers.*'convnet3', which has none"):
        batch_norm_layers(build_model("convnet3", 3, 8, 3), "convnet3")


def test_statistics_survive_storage(
    observer: nn.Module, data: LongTailedData, runtime: Runtime
) -> None:
    for layer in calibrate(observer, data, runtime):
        again = LayerStatistics.from_tensors("4", layer.tensors("4"))
        for spec in dataclasses.fields(LayerStatistics):
            assert torch.equal(getattr(again, spec.name), getattr(layer, spec.name))


# --- targets ---


def targets(statistics: LayerStatistics, images_per_class: list[int], **names: str) -> LayerTargets:
    return layer_targets(statistics, torch.tensor(images_per_class), StatisticsConfig(**names))


def statistics_of(rows: list[Tensor]) -> LayerStatistics:
    """Statistics of classes given as (n, C, S) each."""
    return LayerStatistics(
        count=torch.tensor([len(r) for r in rows]),
        mean=torch.stack([r.mean((0, 2)) for r in rows]),
        within=torch.stack([r.var(2, correction=0).mean(0) for r in rows]),
        between=torch.stack([r.mean(2).var(0, correction=0) for r in rows]),
        running_mean=torch.full((rows[0].shape[1],), 0.5, dtype=torch.float64),
        running_var=torch.full((rows[0].shape[1],), 1.326, dtype=torch.float64),
    )


def test_mixture_is_the_variance_of_a_class_balanced_replicate() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(n, 4, 9, generator=generator, dtype=torch.float64) * (n + 1) + n
        for n in (6, 3, 2)
    ]
    replicate = torch.cat([r.repeat(6 // len(r), 1, 1) for r in rows])
    expected_mean = replicate.mean((0, 2))
    expected_var = replicate.transpose(0, 1).flatten(1).var(1, correction=0)
    result = targets(statistics_of(rows), [1, 1, 1])
    torch.testing.assert_close(result.mean, expected_mean.float())
    torch.testing.assert_close(result.var, expected_var.float())


def test_targets_follow_the_composition_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(6, 4, 9, generator=generator, dtype=torch.float64) + n for n in range(3)]
    # Twice as many images of the last class, none of the middle one.
    replicate = torch.cat([rows[0], rows[2], rows[2]])
    result = targets(statistics_of(rows), [1, 0, 2])
    torch.testing.assert_close(result.mean, replicate.mean((0, 2)).float())
    torch.testing.assert_close(
        result.var, replicate.transpose(0, 1).flatten(1).var(1, correction=0).float()
    )


# The worked toy: two classes whose estimators are 0.436, 1.134 and 3.286, and class-balanced
# batches of 25 + 25 images whose variance is 3.270.
MEAN_WITHIN, MEAN_TOTAL, MIXTURE, OBSERVED = 0.436, 1.134, 3.286, 3.270


@pytest.fixture
def toy() -> LayerStatistics:
    half_gap = math.sqrt(MIXTURE - MEAN_TOTAL)
    between = MEAN_TOTAL - MEAN_WITHIN
    return LayerStatistics(
        count=torch.tensor([400, 20]),
        mean=torch.tensor([[half_gap], [-half_gap]], dtype=torch.float64),
        within=torch.tensor([[MEAN_WITHIN - 0.1], [MEAN_WITHIN + 0.1]], dtype=torch.float64),
        between=torch.tensor([[between + 0.2], [between - 0.2]], dtype=torch.float64),
        running_mean=torch.tensor([0.9], dtype=torch.float64),
        running_var=torch.tensor([1.326], dtype=torch.float64),
    )


def draw_images(toy: LayerStatistics, label: int, number: int) -> Tensor:
    """Images (n, 16 pixels) of a class with the toy's mean, between and within variance."""
    generator = torch.Generator().manual_seed(label)
    centre = torch.randn(number, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(number, 16, generator=generator, dtype=torch.float64)
    noise -= noise.mean(1, keepdim=True)
    noise /= noise.square().mean(1, keepdim=True).sqrt()
    return toy.mean[label] + toy.between[label].sqrt() * centre + toy.within[label].sqrt() * noise


def mean_variance(groups: Tensor) -> float:
    """Average over groups (T, images, pixels) of the variance of all pixels of a group."""
    return float(groups.flatten(1).var(dim=1, correction=0).mean())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("edc", MEAN_WITHIN), ("paper", MEAN_TOTAL), ("mixture", MIXTURE), ("running", 1.326)],
)
def test_global_targets_of_the_worked_toy(toy: LayerStatistics, name: str, expected: float) -> None:
    result = targets(toy, [25, 25], global_target=name)
    assert float(result.var) == pytest.approx(expected, abs=5e-4)
    assert float(result.mean) == pytest.approx(0.9 if name == "running" else 0, abs=1e-6)


def exact_images(mean: float, within: float, between: float, number: int) -> Tensor:
    """Images (n, 1 channel, 16 pixels) that have exactly these moments."""
    generator = torch.Generator().manual_seed(number)
    centre = torch.randn(number, 1, 1, generator=generator, dtype=torch.float64)
    centre = (centre - centre.mean()) / centre.std(correction=0)
    noise = torch.randn(number, 1, 16, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean(2, keepdim=True)) / noise.std(2, correction=0, keepdim=True)
    return mean + math.sqrt(between) * centre + math.sqrt(within) * noise


def measured(rows: list[Tensor], images_at_once: int) -> LayerStatistics:
    """What the operators find when images of all classes come in batches."""
    labels = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(r) for r in rows]))
    images = torch.cat(rows)[..., None]
    state = (
        torch.zeros(len(rows), dtype=torch.int64),
        *(torch.zeros(len(rows), 1, dtype=torch.float64) for _ in range(3)),
    )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for part in order.split(images_at_once):
        mean, m2 = ltdd_ext.row_moments(images[part])
        ltdd_ext.class_moments_update_(*state, mean, m2, 16, labels[part])
    mean, within, between, _ = ltdd_ext.class_moments_finish(*state)
    own = statistics_of(rows)
    return dataclasses.replace(own, mean=mean, within=within, between=between)


@pytest.mark.parametrize("images_at_once", [1, 7, 1000])
def test_the_worked_toy_measured_on_images(toy: LayerStatistics, images_at_once: int) -> None:
    rows = [
        exact_images(*(float(part[label]) for part in (toy.mean, toy.within, toy.between)), number)
        for label, number in enumerate((400, 20))
    ]
    found = measured(rows, images_at_once)
    for name, expected in (("edc", MEAN_WITHIN), ("paper", MEAN_TOTAL), ("mixture", MIXTURE)):
        result = targets(found, [25, 25], global_target=name)
        assert float(result.var) == pytest.approx(expected, abs=5e-4)


def test_the_recurrence_as_printed_loses_the_spread_between_batches() -> None:
    # A class of variance 1.025 that comes one image at a time: averaging the variances of batches
    # finds 0.626, the variance inside an image. The operators find all of it.
    rows = [exact_images(0.3, 0.626, 1.025 - 0.626, 120), exact_images(-1, 0.4, 0.1, 30)]
    variance = torch.zeros(())
    for seen, image in enumerate(rows[0], 1):
        variance = variance + (image.var(correction=0) - variance) / seen
    assert float(variance) == pytest.approx(0.626, abs=1e-6)
    found = measured(rows, 1)
    assert float((found.within + found.between)[0]) == pytest.approx(1.025, abs=1e-6)


def test_only_the_mixture_is_what_balanced_batches_show(toy: LayerStatistics) -> None:
    halves = [draw_images(toy, label, 25 * 2000).view(2000, 25, 16) for label in range(2)]
    shown = mean_variance(torch.cat(halves, dim=1))
    assert shown == pytest.approx(OBSERVED, rel=0.01)
    errors = {
        name: abs(float(targets(toy, [25, 25], global_target=name).var) - shown)
        for name in ("mixture", "paper", "edc", "running")
    }
    assert min(errors, key=errors.__getitem__) == "mixture"
    assert errors["mixture"] < 0.01 * shown
    assert sorted(errors.values())[1] > 0.4 * shown


@pytest.mark.parametrize("images", [1, 2, 5, 25])
def test_finite_class_target_is_what_m_images_show(toy: LayerStatistics, images: int) -> None:
    result = targets(toy, [images, images], class_target="finite")
    for label in range(2):
        groups = draw_images(toy, label, 40_000 * images // min(images, 5)).view(-1, images, 16)
        assert float(result.class_var[label]) == pytest.approx(mean_variance(groups), rel=0.01)


def test_class_targets_by_formula(toy: LayerStatistics) -> None:
    within, between = toy.within.float(), toy.between.float()
    for name, expected in (
        ("edc", within),
        ("full", within + between),
        ("finite", within + torch.tensor([[0.0], [0.75]]) * between),
    ):
        result = targets(toy, [1, 4], class_target=name)
        torch.testing.assert_close(result.class_var, expected)
        torch.testing.assert_close(result.class_mean, toy.mean.float())


def test_batch_targets_count_the_labels(toy: LayerStatistics) -> None:
    labels = torch.tensor([1, 0, 1, 1])
    (ours,) = batch_targets([toy], labels, StatisticsConfig())
    theirs = targets(toy, [1, 3])
    for spec in dataclasses.fields(LayerTargets):
        assert torch.equal(getattr(ours, spec.name), getattr(theirs, spec.name))


def test_synthetic_images_are_measured_like_real_ones(
    observer: nn.Module, data: LongTailedData, runtime: Runtime
) -> None:
    config, spec = StatisticsConfig(batch_size=7), data.spec(flip=True)

    def measured(images: Tensor, crops: tuple[float, bool] | None) -> list[LayerStatistics]:
        shown = ImageSet(images, data.train_labels)
        return synthetic_statistics(observer, shown, spec, crops, config, runtime)

    whole = measured(data.train_images, None)
    assert_same(whole, calibrate(observer, data, runtime))
    assert_same(measured(data.train_images / 255, None), whole)
    cropped = measured(data.train_images, (0.5, True))
    assert_same(measured(data.train_images / 255, (0.5, True)), cropped)
    for layer, cut in zip(whole, cropped, strict=True):
        assert torch.equal(cut.count, VIEWS * layer.count)
        assert not torch.allclose(cut.mean, layer.mean, rtol=1e-2)
    # a crop of everything is the image itself
    for layer, cut in zip(whole, measured(data.train_images, (1.0, False)), strict=True):
        torch.testing.assert_close(cut.mean, layer.mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["convnet3_bn", "resnet9"])
def test_the_batch_size_changes_no_bit(name: str, data: LongTailedData) -> None:
    runtime = Runtime(torch.device("cpu"), quiet=True)
    with runtime.global_stream("test"):
        network = build_model(name, data.num_classes, data.image_size, data.channels)
    network = network.to(memory_format=torch.channels_last)
    expected = calibrate(network, data, runtime)
    # 3 leaves a single image for the last batch of some counts.
    for batch_size in (1, 2, 3, 7):
        for one, other in zip(calibrate(network, data, runtime, batch_size), expected, strict=True):
            for field in ("mean", "within", "between"):
                assert torch.equal(getattr(one, field), getattr(other, field)), (batch_size, field)
