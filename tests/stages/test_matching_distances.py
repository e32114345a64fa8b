"""Distances of gradients and of features, against their definitions."""

import math

import pytest
import torch

from ltdd.stages.recovery.distances import Spectrum, characteristic, rows_cosine, squared
from ltdd.stages.recovery.distribution import amplitude_weights


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


SHAPES = ((4, 3, 3, 3), (5, 6))


def test_rows_are_compared_one_by_one() -> None:
    first, second = drawn(*SHAPES), drawn(*SHAPES, seed=1)
    wanted = 0.0
    for a, b in zip(first, second, strict=True):
        for row, other in zip(a, b, strict=True):
            dot, lengths = float((row * other).sum()), float(row.norm() * other.norm())
            wanted += 1 - dot / (lengths + 1e-6)
    assert float(rows_cosine(first, second)) == pytest.approx(wanted, rel=1e-5)


def test_the_squared_distance_is_a_sum() -> None:
    first, second = drawn(*SHAPES), drawn(*SHAPES, seed=1)
    wanted = sum(float(((a - b) ** 2).sum()) for a, b in zip(first, second, strict=True))
    assert float(squared(first, second)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("distance", [rows_cosine, squared])
def test_equal_gradients_have_no_distance_and_no_pull(distance: object) -> None:
    assert callable(distance)
    first = drawn(*SHAPES)
    second = [tensor.clone().requires_grad_() for tensor in first]
    loss = distance(second, first)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-4)
    pulls = torch.autograd.grad(loss, second)
    assert max(float(pull.abs().max()) for pull in pulls) <= 1e-5


def test_only_the_direction_of_rows_counts() -> None:
    first = drawn(*SHAPES)
    scaled = [3 * tensor for tensor in first]
    assert float(rows_cosine(first, scaled)) == pytest.approx(0, abs=1e-4)
    assert float(rows_cosine(first, [-tensor for tensor in first])) == pytest.approx(18, rel=1e-4)


def test_half_amplitude_is_half_the_discrepancy_of_a_gaussian_kernel() -> None:
    """Against the double sums over all pairs, without any frequency."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(30, 3, generator=generator)
    synthetic = 0.7 * torch.randn(20, 3, generator=generator) + 0.5
    scale = 0.8
    frequencies = scale * torch.randn(200_000, 3, generator=generator)
    got = characteristic(Spectrum.of(synthetic, frequencies), Spectrum.of(real, frequencies), 0.5)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.exp(-(scale**2) * torch.cdist(a, b).square() / 2).mean())

    discrepancy = kernel(real, real) + kernel(synthetic, synthetic) - 2 * kernel(real, synthetic)
    assert float(got) == pytest.approx(discrepancy / 2, rel=0.02)


def test_amplitudes_do_not_see_a_shift_and_phases_do() -> None:
    generator = torch.Generator().manual_seed(0)
    features, frequencies = torch.randn(2, 50, 4, generator=generator)
    here, there = Spectrum.of(features, frequencies), Spectrum.of(features + 0.7, frequencies)
    assert float(characteristic(here, there, 1.0)) == pytest.approx(0, abs=1e-9)
    assert float(characteristic(here, there, 0.0)) > 1e-3


def test_the_distance_of_a_vanishing_function_has_a_gradient() -> None:
    """Two features half a turn apart: the function is 0 there, and its root has no slope."""
    features = torch.tensor([[0.0], [math.pi]], requires_grad=True)
    frequency = torch.ones(1, 1)
    real = Spectrum.of(torch.zeros(2, 1), frequency)
    (gradient,) = torch.autograd.grad(
        characteristic(Spectrum.of(features, frequency), real, 1.0), features
    )
    assert torch.isfinite(gradient).all()


def test_head_classes_have_more_of_the_amplitude() -> None:
    weights = amplitude_weights((500, 50, 5), 0.7, 0.3)
    assert weights == pytest.approx([0.7, 0.5, 0.3])
    assert amplitude_weights((7, 7), 0.7, 0.3) == pytest.approx([0.5, 0.5])
