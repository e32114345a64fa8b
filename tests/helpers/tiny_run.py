"""A run of seconds, and processes that can be killed without importing torch again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from ltdd import pipeline
from ltdd.config import (
    DistillConfig,
    EvaluationConfig,
    ExpertsConfig,
    RecoveryConfig,
    RelabelingConfig,
)
from ltdd.engine.run_options import RunOptions
from ltdd.engine.storage.files import read_json

QUIET = RunOptions(quiet=True, store=None)


def shared(store: Path) -> RunOptions:
    """Return the options of a quiet run that shares results of stages."""
    return dataclasses.replace(QUIET, store=store)


TINY = DistillConfig(
    data="digits",
    imbalance_factor=100.0,
    ipc=2,
    horizontal_flip=False,
    experts=ExpertsConfig(
        observer="convnet3_bn", epochs=2, batch_size=64, learning_rate=0.05, schedule="one_cycle"
    ),
    recovery=RecoveryConfig(iterations=6, max_batch=10),
    evaluation=EvaluationConfig(epochs=3, batch_size=10, seeds=2, full_epochs=1),
)

FINISHED = dataclasses.replace(
    TINY,
    imbalance_factor=50.0,
    experts=dataclasses.replace(TINY.experts, epochs=1),
    recovery=RecoveryConfig(iterations=2),
    relabeling=RelabelingConfig(packing="topk", packing_top=4),
    evaluation=EvaluationConfig(epochs=2, batch_size=10, seeds=1, baselines=("random_real",)),
)
"""The run of the fixture ``run``, which only reads of what a run leaves behind want."""


class Forked:
    """A copy of this process that does one thing; it can be killed at any moment."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def has_ended(self) -> bool:
        """Return whether the process is gone; `wait` and `kill` still tell how."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is not None

    def kill(self) -> bool:
        """Send SIGKILL; return whether the process was still at work."""
        os.kill(self.pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])

    def wait(self) -> int:
        """Return the exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Outcome:
    """What must not depend on kills: the bytes of the set and the student's accuracy."""

    def __init__(self, out: Path) -> None:
        self.sha256 = hashlib.sha256((out / "data.safetensors").read_bytes()).hexdigest()
        self.accuracy = read_json(out / "results.json")["student"]["accuracy"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)


def distill(out: Path, checkpoint_seconds: float = 60.0, config: DistillConfig = TINY) -> None:
    options = dataclasses.replace(QUIET, checkpoint_seconds=checkpoint_seconds)
    pipeline.distill(config, out, options=options)


def smaller(folder: Path) -> DistillConfig:
    """Return a run of all stages in under a second, on digits written to a folder."""
    digits = load_digits()
    for label, count in enumerate((24, 8, 2)):
        images = digits.images[digits.target == label]
        for part, chosen in (("train", images[:count]), ("test", images[count : count + 10])):
            (folder / part / str(label)).mkdir(parents=True)
            for number, image in enumerate(chosen):
                pixels = Image.fromarray((image * 15).astype(np.uint8))
                pixels.save(folder / part / str(label) / f"{number}.png")
    experts = dataclasses.replace(TINY.experts, batch_size=8)
    data = f"imagefolder:{folder}"
    return dataclasses.replace(TINY, data=data, imbalance_factor=None, experts=experts)


def open_to_others(folder: Path) -> None:
    """Let other users reach a temporary folder, whose parents pytest keeps closed."""
    for path in (folder, *folder.parents):
        if path in Path(tempfile.gettempdir()).parents or path == Path(tempfile.gettempdir()):
            return
        path.chmod(0o755)
