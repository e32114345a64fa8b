"""Training passes: recorded on a GPU, or called as they are, with the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ltdd.config import ExpertsConfig
from ltdd.models import build_model
from ltdd.passes import TrainingPasses
from ltdd.runtime import Runtime
from ltdd.stages.experts import ExpertNetwork

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def expert(device: str) -> ExpertNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ExpertNetwork(build_model("convnet3_bn", 5, 16, 3), 5, ExpertsConfig())
    return network.to(device).to(memory_format=torch.channels_last).train()


def batches(device: str, sizes: tuple[int, ...] = (12, 12, 7, 12)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(n, 3, 16, 16, generator=generator) for n in sizes]
    return [x.to(device).contiguous(memory_format=torch.channels_last) for x in drawn]


def step(network: nn.Module, outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Take a small step of gradient descent; return outputs and gradients."""
    network.zero_grad(set_to_none=True)
    torch.autograd.backward(sum((o.float().square().mean() for o in outputs), torch.zeros(())))
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    found = [*(o.detach().clone() for o in outputs), *(g.clone() for g in gradients)]
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.01 * gradient
    return found


def compare(device: str, precision: str) -> TrainingPasses:
    network = expert(device)
    twin = copy.deepcopy(network)
    runtime = Runtime(torch.device(device), precision)
    passes = TrainingPasses(network, runtime)
    for batch in batches(device):
        found = step(network, passes(batch))
        with runtime.autocast():
            outputs = twin(batch)
        for ours, wanted in zip(found, step(twin, outputs), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=2e-3, atol=2e-3)
    for ours, wanted in zip(network.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=2e-3, atol=2e-3)
    return passes


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert compare("cpu", "fp32")._recorded is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@needs_a_gpu
@pytest.mark.cuda
def test_a_recorded_pass_computes_the_same(precision: str) -> None:
    assert compare("cuda", precision)._recorded is not None


@needs_a_gpu
@pytest.mark.cuda
def test_layers_of_anybody_elses_code_are_not_recorded() -> None:
    class Curious(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.abs().max())  # reads from the device, which a recording cannot

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Curious()).cuda()
    passes = TrainingPasses(network, Runtime(torch.device("cuda")))
    batch = batches("cuda")[0]
    torch.testing.assert_close(passes(batch), network(batch))
    assert passes._recorded is None


def test_a_recording_that_fails_is_told_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = expert("cpu")
    passes = TrainingPasses(network, Runtime(torch.device("cpu")))
    monkeypatch.setattr(passes, "_may_record", True)

    def refuse(images: Tensor) -> nn.Module:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(passes, "_record", refuse)
    batch = batches("cpu")[0]
    for _ in range(2):
        assert torch.equal(passes(batch)[0], network(batch)[0])
    said = "training is slower: operation not permitted when stream is capturing\n"
    assert capsys.readouterr().err.count(said) == 1

    def exhaust(images: Tensor) -> nn.Module:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(passes, "_record", exhaust)
    monkeypatch.setattr(passes, "_shape", None)
    with pytest.raises(RuntimeError, match="out of memory"):
        passes(batch)


@needs_a_gpu
@pytest.mark.cuda
def test_the_network_keeps_its_own_call_and_its_copies_too() -> None:
    network = expert("cuda")
    copied = copy.deepcopy(network)
    passes = TrainingPasses(network, Runtime(torch.device("cuda")))
    first, second, *_ = batches("cuda")
    passes(first)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert float(network.eval()(second)[0].abs().max()) == 0
    assert float(copied.eval()(second)[0].abs().max()) > 0
