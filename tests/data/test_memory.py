"""Sets that do not fit into memory: what decoding and a whole run need, measured under a limit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 224
IMAGE_BYTES = 3 * SIDE * SIDE
ROOM = (
    448 << 20
)  # for the run itself; glibc alone sets 256 MiB aside when it is told to keep memory

# A run in a process whose memory is limited: RLIMIT_DATA counts all that is not a file's.
PROGRAM = """
import json, resource, sys, time
from pathlib import Path

import torch
from torch import nn

from ltdd import models, pipeline
from ltdd.config import *
from ltdd.data.long_tailed_data import load_data


def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split() for line in lines}
    return {name: int(values[name][1]) << 10 for name in ("VmData", "RssAnon", "RssFile")}


def tiny(num_classes, image_size, channels):
    layers = nn.Conv2d(channels, 8, 16, stride=16), nn.BatchNorm2d(8), nn.ReLU()
    return models.Network(nn.Sequential(*layers, nn.AvgPool2d(14)), 8, num_classes)


root, out, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
models._BUILDERS = models._BUILDERS | {"tiny": tiny}
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
else:
    nn.Conv2d(3, 8, 16)(torch.ones(1, 3, 16, 16)).sum().backward()
    print(json.dumps(memory()))
    sys.exit()
try:
    whole = bytearray(limit)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
times = []
for _ in range(2):
    start = time.monotonic()
    data = load_data("imagefolder:" + root)
    times.append(time.monotonic() - start)
bytes_mapped = data.train_images.numel()
del data
config = DistillConfig(
    data="imagefolder:" + root,
    ipc=2,
    experts=PlainExperts(observer="tiny", epochs=1, batch_size=16),
    statistics=StatisticsConfig(batch_size=16),
    initialization=RandomReal(),
    recovery=RecoveryConfig(iterations=2),
    relabeling=RelabelingConfig(labels="static"),
    evaluation=EvaluationConfig(student="tiny", seeds=1, epochs=2, baselines=()),
)
start = time.monotonic()
results = pipeline.distill(config, out, options=RunOptions(quiet=True, store=None))
print(json.dumps(memory() | {
    "first": times[0], "second": times[1], "run": time.monotonic() - start,
    "train_bytes": bytes_mapped, "accuracy": results["teacher"]["accuracy"]["mean"],
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
}))
"""


def program(root: Path, out: Path, limit: int) -> dict[str, float]:
    """Run the program under a limit in bytes; 0 only measures what its libraries need."""
    call = [sys.executable, "-c", PROGRAM, str(root), str(out), str(limit)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write_images(root: Path, count: int) -> None:
    """Write images of two classes whose files are small and whose pixels are not."""
    generator = np.random.default_rng(0)
    for part, number in (("train", count), ("test", 20)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for n in range(number // 2):
                coarse = generator.integers(100 * label, 100 * label + 156, (14, 14, 3))
                pixels = coarse.astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
                Image.fromarray(pixels).save(root / part / name / f"{n:06}.jpg", quality=75)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's RLIMIT_DATA")
def test_a_run_over_a_set_four_times_larger_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set takes some 5 GB of disk below the temporary folder, and the run some minutes."""
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    limit = int(program(tmp_path, tmp_path, 0)["VmData"]) + ROOM
    count = 2 * -(-4 * limit // (2 * IMAGE_BYTES))
    write_images(tmp_path / "images", count)
    found = program(tmp_path / "images", tmp_path / "run", limit)
    print(f"limit {limit / 2**20:.0f} MiB, {count} images; {found}")
    assert found["train_bytes"] == count * IMAGE_BYTES >= 4 * limit
    assert found["VmData"] <= limit
    assert found["second"] < found["first"] / 3
    assert found["accuracy"] > 0.9  # of the teacher, which saw the whole set once
    log = (tmp_path / "run" / "events.jsonl").read_text()
    assert re.search(r'"event": ?"done"', log)
