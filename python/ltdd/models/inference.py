"""Run a frozen network over a set of images."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltdd.data.augmentation.crops import normalize
from ltdd.data.image_spec import Normalization
from ltdd.engine.chunks import Chunks, whole_batch
from ltdd.engine.distributed.units import each
from ltdd.engine.runtime import NoCheckpoint, Runtime
from ltdd.errors import UserError
from ltdd_ext.nn import convert_observer


def fused(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a frozen network with every batch norm and what follows it computed in one pass.

    Where its graph does not prove that for all batch norms, or there are none, it is the network
    itself (`ltdd_ext.nn.convert_observer`).

    Args:
        model: maps (N, C, H, W) to (N, K); it is put into evaluation mode, without gradients for
            its parameters.
    """
    model.eval().requires_grad_(False)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    try:
        observed = convert_observer(model, strict=True)
    except ValueError:
        return model
    return lambda images: observed(images)[0]


@torch.no_grad()
def view_logits(
    model: Callable[[Tensor], Tensor], views: Tensor, runtime: Runtime, chunks: Chunks
) -> Tensor:
    """Return the logits (N, K) of normalised images, as many at once as fit into memory.

    Args:
        model: network in evaluation mode, or the features of one.
        views: float32 (N, C, H, W), normalised, on the runtime's device.
        runtime: device and precision.
        chunks: how many.

    Returns:
        (N, K), of the precision that the network computes in, on the same device.
    """

    def compute(part: slice) -> Tensor:
        with runtime.autocast():
            return model(views[part])

    return torch.cat(list(chunks.map(compute, len(views))))


def by_batch(network: nn.Module) -> nn.Module:
    """Return a copy, in evaluation mode, whose batch norms normalise by each batch's statistics.

    It is for whole batches only: what it says of an image depends on the others.
    """
    copied = copy.deepcopy(network).eval()
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    return copied


@torch.no_grad()
def whole_logits(model: Callable[[Tensor], Tensor], views: Tensor, runtime: Runtime) -> Tensor:
    """Return the logits (N, K) of normalised images that go through a network together.

    Args:
        model: of `by_batch`.
        views: float32 (N, C, H, W), normalised, on the runtime's device.
        runtime: device and precision.

    Raises:
        UserError: they do not fit into memory.
    """
    with whole_batch("relabeling", "evaluation.batch_size"), runtime.autocast():
        return model(views)


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    images: Tensor,
    normalization: Normalization,
    runtime: Runtime,
    batch_size: int = 500,
) -> Tensor:
    """Return the logits of a network in evaluation mode.

    Args:
        model: maps normalised (B, C, H, W) to (B, K).
        images: (N, C, H, W), uint8 or float in [0, 1], on any device.
        normalization: of the images that the model was trained on.
        runtime: device and precision.
        batch_size: images per forward pass, fewer if memory does not suffice.

    Returns:
        float32 (N, K) on the CPU.

    Raises:
        UserError: a logit is NaN or infinite.
    """
    was_training = model.training
    model.eval()
    mean, std = normalization.tensors(runtime.device)

    def compute(part: slice) -> Tensor:
        with runtime.autocast():
            logits: Tensor = model(normalize(images[part].to(runtime.device), mean, std))
        return logits.float().cpu()

    chunks = Chunks("inference", batch_size, runtime)

    def batch(start: int, runtime: Runtime) -> dict[str, Tensor]:
        rows = min(batch_size, len(images) - start)
        parts = chunks.map(lambda part: compute(slice(start + part.start, start + part.stop)), rows)
        return {"logits": torch.cat(list(parts))}

    starts = range(0, len(images), batch_size)
    made = each("inference", starts, batch, dataclasses.replace(runtime, checkpoint=NoCheckpoint()))
    logits = torch.cat([part["logits"] for part in made])
    model.train(was_training)
    check_logits(logits, "inference")
    return logits


def check_logits(logits: Tensor, stage: str) -> None:
    """Refuse logits that are no numbers.

    Args:
        logits: (N, K).
        stage: named in the message.

    Raises:
        UserError: names the stage and the first image.
    """
    bad = torch.nonzero(~torch.isfinite(logits).all(dim=1)).flatten()
    if len(bad):
        raise UserError(
            f"{stage}: expected finite logits, got NaN or infinity for image {int(bad[0])}, the "
            f"first of {len(bad)} of {len(logits)}; lower the learning rate or use --precision fp32"
        )
