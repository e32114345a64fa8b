"""Several processes on one run, connected by gloo, without importing torch again."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from helpers.tiny_run import Forked
from ltdd.cli import main, options
from ltdd.cli.commands import distill as distill_command
from ltdd.config import DistillConfig
from ltdd.engine.run_options import RunOptions
from ltdd.engine.storage.files import file_sha256, tensors_sha256
from ltdd.engine.storage.stage_store import read_stage

ADDRESS = "127.0.0.1"


def _start_store() -> int:
    """Start a store in a process of its own, as torchrun's agent is one, and return its port.

    Its threads look up names, for which the C library has a lock. A copy of a process that is made
    meanwhile would wait for that lock for ever, so this process must have no such threads. The
    store ends with this process, when nobody can write to the pipe any more.
    """
    ready, port = os.pipe()
    waits, open_end = os.pipe()

    def serve() -> None:
        store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
        os.close(open_end)
        os.write(port, f"{store.port}\n".encode())
        os.read(waits, 1)
        os._exit(0)

    Forked(serve)
    os.close(port)
    os.close(waits)
    with os.fdopen(ready) as lines:
        return int(lines.readline())


def start_ranks(world: int, work: Callable[[int], object]) -> list[Forked]:
    """Start so many copies of this process, as torchrun does; each does something by its rank."""
    port = _start_store()

    def process(rank: int) -> None:
        os.environ.update(
            MASTER_ADDR=ADDRESS,
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
            TORCHELASTIC_RESTART_COUNT="0",
            WORLD_SIZE=str(world),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        try:
            work(rank)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    return [Forked(lambda rank=rank: process(rank)) for rank in range(world)]


def with_ranks(world: int, work: Callable[[int], object]) -> None:
    """Do something on several ranks and wait for all."""
    assert [process.wait() for process in start_ranks(world, work)] == [0] * world


def start_commands(
    world: int,
    request: tuple[DistillConfig, Path, RunOptions],
    said: Path,
    patch: pytest.MonkeyPatch,
    before: Callable[[int], None] = lambda rank: None,
) -> list[Forked]:
    """Start ``ltdd distill`` on several ranks.

    Args:
        world: number of ranks.
        request: configuration, folder and options.
        said: file of what they print to stderr.
        patch: of the test.
        before: done by each rank first.
    """
    patch.setattr(distill_command, "parse_distill", lambda argv: options.Request(*request))

    def command(rank: int) -> None:
        before(rank)
        with said.open("a") as sys.stderr:
            status = main.main(["distill"])
        os._exit(status)

    return start_ranks(world, command)


def given_experts(run: Path, out: Path) -> Path:
    """Make a folder that has the trained experts of another run, and nothing else of it."""
    (out / "stages").mkdir(parents=True)
    shutil.copy(run / "run.json", out)
    for file in (run / "stages").glob("experts-*.safetensors"):
        shutil.copy(file, out / "stages")
    return out


def hashes(out: Path) -> dict[str, str]:
    """Return the SHA-256 of the tensors of every stage of a run, and of its distilled set."""
    return stage_hashes(out) | {"data": file_sha256(out / "data.safetensors")}


def stage_hashes(out: Path) -> dict[str, str]:
    """Return the SHA-256 of the tensors of every stage that a folder holds."""
    files = sorted((out / "stages").glob("*.safetensors"))
    return {file.stem: tensors_sha256(read_stage(file).tensors) for file in files}
