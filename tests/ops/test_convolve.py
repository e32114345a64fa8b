"""convolve: the operator where it is faster, the layer elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ltdd_ext import reference
from ltdd_ext.nn import convolve


@pytest.mark.parametrize(
    ("layer", "shape", "taken"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 8, 8), True),
        (nn.Conv2d(32, 4, 3, padding=1, bias=False), (2, 32, 64, 8), True),
        (nn.Conv2d(32, 4, 3, padding=1), (2, 32, 65, 8), False),
        (nn.Conv2d(9, 4, 3, padding=1), (2, 9, 8, 8), False),
        (nn.Conv2d(128, 64, 3, padding=1), (1, 128, 4, 4), True),
        (nn.Conv2d(64, 129, 3, padding=1), (64, 64, 4, 4), False),  # few pixels for many taps
        (nn.Conv2d(64, 32, 3, padding=1), (64, 64, 3, 3), True),
        (nn.Conv2d(64, 32, 3, padding=1), (64, 64, 5, 5), False),  # tiles that are hardly filled
        (nn.Conv2d(64, 32, 3, padding=1), (512, 64, 2, 2), False),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (2, 3, 8, 8), False),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), (2, 4, 8, 8), False),
        (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (2, 3, 8, 8), False),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 8), False),
        (nn.Conv2d(3, 4, 3), (2, 3, 8, 8), False),
        (nn.Conv2d(3, 4, 3, padding=1).double(), (2, 3, 8, 8), False),
        (nn.Identity(), (2, 3, 8, 8), False),
    ],
    ids=str,
)
def test_convolve_takes_what_it_computes_faster(layer, shape, taken):
    calls = []

    def op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        calls.append(x.shape)
        return reference.conv3x3(x, weight, bias)

    parameter = next(layer.parameters(), torch.zeros(()))
    x = torch.randn(shape, dtype=parameter.dtype)
    torch.testing.assert_close(convolve(layer, x, op), layer(x))
    torch.testing.assert_close(convolve(layer, x), layer(x), rtol=1e-4, atol=1e-4)
    assert bool(calls) == taken
    with torch.autocast("cpu", torch.float16):
        convolve(layer, x, op)
    assert len(calls) == taken


@pytest.mark.parametrize(
    ("cpu", "capped", "taken"),
    [
        ("amx", False, (3, 8)),
        ("amx", True, (3, 8, 9, 64)),
        ("avx512", True, (3, 8, 64)),
        ("avx512", False, (3, 8, 64)),
        ("avx2", False, (3, 8, 9, 64)),
        ("baseline", False, ()),
    ],
)
@pytest.mark.parametrize("channels", [3, 8, 9, 64])
def test_convolve_under_autocast_takes_what_the_processor_is_slow_at(
    monkeypatch, channels, cpu, capped, taken
):
    """What PyTorch computes by tiles of AMX is left to it, but for few channels."""
    monkeypatch.setattr("ltdd_ext._convolution._CPU", cpu)
    monkeypatch.setattr("ltdd_ext._convolution._PYTORCH_HAS_TILES", not capped)
    calls = []

    def op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        calls.append((x.dtype, weight.dtype))
        return reference.conv3x3(x, weight, bias)

    layer, x = nn.Conv2d(channels, 6, 3, padding=1), torch.randn(2, channels, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got, own, want = convolve(layer, x, op), convolve(layer, x), layer(x)
        cast = convolve(copy.deepcopy(layer).bfloat16(), x, op)
    assert calls == [(torch.bfloat16, torch.float32)] * 2 * (channels in taken)
    assert got.dtype == own.dtype == cast.dtype == want.dtype == torch.bfloat16
    for one in (got, own, cast):
        torch.testing.assert_close(one, want, rtol=2e-2, atol=2e-2)


def test_convolve_leaves_a_mixture_of_dtypes_to_the_layer():
    layer = nn.Conv2d(3, 4, 3, padding=1)
    with pytest.raises(RuntimeError, match="type"):
        convolve(layer, torch.randn(2, 3, 8, 8).bfloat16())
