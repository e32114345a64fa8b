"""Begin and end the work of several processes on one run."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import itertools
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from ltdd.engine import interruption
from ltdd.engine.distributed.ranks import Ranks, among, current, local_rank
from ltdd.engine.distributed.watch import Watch, failures_told
from ltdd.engine.machine.surroundings import processes
from ltdd.errors import UserError

# Ranks wait for each other as long as the longest unit takes; the watch says who is lost.
_WITHOUT_END = datetime.timedelta(days=365)
_sessions = itertools.count()


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[Ranks]:
    """Connect the ranks of a run inside the block; `current` gives them.

    A process group that is there already is used, whoever made it. A process by itself, and a block
    inside another one, go on as they are.

    Args:
        device: where the run computes. On GPUs every rank takes the one of its local rank.

    Raises:
        UserError: there are more ranks on this machine than GPUs, or this rank has failed.
        RankFailed: another rank has failed.
    """
    if current().world > 1 or not (processes()[1] > 1 or _is_connected()):
        yield current()
        return
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"expected a GPU for each rank of this machine, got {torch.cuda.device_count()} "
                f"for rank {local_rank()}; start fewer, or use --device cpu"
            )
        torch.cuda.set_device(local_rank())
    # Imported here: some builds of torch are without them.
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    if not dist.is_initialized():
        _connect("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    store = PrefixStore(f"ltdd{next(_sessions)}", _get_default_store())
    group: Any = dist.new_group(backend="gloo", timeout=_WITHOUT_END)
    watch = Watch(store, rank, world)
    ranks = Ranks(rank, world, group, watch)
    with interruption.handled(), failures_told(watch), among(ranks):
        ranks.share(None)  # all have left a first sign of life
        watch.start()
        yield ranks
        ranks.share(None)


def _connect(backend: str) -> None:
    """Join the process group of torchrun, which keeps its store when it starts processes again."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    atexit.register(dist.destroy_process_group)


def _is_connected() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
