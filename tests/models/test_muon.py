"""Muon: what it orthogonalises, its step against PyTorch's, AdamW for the rest, its state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ltdd.models.muon import MOMENTUM, Muon, orthogonalize


def spread(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a matrix whose singular values fall from 1 to 0.02."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    made: Tensor = u * torch.logspace(0, -1.7, len(values), dtype=torch.float64) @ vt
    return made.to(dtype)


def by_definition(matrix: Tensor) -> Tensor:
    """Return five Newton-Schulz steps, each taken of the whole matrix."""
    matrix = matrix / matrix.norm()
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * gram + 2.0315 * gram @ gram) @ matrix
    return matrix


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (1, 9)], ids=str)
def test_singular_values_become_nearly_equal(shape: tuple[int, int]) -> None:
    matrix = spread(*shape)
    (step,) = orthogonalize(matrix[None])
    assert step.shape == shape
    values = torch.linalg.svdvals(step)
    assert 0.5 < values.min() <= values.max() < 1.25
    # The singular vectors stay what they were: U^T step V is diagonal.
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ step @ vt.T
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-9


def test_steps_of_the_gram_matrix_are_those_of_the_whole() -> None:
    exact = by_definition(spread(16, 40))
    (double,) = orthogonalize(spread(16, 40)[None])
    torch.testing.assert_close(double, exact, rtol=1e-10, atol=1e-12)
    (single,) = orthogonalize(spread(16, 40, torch.float32)[None])
    assert (single - exact).norm() <= 1e-4 * exact.norm()


def test_a_gradient_of_zeros_moves_nothing() -> None:
    given = torch.stack([torch.zeros(3, 5), torch.rand(3, 5)])
    zeros, other = orthogonalize(given)
    assert not zeros.any()
    torch.testing.assert_close(other, orthogonalize(given[1:])[0])


def layer(seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last)


def take_steps(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], steps: int, seed: int = 1
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_kernels_step_as_with_the_optimizer_of_pytorch() -> None:
    ours = layer()
    theirs = nn.Parameter(ours.weight.detach().flatten(1).clone())
    assert MOMENTUM == 0.95
    other = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = theirs.detach().clone()
    take_steps(Muon([{"params": [ours.weight], "weight_decay": 0.1}], 0.01), [ours.weight], 4)
    take_steps(other, [theirs], 4)
    moved, wanted = ours.weight.flatten(1) - start, theirs - start
    assert (moved - wanted).norm() <= 2e-2 * wanted.norm()  # theirs computes in bfloat16


def test_everything_else_steps_as_with_adamw() -> None:
    ours = nn.Linear(5, 4)
    theirs = copy.deepcopy(ours)
    for network, optimizer in (
        (ours, Muon([{"params": ours.parameters(), "weight_decay": 0.1}], 0.01)),
        (theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)),
    ):
        take_steps(optimizer, list(network.parameters()), 4)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_move_together_as_one_by_one(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    sizes = ((6, 8), (3, 8), (6, 8), (40, 2))
    together = [nn.Conv2d(*size, 3).to(memory_format=layout).weight for size in sizes]
    apart = copy.deepcopy(together)
    before = [kernel.detach().clone() for kernel in together]
    optimizers = [Muon([{"params": together, "weight_decay": 0.1}], 0.01)]
    optimizers += [Muon([{"params": [kernel], "weight_decay": 0.1}], 0.01) for kernel in apart]
    for _ in range(3):
        for one, other in zip(together, apart, strict=True):
            one.grad = torch.randn(one.shape).contiguous(memory_format=layout)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, start in zip(together, apart, before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float((one - start).std()))


def test_parameters_without_gradient_stay() -> None:
    network = nn.Sequential(layer(), nn.Flatten(), nn.Linear(8, 2))
    before = copy.deepcopy(network.state_dict())
    Muon([{"params": network.parameters()}], 0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_restored_optimizer_goes_on_with_the_same_bits() -> None:
    whole, halves = layer(), layer()
    unbroken = Muon([{"params": whole.parameters()}], 0.01)
    optimizer = Muon([{"params": halves.parameters()}], 0.01)
    for seed in range(2):
        take_steps(unbroken, list(whole.parameters()), 1, seed)
        stored = copy.deepcopy(optimizer.state_dict())
        optimizer = Muon([{"params": halves.parameters()}], 0.01)
        optimizer.load_state_dict(stored)
        take_steps(optimizer, list(halves.parameters()), 1, seed)
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, other)
