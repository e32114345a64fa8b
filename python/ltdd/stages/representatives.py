"""Images that stand for their class: the nearest one to each centre of k-means (arXiv:2302.14416).

Both the start of the images and their recovery choose so, many times and on any device; hence
Lloyd's iterations here instead of scikit-learn's.

Deviation: no image stands for two clusters; the published choice may name one twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

LLOYD_STEPS = 20  # at most


@torch.no_grad()
def representatives(features: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """Pick rows that stand for all.

    Clusters choose in the order of their sizes, the largest first, each the nearest row to its
    centre among those that are left.

    Args:
        features: float32 (n, D), on any device.
        wanted: M, rows to pick; where there are no more, all are.
        generator: CPU generator of the first centres.

    Returns:
        int64 (min(M, n),), distinct rows, on the CPU.
    """
    count = len(features)
    if wanted >= count:
        return torch.arange(count)
    centres = features[torch.randperm(count, generator=generator)[:wanted].to(features.device)]
    cluster = torch.full((count,), -1, device=features.device)
    for _ in range(LLOYD_STEPS):
        nearest = torch.cdist(centres, features).argmin(0)
        if torch.equal(nearest, cluster):
            break
        cluster = nearest
        # A product instead of a scattered sum, whose order no GPU promises.
        member = (cluster == torch.arange(wanted, device=features.device)[:, None]).float()
        sizes = member.sum(1, keepdim=True)
        centres = torch.where(sizes > 0, member @ features / sizes.clamp_min(1), centres)
    distances = torch.cdist(centres, features)
    sizes = (cluster == torch.arange(wanted, device=features.device)[:, None]).sum(1)
    picked = []
    for centre in sizes.sort(descending=True, stable=True).indices:
        row = distances[centre].argmin()
        distances[:, row] = torch.inf
        picked.append(row)
    return torch.stack(picked).cpu()
