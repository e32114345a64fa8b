"""3x3 convolutions by ``ltdd_ext.conv3x3`` and by PyTorch's layer, for each class of shapes.

It is what ``ltdd_ext.nn.convolve`` chooses by. Forward, and the gradients that a trained layer, a
frozen one or labels ask for. Weights are float32, as networks keep them; bfloat16 is autocast's.
Both forms alternate; one thread, CPU time of that thread.

``python -m benchmarks -s -k convolutions`` prints the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.timing import keep_freed_pages, median_seconds
from ltdd_ext import build_info, conv3x3

# (images, channels, side, outputs)
TRAINED = [
    (25, 3, 32, 128),
    (25, 128, 16, 128),
    (25, 128, 8, 128),
    (64, 16, 32, 16),
    (64, 32, 32, 32),
    (25, 64, 64, 64),
    (8, 64, 56, 56),
    (25, 256, 4, 256),
    (256, 256, 4, 256),
    (64, 512, 2, 512),
]
FROZEN = [(100, 3, 32, 128), (100, 128, 16, 128), (100, 128, 8, 128)]
LABELS = [(340, 3, 32, 128), (340, 128, 16, 128), (340, 128, 8, 128)]
CASES = [
    (kind, shape)
    for kind, shapes in (("trained", TRAINED), ("frozen", FROZEN), ("labels", LABELS))
    for shape in shapes
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_convolutions(kind: str, shape: tuple[int, int, int, int], precision: str) -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, channels, side, outs = shape
    half = precision == "bf16"
    layer = nn.Conv2d(channels, outs, 3, padding=1).to(memory_format=torch.channels_last)
    layer.requires_grad_(kind == "trained")
    x = torch.randn(images, channels, side, side).to(memory_format=torch.channels_last)
    if half:
        x = x.bfloat16()
    # Nobody asks a network that is trained for the gradient of its images.
    x.requires_grad_(kind == "frozen" or (kind == "trained" and channels > 3))
    wanted = [one for one in (x, *layer.parameters()) if one.requires_grad]
    weight, bias = layer.parameters()

    def run(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def work() -> torch.Tensor:
            context: Any = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
            with context:
                y = call()
            if not wanted:
                return y
            return torch.autograd.grad(y, wanted, torch.ones_like(y))[0]

        return work

    forms: dict[str, Callable[[], Any]] = {
        "conv3x3": run(lambda: conv3x3(x, weight, bias)),
        "layer": run(lambda: layer(x)),
    }
    one, other = (form().double() for form in forms.values())
    assert float((one - other).norm() / other.norm()) <= (2e-2 if half else 1e-4)
    seconds = median_seconds(forms, rounds=15)
    ratio = seconds["layer"] / seconds["conv3x3"]
    times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    chosen = build_info()["cpu_instruction_set"]
    print(f"\n{chosen}, {precision}, {kind} {shape}: {times}, {ratio:.2f} times as fast")
