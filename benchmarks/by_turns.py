"""What it saves to let trainings take turns: ``python -m benchmarks.by_turns ARGUMENT...``.

Runs ``ltdd distill`` with the arguments twice, in two folders below --out: trainings one after
the other, then by turns. Prints the seconds of both stages that train several networks, and whether
they stored the same bytes, which `--deterministic true` has them do on a GPU.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from ltdd import pipeline
from ltdd.cli.options import parse_distill
from ltdd.config import DistillConfig
from ltdd.engine import turns
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import resolve_device
from ltdd.engine.storage.stage_store import read_stage

STAGES = ("experts", "evaluation")
AT_ONCE = 5


def measure(
    config: DistillConfig, out: Path, options: RunOptions
) -> tuple[dict[str, tuple[float, float]], bool]:
    """Return the seconds of the stages, alone and by turns, and whether their bytes are equal."""
    kind, before = resolve_device(config.device).type, dict(turns.AT_ONCE)
    seconds: dict[str, tuple[float, ...]] = dict.fromkeys(STAGES, ())
    folders = [out / "alone", out / "turns"]
    try:
        for folder, count in zip(folders, (1, AT_ONCE), strict=True):
            turns.AT_ONCE[kind] = count
            own = dataclasses.replace(options, store=None)
            costs = pipeline.distill(config, folder, options=own)["stages"]
            seconds = {stage: (*seconds[stage], costs[stage]["seconds"]) for stage in STAGES}
    finally:
        turns.AT_ONCE.clear()
        turns.AT_ONCE.update(before)
    return {stage: (one, other) for stage, (one, other) in seconds.items()}, _equal(*folders)


def _equal(alone: Path, together: Path) -> bool:
    """Return whether the stages of two runs stored the same tensors."""
    for path in (alone / "stages").glob("*.safetensors"):
        other = together / "stages" / path.name
        if not other.exists():  # what it was made from differs
            return False
        found, wanted = read_stage(other).tensors, read_stage(path).tensors
        if not all(torch.equal(found[name], wanted[name]) for name in wanted):
            return False
    return True


def main() -> None:
    """Measure and print."""
    request = parse_distill(sys.argv[1:])
    seconds, equal = measure(request.config, request.out, request.options)
    for stage, (one, other) in seconds.items():
        print(f"{stage}: {one:.1f} s one after the other, {other:.1f} s by turns")
    print("the same bytes" if equal else "other bytes")


if __name__ == "__main__":
    main()
