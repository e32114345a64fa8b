"""Run a frozen network over a set of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltdd.data.augment import normalise
from ltdd.runtime import Runtime


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    runtime: Runtime,
    batch_size: int = 500,
) -> Tensor:
    """Return the logits of a network in evaluation mode.

    Args:
        model: maps normalised (B, C, H, W) to (B, K).
        images: (N, C, H, W), uint8 or float in [0, 1], on any device.
        mean, std: (C,), in units of [0, 1].
        runtime: device and precision.
        batch_size: images per forward pass.

    Returns:
        float32 (N, K) on the CPU.
    """
    was_training = model.training
    model.eval()
    mean, std = mean.to(runtime.device), std.to(runtime.device)
    with runtime.autocast():
        logits = [
            model(normalise(batch.to(runtime.device), mean, std)).float().cpu()
            for batch in images.split(batch_size)
        ]
    model.train(was_training)
    return torch.cat(logits)
