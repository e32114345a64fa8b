"""Weights cast together: the numbers of autocast, and a network that is left as it was."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from ltdd.engine.cast_weights import CastWeights
from ltdd.engine.runtime import Runtime


class Tied(nn.Module):
    """A convolution, a norm, and two linear layers of one weight; one bias is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(2, 2)
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.second(self.first(features).relu())  # type: ignore[no-any-return]


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_gradients_are_those_of_autocast(precision: Literal["bf16", "fp32"]) -> None:
    torch.manual_seed(0)
    network, x = Tied(), torch.randn(4, 3, 8, 8)
    plain, runtime = copy.deepcopy(network), Runtime(torch.device("cpu"), precision)
    weights = CastWeights(network, runtime)
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (network, plain)]
    for _ in range(3):
        with weights.used(), runtime.autocast():
            assert (network.conv.weight.dtype == torch.bfloat16) == (precision == "bf16")
            loss = network(x).float().square().mean()
        with runtime.autocast():
            wanted = plain(x).float().square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        weights.backward(loss)
        wanted.backward()
        assert torch.equal(loss, wanted)
        for (name, got), want in zip(
            gradients(network).items(), gradients(plain).values(), strict=True
        ):
            assert got is None if want is None else torch.equal(got, want), name
        for optimizer in optimizers:
            optimizer.step()
    assert network.unused.weight.grad is None
    for got, want in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got, want)


def test_parameters_come_back_after_an_error() -> None:
    network = Tied()
    before = dict(network.named_parameters())
    with (
        pytest.raises(RuntimeError),
        CastWeights(network, Runtime(torch.device("cpu"), "bf16")).used(),
    ):
        network(torch.zeros(4, 5, 8, 8))
    after = dict(network.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_gradients_of_several_processes_stay_with_the_parameters() -> None:
    network = Tied()
    with CastWeights(network, Runtime(torch.device("cpu"), "bf16"), whole=False).used():
        assert network.conv.weight.dtype == torch.float32
