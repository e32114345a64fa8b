"""Ranks that fail, are killed or stopped: the others end with one sentence, and the run goes on."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.ranks import given_experts, hashes, start_commands, with_ranks
from helpers.tiny_run import QUIET, Forked, smaller

from ltdd import pipeline
from ltdd.config import DistillConfig, RecoveryConfig
from ltdd.engine.distributed import watch
from ltdd.engine.distributed.ranks import current
from ltdd.engine.storage.run_folder import open_run
from ltdd.errors import UserError
from ltdd.models.data_parallel import DataParallel
from ltdd.stages.recovery import alignment

OPTIONS = dataclasses.replace(QUIET, checkpoint_seconds=0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the lost sooner than on a machine whose load nobody knows."""
    monkeypatch.setattr(watch, "BEAT", 0.1)
    monkeypatch.setattr(watch, "SILENT", 3.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    config = smaller(tmp_path_factory.mktemp("digits") / "data")
    return dataclasses.replace(
        config,
        ipc=4,
        experts=dataclasses.replace(config.experts, epochs=2),
        recovery=RecoveryConfig(iterations=8, max_batch=3),
        evaluation=dataclasses.replace(config.evaluation, baselines=(), seeds=1, epochs=1),
    )


@pytest.fixture(scope="module")
def finished(config: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of one process."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert Forked(lambda: pipeline.distill(config, out, options=OPTIONS)).wait() == 0
    return out


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails_in_training(action: Callable[[], None], who: int, patch: pytest.MonkeyPatch) -> None:
    """Let a rank do something in the middle of the training of experts."""
    seen, weighted = [], DataParallel.weighted

    def fail(self: DataParallel, loss: object) -> object:
        seen.append(loss)
        if len(seen) == 3 and current().rank == who:
            action()
        return weighted(self, loss)  # type: ignore[arg-type]

    patch.setattr(DataParallel, "weighted", fail)


FAILURES = {
    "raises": (raises(UserError("expected bread, got a stone")), "expected bread, got a stone", 2),
    "out of memory": (raises(MemoryError()), "experts: expected memory for a whole batch", 2),
    "disk": (raises(OSError(errno.EIO, "Input/output error", "x")), "x: Input/output error", 2),
    "a bug": (raises(KeyError("x")), "KeyError: 'x'", 2),
    "killed": (die, "ended without a word: killed, or its machine was lost", 1),
}


@pytest.mark.parametrize(
    ("what", "who", "world"),
    [*((what, 1, 2) for what in FAILURES), ("killed", 0, 2), ("killed", 1, 4)],
)
def test_a_rank_that_fails_stops_the_others_with_its_reason(
    what: str,
    who: int,
    world: int,
    config: DistillConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    action, reason, status = FAILURES[what]
    out, said = tmp_path / "run", tmp_path / "said"
    with monkeypatch.context() as patch:
        fails_in_training(action, who, patch)
        begun = time.monotonic()
        ranks = start_commands(world, (config, out, OPTIONS), said, patch)
        statuses = [rank.wait() for rank in ranks]
    assert time.monotonic() - begun < watch.LOST
    own = {"killed": -signal.SIGKILL, "a bug": 1}.get(what, status)
    assert statuses == [own if rank == who else status for rank in range(world)]
    (sentence,) = said.read_text().splitlines()
    assert sentence.startswith(f"ltdd: error: rank {who}: {reason}")
    assert len(list(out.glob("stages/experts-*.checkpoint"))) == 1


def test_all_ranks_stop_by_a_signal_and_go_on(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    ranks = start_commands(2, (config, out, OPTIONS), said, monkeypatch)
    while not list(out.glob("stages/experts-*.checkpoint")):
        time.sleep(0.005)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [128 + signal.SIGTERM] * 2
    assert said.read_text() == "ltdd: stopped by SIGTERM; resume with the same command\n"
    assert [path.suffix for path in out.glob("stages/*")] == [".checkpoint"]
    undisturbed = tmp_path / "undisturbed"
    for folder in (out, undisturbed):  # with as many ranks, experts have the same bytes
        with_ranks(2, functools.partial(distilled, config, folder))
    assert hashes(out) == hashes(undisturbed)


def distilled(config: DistillConfig, out: Path, rank: int = 0) -> None:
    pipeline.distill(config, out, options=OPTIONS)


@pytest.mark.parametrize("images", ["batches", "one batch"])
def test_a_killed_run_goes_on_with_other_numbers_of_ranks(
    images: str,
    config: DistillConfig,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if images == "one batch":  # its images are divided where there are ranks
        config = dataclasses.replace(config, ipc=8, recovery=RecoveryConfig(iterations=8))
        finished = given_experts_of(config, finished, tmp_path / "finished")
        assert Forked(lambda: pipeline.distill(config, finished, options=OPTIONS)).wait() == 0
    out, said = given_experts_of(config, finished, tmp_path / "run"), tmp_path / "said"
    advance = alignment._Batch.advance
    for world, steps in ((3, 2), (1, 2), (4, 1)):
        taken = []

        def dies(*arguments: object, steps: int = steps, taken: list[int] = taken) -> object:
            taken.append(1)
            if len(taken) > steps:
                die()
            return advance(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(alignment._Batch, "advance", dies)
            ranks = start_commands(world, (config, out, OPTIONS), said, patch)
            assert 0 not in [rank.wait() for rank in ranks]
        assert list(out.glob("stages/recovery-*.checkpoint"))
    with_ranks(2, functools.partial(distilled, config, out))
    assert hashes(out) == hashes(finished)
    assert list(out.glob("stages/*.checkpoint")) == []


def given_experts_of(config: DistillConfig, run: Path, out: Path) -> Path:
    given_experts(run, out)
    (out / "run.json").unlink()
    shutil.move(out / "stages", out.with_name(f"{out.name}-store"))
    split = pipeline.load_source(config, OPTIONS).split_sha256
    open_run(out, config.to_dict(), split).release()
    shutil.move(out.with_name(f"{out.name}-store"), out / "stages")
    return out


def test_a_second_run_in_the_folder_is_refused_by_all_its_ranks(
    config: DistillConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    split = pipeline.load_source(config, OPTIONS).split_sha256
    with open_run(finished, config.to_dict(), split):
        ranks = start_commands(2, (config, finished, OPTIONS), said, monkeypatch)
        assert [rank.wait() for rank in ranks] == [3, 3]
    (sentence,) = said.read_text().splitlines()
    assert f"rank 0: out: {finished} is in use by process {os.getpid()} on" in sentence


def test_other_commands_want_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ltdd.cli import main

    for rank, said in ((0, "ltdd verify: expected one process"), (1, "")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main.main(["verify", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert bool(said) == bool(error)


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again(config: DistillConfig, tmp_path: Path) -> None:
    out, here = tmp_path / "run", Path(__file__).resolve()
    program = tmp_path / "run.py"
    program.write_text(
        "import os, signal, sys\n"
        f"sys.path[:0] = [{str(here.parents[1])!r}]\n"
        "import torch; torch.set_num_threads(1)\n"
        "from ltdd import pipeline\n"
        "from ltdd.config import DistillConfig\n"
        "from ltdd.stages import experts\n"
        "weighted, seen = DataParallel.weighted, []\n"
        "def fail(self, loss):\n"
        "    seen.append(1)\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if first and os.environ['RANK'] == '1' and len(seen) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return weighted(self, loss)\n"
        "DataParallel.weighted = fail\n"
        "from faults.test_ranks import OPTIONS\n"
        f"config = DistillConfig.from_dict({config.to_dict()!r})\n"
        f"pipeline.distill(config, {str(out)!r}, options=OPTIONS)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "--max-restarts", "3", str(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    undisturbed = tmp_path / "undisturbed"
    with_ranks(2, functools.partial(distilled, config, undisturbed))
    assert hashes(out) == hashes(undisturbed)
