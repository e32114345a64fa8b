"""The two normalisation layers of the field's networks, alone and with what follows them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ltdd.engine.distributed.ranks import current
from ltdd_ext import backends, bn_act_moments, norm_act, synced_norm_act
from ltdd_ext.bn_act_moments import Act, Pool
from ltdd_ext.nn import convolve


class InstanceNorm(nn.Module):
    """Affine instance norm: a group norm with one channel per group.

    It has no running statistics, so there is nothing to match in recovery. It is
    `ltdd_ext.norm_act`, which reads channels_last and 16-bit maps as they are: torch's own layers
    are slow on the first, and copy them on a GPU; autocast turns group norm's into float32.

    Args:
        channels: Number of channels C.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Return normalised maps of the shape (N, C, H, W), dtype and memory format given."""
        if _has_kernels(maps):
            return norm_act(maps, *_affine(self, maps), "image", self.eps, act="none")[0]
        return F.group_norm(maps, self.channels, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the number of channels for `repr`."""
        return f"{self.channels}, eps={self.eps}"


class SyncedBatchNorm(nn.BatchNorm2d):
    """A batch norm whose statistics in training are those of the batches of all ranks.

    torch's `SyncBatchNorm` is for GPUs alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised maps of the shape (N, C, H, W) and the dtype given."""
        return self.followed(input) if self.training else super().forward(input)

    def followed(self, maps: Tensor, act: Act = "none", pool: Pool = "none") -> Tensor:
        """Normalise in training, and do what follows in the same pass."""
        ranks = current()

        def gather(own: Tensor) -> Tensor:
            return ranks.join(own[None], [1] * ranks.world)

        affine = _affine(self, maps)
        y, mean, m2, count = synced_norm_act(maps, *affine, gather, self.eps, act, pool)
        with torch.no_grad():
            _move(self, mean, m2 / (count - 1))
        return y


class NormBlock(nn.Sequential):
    """A layer, a norm, a ReLU and, if given, a 2x2 average pool; takes what `nn.Sequential` takes.

    The same as `nn.Sequential` of them, and traced as one. `ltdd_ext.bn_act_moments` computes a
    frozen batch norm with what follows it in one pass, and `ltdd_ext.norm_act` any other wherever
    it takes its statistics from the maps themselves: always in an instance norm, in training in a
    batch norm. The first layer is `ltdd_ext.nn.convolve`.
    """

    def forward(self, images: Tensor | fx.Proxy) -> Tensor:
        """Return maps (N, C, H, W), or of half that height and width."""
        known = len(self) > 2 and type(self[1]) in (InstanceNorm, nn.BatchNorm2d, SyncedBatchNorm)
        if isinstance(images, fx.Proxy) or not known or not _has_kernels(images):
            one_by_one: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return one_by_one
        first, norm, *rest = self
        assert isinstance(norm, InstanceNorm | nn.BatchNorm2d)
        pool: Pool = "avg2" if len(rest) > 1 else "none"
        maps = convolve(first, images)
        if isinstance(norm, nn.BatchNorm2d) and not norm.training:
            trained = norm.weight.requires_grad and torch.is_grad_enabled()
            watched = norm._forward_pre_hooks or norm._forward_hooks
            # Without running statistics it normalises by the batch, in evaluation too.
            if trained or watched or norm.running_mean is None:
                for layer in (norm, *rest):
                    maps = layer(maps)
                return maps
            return bn_act_moments(maps, *_frozen(norm, maps), pool=pool)[0]
        if isinstance(norm, SyncedBatchNorm):
            return norm.followed(maps, "relu", pool)
        y, mean, m2 = norm_act(
            maps,
            *_affine(norm, maps),
            over="image" if isinstance(norm, InstanceNorm) else "batch",
            eps=norm.eps,
            pool=pool,
        )
        if isinstance(norm, nn.BatchNorm2d):
            _track(norm, mean, m2, maps.shape[2] * maps.shape[3])
        return y


_WITH_KERNELS = frozenset(backends()["norm_act"])  # asked once: it takes as long as a layer


def _has_kernels(x: Tensor) -> bool:
    return x.device.type in _WITH_KERNELS


def _frozen(norm: nn.BatchNorm2d, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and offset of a batch norm by its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    offset = norm.bias.double() - norm.running_mean.double() * scale
    return scale.to(_computed_in(maps)), offset.to(_computed_in(maps))


def _affine(norm: InstanceNorm | nn.BatchNorm2d, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias in the dtype that `norm_act` computes in."""
    return norm.weight.to(_computed_in(maps)), norm.bias.to(_computed_in(maps))


def _computed_in(maps: Tensor) -> torch.dtype:
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, m2: Tensor, size: int) -> None:
    """Move running statistics towards a batch's, given its row moments, as the layer itself does.

    Without a momentum, they become the mean over all batches so far.
    """
    center = mean.mean(0)
    squares = (m2 + size * (mean - center).square()).sum(0)
    _move(norm, center, squares / (len(mean) * size - 1))


def _move(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    """Move running statistics towards a batch's mean and unbiased variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    share = norm.momentum
    if share is None:
        assert norm.num_batches_tracked is not None
        share = 1 / int(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), share)


def pause_counting(network: nn.Module) -> dict[str, Tensor]:
    """Have batch norms no longer count their batches, which takes a launch a layer and step.

    Those without a momentum go on: the count is their momentum.

    Returns:
        The counts so far by the names of the layers, for `resume_counting`.
    """
    counts = {}
    for name, norm in network.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.momentum is not None:
            if norm.num_batches_tracked is not None:
                counts[name] = norm.num_batches_tracked
            norm.num_batches_tracked = None
    return counts


def resume_counting(network: nn.Module, counts: dict[str, Tensor], batches: int) -> None:
    """Give layers, those of a copy too, their counts back and so many batches more."""
    for name, count in counts.items():
        network.get_submodule(name).num_batches_tracked = count + batches


def instance_norm(channels: int) -> nn.Module:
    """Return an affine instance norm."""
    return InstanceNorm(channels)


def batch_norm(channels: int) -> nn.Module:
    """Return an affine batch norm with running statistics."""
    return nn.BatchNorm2d(channels)
