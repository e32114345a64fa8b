"""Keep the images of a class from becoming alike (G-VBSM, arXiv:2311.17950)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 4.0


def eigenvalue_loss(images: Tensor, classes: Sequence[Tensor]) -> Tensor:
    """Return how much sharper the eigenvalues of the classes' images are than at temperature 4.

    ``sum_k KL(softmax(e_k / 4) || softmax(e_k))``, where e_k are the eigenvalues of the Gram matrix
    ``X_k X_k^T`` of the flattened images of class k; the first distribution is a constant, so the
    gradient by e_k is ``softmax(e_k) - softmax(e_k / 4)``. Rolling or mirroring all images alike
    does not change it. It takes the pixels of the whole batch once more, in float64, and a matrix
    of n x n for n images of a class, but no network.

    Args:
        images: normalised, (N, C, H, W).
        classes: positions of the images of every class, int64.

    Returns:
        A float64 scalar; 0 for classes of one image.
    """
    rows = images.flatten(1).double()
    total = rows.new_zeros(())
    for members in classes:
        own = rows[members]
        values = torch.linalg.eigvalsh(own @ own.T)
        flat = F.log_softmax(values.detach() / TEMPERATURE, dim=0)
        total = total + F.kl_div(
            F.log_softmax(values, dim=0), flat, reduction="sum", log_target=True
        )
    return total
