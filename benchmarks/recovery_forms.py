"""A recovery step of a frozen network: ours, with the hooks of others, with neither."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ltdd_ext
from benchmarks import rivals
from benchmarks.cases import CLASSES, Forms, compiled

Gap = Callable[[Tensor, Tensor, Tensor], Tensor]


class Hooked(nn.Module):
    """Cross-entropy and the gaps that hooks before the batch norms measure.

    The hooks are there before anything is compiled, so that a compiler sees one graph.

    Args:
        model: network, copied.
        gap: of an activation to its targets; None leaves the alignment out.
    """

    def __init__(self, model: nn.Module, gap: Gap | None) -> None:
        super().__init__()
        self.model, self.gaps = copy.deepcopy(model), list[Tensor]()
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms if gap is not None else ():
            norm.register_forward_pre_hook(self._hook(gap, *targets(norm)))

    def _hook(self, gap: Gap | None, mean: Tensor, var: Tensor) -> Callable[..., None]:
        assert gap is not None

        def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.gaps.append(gap(inputs[0], mean, var))

        return measure

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the batch."""
        self.gaps.clear()
        total = F.cross_entropy(self.model(x).float(), labels)
        for gap in self.gaps:
            total = total + gap
        return total


def targets(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the mean and variance that a norm's input is aligned with."""
    mean = torch.zeros(norm.num_features, device=norm.weight.device)
    return mean, torch.ones_like(mean)


def recovery_forms(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Forms:
    """Return a step of each form: the gradient of its loss by the images.

    ``norms fused`` is the compiled network without alignment: what measuring costs beside it is the
    overhead of the statistics.
    """
    model = model.eval().requires_grad_(False)
    labels = torch.arange(x.shape[0], device=x.device) % CLASSES
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    means, variances = (list(column) for column in zip(*map(targets, norms), strict=True))
    observed = ltdd_ext.nn.convert_observer(copy.deepcopy(model), strict=True)

    def fused(x: Tensor, labels: Tensor) -> Tensor:
        logits, seen = observed(x)
        loss = ltdd_ext.align_loss(
            [one.mean for one in seen],
            [one.m2 for one in seen],
            [one.spatial_size for one in seen],
            labels,
            means,
            variances,
        )
        return F.cross_entropy(logits.float(), labels) + loss

    def run(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
                loss = form(x, labels)
            return torch.autograd.grad(loss, x)[0]

        return step

    def whole(gap: Gap | None) -> Callable[..., Tensor]:
        return compiled(Hooked(model, gap), fullgraph=True)

    return {
        "ours": run(fused),
        "peer": run(Hooked(model, rivals.published_gap)),
        "plain": run(Hooked(model, rivals.plain_gap)),
        "compile": run(whole(rivals.plain_gap)),
        "no alignment": run(Hooked(model, None)),
        "norms fused": run(whole(None)),
    }
