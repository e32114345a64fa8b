"""The checkpoint of a stage whose steps all ranks take together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ltdd.engine import interruption
from ltdd.engine.distributed.ranks import Ranks
from ltdd.engine.storage.checkpoint import StageCheckpoint, pack_state, unpack_state


def share_state(ranks: Ranks, state: Any) -> Any:
    """Return the state of a checkpoint that the first rank gives, on all of them."""
    tensors: dict[str, Tensor] = {}
    packed = ranks.share(pack_state(state, tensors))
    return unpack_state(packed, ranks.share_tensors(tensors))


class CommonCheckpoint:
    """Written by the first rank alone, and given to all by it (`Checkpoint`).

    All ranks stop at the same step, so that what is kept is the state of all of them.

    Args:
        own: the checkpoint of this rank; only the first one's is written here.
        ranks: all of them.
    """

    def __init__(self, own: StageCheckpoint, ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks

    def restore(self) -> dict[str, Any]:
        """Return what a stopped run kept; empty if there is nothing."""
        interruption.delay(True)
        state = self._own.restore() if self._ranks.is_first else {}
        return dict(share_state(self._ranks, state))

    def step(self, **state: Any) -> None:
        """Keep the state if it is time to, and stop here if one of the ranks was asked to."""
        if self._ranks.any(interruption.requested()):
            interruption.request()
        if self._ranks.is_first:
            self._own.step(**state)
        interruption.stop_if_requested()

    def shares(self) -> list[dict[str, Any]]:
        """Return what every rank of a stopped run kept of its own units."""
        return self._own.shares()

    def share(self, rank: int) -> StageCheckpoint:
        """Return the checkpoint of the units of a rank."""
        return self._own.share(rank)
