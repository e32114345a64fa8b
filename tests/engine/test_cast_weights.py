"""Weights cast together: the numbers of autocast, and a network that is left as it was."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from ltdd.engine import cast_weights
from ltdd.engine.cast_weights import CastWeights, frozen_weights_cast
from ltdd.engine.runtime import Runtime
from ltdd.models import build_model
from ltdd.models.observer import Observer
from ltdd_ext import _convolution


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


# --- frozen ones ---


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast_weights, "CAST_ONCE_ON", {"cpu"})
    monkeypatch.setattr(_convolution, "_CPU", "none")


@pytest.mark.parametrize("architecture", ["convnet3_bn", "resnet18", "mobilenet_v2"])
def test_frozen_weights_are_those_of_autocast(as_on_a_gpu: None, architecture: str) -> None:
    """Output, moments and gradient of an observer."""
    runtime = Runtime(torch.device("cpu"), "bf16")
    torch.manual_seed(0)
    observer = Observer(build_model(architecture, 10, 32, 3), runtime.ops)
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def look() -> list[Tensor]:
        own = x.clone().requires_grad_()
        with runtime.autocast():
            logits, moments = observer(own)
        rows = [logits, *(row for layer in moments for row in (layer.mean, layer.m2))]
        torch.autograd.backward(rows, [torch.ones_like(row) for row in rows])
        assert own.grad is not None
        return [*rows, own.grad]

    wanted, before = look(), dict(observer.network.named_parameters())
    with frozen_weights_cast(observer.network, runtime):
        kinds = (nn.Conv2d, nn.Linear)
        layers = [layer for layer in observer.network.modules() if isinstance(layer, kinds)]
        assert len(layers) > 3
        assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
        got = look()
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    after = dict(observer.network.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


def _fail_with(network: nn.Sequential, before: Tensor) -> None:
    assert network[0].weight is not before
    raise ValueError("stop")


def test_frozen_weights_come_back_after_an_error(as_on_a_gpu: None) -> None:
    network = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    before = network[0].weight
    with (
        pytest.raises(ValueError, match="stop"),
        frozen_weights_cast(network, Runtime(torch.device("cpu"), "bf16")),
    ):
        _fail_with(network, before)
    assert network[0].weight is before


def test_other_weights_stay(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained ones, those of other code, all in float32, and all on a CPU."""
    known = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2))
    known[0].requires_grad_(False)
    with frozen_weights_cast(known, Runtime(torch.device("cpu"), "bf16")):
        assert [layer.weight.dtype for layer in known] == [torch.bfloat16, torch.float32]
    with frozen_weights_cast(known, Runtime(torch.device("cpu"), "fp32")):
        assert known[0].weight.dtype == torch.float32
    other = Tied().requires_grad_(False)
    with frozen_weights_cast(other, Runtime(torch.device("cpu"), "bf16")):
        assert other.conv.weight.dtype == torch.float32
    monkeypatch.undo()
    with frozen_weights_cast(known, Runtime(torch.device("cpu"), "bf16")):
        assert known[0].weight.dtype == torch.float32
