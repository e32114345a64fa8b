"""Keep what a teacher was on its way: students may learn from weaker teachers first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_PREFIX = "after "


class Course:
    """Copies of a network's weights at given shares of its training.

    Args:
        shares: of all steps, each above 0 and below 1.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._kept: dict[str, dict[str, Tensor]] = {}

    def look(self, step: int, steps: int, network: nn.Module) -> None:
        """Keep the weights of a network if a step ends one of the shares.

        Args:
            step: how many are done.
            steps: of the whole training.
            network: as it is after them.
        """
        for share in self._shares:
            if step == max(1, math.ceil(share * steps)):
                state = network.state_dict()
                copies = {key: value.detach().cpu().clone() for key, value in state.items()}
                self._kept[str(share)] = copies

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept so far, for a checkpoint."""
        return self._kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._kept = {share: dict(weights) for share, weights in state.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is kept, to be stored beside the finished network's weights."""
        return {
            f"{_PREFIX}{share} {key}": value
            for share, weights in self._kept.items()
            for key, value in weights.items()
        }


def weights_after(tensors: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the weights of a stored network after a share of its training; 1 is the finished one.

    Args:
        tensors: of `Course.tensors`, beside those of the finished network.
        share: one of the course, or 1.
    """
    if share == 1:
        return {key: value for key, value in tensors.items() if not key.startswith(_PREFIX)}
    prefix = f"{_PREFIX}{share} "
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
