"""Memory of recovery: decided by the batch, not by how many images a class gets."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import torch
from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.models import build_model
from ltdd.engine.machine.memory import Meter, keep_freed_memory
from ltdd.engine.runtime import Runtime
from ltdd.stages.recovery.alignment import Observed, align_images
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics

keep_freed_memory()  # as a run does
ipc, max_batch = map(int, sys.argv[1:])
runtime = Runtime(torch.device("cpu"), quiet=True)
torch.manual_seed(0)
images, labels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 10
names, mean = tuple("abcdefghij"), (0.5,) * 3
data = LongTailedData(images, labels, images, labels, names, mean, mean, "0" * 64, "noise")
observer = build_model("convnet3_bn", 10, 16, 3)
targets = StatisticsConfig(batch_size=20)
observed = Observed(observer, class_statistics(observer, data, targets, runtime))
own = torch.arange(10).repeat_interleave(ipc)
start = InitialImages(torch.rand(10 * ipc, 3, 16, 16), own, own)
config = RecoveryConfig(iterations=2, max_batch=max_batch)
with Meter(runtime.device) as meter:
    align_images(start, [observed], data.spec(flip=True), config, StatisticsConfig(), runtime)
print(json.dumps(meter.peak_bytes))
"""


def peak_bytes(ipc: int, max_batch: int) -> int:
    """Peak of recovery as a run records it, in a process of its own.

    The larger of two: a kernel that takes back idle pages of libraries lowers what is resident.
    """
    command = [sys.executable, "-c", PROGRAM, str(ipc), str(max_batch)]
    peaks = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(json.loads(done.stdout)))
    return max(peaks)


def test_memory_is_flat_in_images_per_class() -> None:
    few, many, at_once = peak_bytes(10, 100), peak_bytes(50, 100), peak_bytes(100, 1000)
    assert many <= 1.05 * few
    # The figure is that of the batch: all images in one show.
    assert at_once > 1.15 * few


AFTER = """
import json
import torch
from ltdd.engine.machine.memory import Meter, keep_freed_memory

keep_freed_memory()
device = torch.device("cpu")
peaks = []
for megabytes in (10, 400, 10):
    with Meter(device) as meter:
        torch.ones(megabytes << 18)
    peaks.append(meter.peak_bytes)
print(json.dumps(peaks))
"""


def test_a_stage_does_not_count_what_another_one_freed() -> None:
    done = subprocess.run([sys.executable, "-c", AFTER], capture_output=True, text=True, check=True)
    before, large, after = json.loads(done.stdout)
    assert large > before + 350e6
    assert after < before + 50e6
