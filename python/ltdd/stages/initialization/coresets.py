"""Coresets: whole real images of a class, chosen by what a trained network makes of them.

Sources: k-center, arXiv:1708.00489; graph-cut of gradients as in DeepCore, arXiv:2204.08499.

Deviation: ``ipc`` images of every class, where DeepCore shares a budget out by the classes' sizes;
the network is the run's teacher, where DeepCore trains one for a few epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.config import GraphCut, KCenter
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.runtime import Runtime
from ltdd.stages.initialization.whole_images import seen_in_class


@dataclass(frozen=True)
class Coreset:
    """Real images chosen by the teacher's features, or by the gradients that they cause."""

    teacher: nn.Module
    data: LongTailedData
    runtime: Runtime
    chunks: Chunks

    def chosen(
        self, members: Tensor, wanted: int, label: int, config: KCenter | GraphCut
    ) -> Tensor:
        """Choose images of a class; a class with too few starts over.

        Args:
            members: int64 (n,), the training images of the class.
            wanted: number to choose.
            label: the class.
            config: which way.

        Returns:
            int64 (wanted,), some of ``members``.
        """
        count = min(wanted, len(members))
        features = self._seen(
            cast(Callable[[Tensor], Tensor], self.teacher.features), members, label
        )
        if isinstance(config, KCenter):
            generator = self.runtime.stream("initialization", "k_center", label)
            first = int(torch.randint(len(members), (), generator=generator))
            order = farthest_first(features, first, count)
        else:
            logits = self._seen(self.teacher, members, label)
            order = graph_cut(prediction_errors(logits, label), features, count)
        return members[order[torch.arange(wanted) % count]]

    def _seen(self, look: Callable[[Tensor], Tensor], members: Tensor, label: int) -> Tensor:
        """Return what is seen in images, float32 (n, D) on the CPU."""
        seen = seen_in_class(look, self.data, members, label, self.runtime, self.chunks)
        return seen.cpu()


def farthest_first(features: Tensor, first: int, wanted: int) -> Tensor:
    """Choose rows one by one, each the farthest from those that are chosen (k-center, greedy).

    Args:
        features: float (n, D).
        first: the row to begin with.
        wanted: M <= n.

    Returns:
        int64 (M,), distinct rows. Ties go to the lower row.
    """
    chosen, nearest = [first], torch.full((len(features),), torch.inf)
    while len(chosen) < wanted:
        newest = features[chosen[-1]]
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(features - newest, dim=1))
        nearest[chosen[-1]] = -1  # below every distance, of equal images too
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def prediction_errors(logits: Tensor, label: int) -> Tensor:
    """Return ``p - y`` (n, K) of softmax probabilities p, float64.

    The entry of the class is minus the sum of the others, which keeps the direction of the error
    where p is so near to 1 that the difference would be rounded away.
    """
    errors = F.softmax(logits.double(), dim=1)
    errors[:, label] = 0
    errors[:, label] = -errors.sum(1)
    return errors


def graph_cut(errors: Tensor, features: Tensor, wanted: int) -> Tensor:
    """Choose rows that are like many others and unlike each other, greedily.

    A row's vector is the gradient of the cross-entropy by the last layer, ``e (x) [1, h]`` with
    e = p - y. The similarity is ``s(v, x) = 1/2 + cos(v, x) / 2``, the gain of a row
    ``sum_v s(v, x) - 2 sum_chosen s(c, x)`` over all rows v. The cosine of two such products is the
    product of the factors' cosines, so no gradient is built; and the sum over all rows is one
    product with ``sum_v e_v (x) [1, h_v]`` of the unit factors, so no (n, n) matrix is either:
    memory is O(n (D + K) + D K), a step O(n (D + K)). Gains are kept for all rows, which makes lazy
    evaluation needless.

    Args:
        errors: e, float64 (n, K).
        features: h, float (n, D).
        wanted: M <= n.

    Returns:
        int64 (M,), distinct rows. Ties go to the lower row.
    """
    ones = torch.ones(len(features), 1, dtype=torch.float64)
    # The smallest errors still have a direction; none at all has none, and a cosine of 0.
    left = F.normalize(errors, dim=1, eps=torch.finfo(torch.float64).tiny)
    right = F.normalize(torch.cat([ones, features.double()], dim=1), dim=1)
    gains = len(left) / 2 + ((left @ (left.T @ right)) * right).sum(1) / 2
    chosen: list[int] = []
    while len(chosen) < wanted:
        best = int(gains.argmax())
        chosen.append(best)
        cosine = (left @ left[best]) * (right @ right[best])
        gains -= 1 + cosine  # twice the similarity
        gains[chosen] = -torch.inf
    return torch.tensor(chosen)
