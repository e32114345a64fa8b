"""Trainings next to each other on one machine: seconds a step, alone and beside a second one.

Each is a process of its own that trains ConvNet-3 with batch norm on 256 views of 32 px, prepared
as the command line prepares its runs (``ltdd.engine.machine.cores``), or left to what torch does
by itself.
Both forms run in turn. All times are those of the clock, so the machine has to be quiet.

``python -m benchmarks -s -k contention`` prints the figures.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

VIEWS, CLASSES, SIDE = 256, 10, 32
SECONDS, WARM_UP, ROUNDS = 8.0, 6.0, 3  # threads follow what is free after two looks or three
FORMS = ("ours", "torch's own")


def train(form: str, precision: str, gate: Path) -> None:
    """Train from when the gate opens, and print the median seconds of a step after the warm-up."""
    from ltdd.engine.machine import cores

    if form == "ours":
        cores.prepare()
    import torch

    from ltdd.engine.cuda_graphs import RecordedSteps
    from ltdd.engine.machine.memory import keep_freed_memory
    from ltdd.engine.runtime import Runtime
    from ltdd.models import build_model

    keep_freed_memory()
    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"), "bf16" if precision == "bf16" else "fp32", quiet=True)
    network = build_model("convnet3_bn", CLASSES, SIDE, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(VIEWS, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(VIEWS) % CLASSES

    def take(images: torch.Tensor) -> torch.Tensor:
        with runtime.autocast():
            logits = network(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    step = RecordedSteps(take, network, runtime)
    step(images)
    (gate / str(os.getpid())).touch()
    while not (gate / "open").exists():
        time.sleep(0.01)
    begun, seconds = time.monotonic(), []
    while time.monotonic() < begun + WARM_UP + SECONDS:
        start = time.monotonic()
        step(images)
        if start > begun + WARM_UP:
            seconds.append(time.monotonic() - start)
    print(statistics.median(seconds), torch.get_num_threads())


def together(count: int, form: str, precision: str, gate: Path) -> list[tuple[float, int]]:
    """Return seconds a step and threads at the end of so many trainings at once."""
    gate.mkdir()
    call = [sys.executable, "-m", "benchmarks.bench_contention", form, precision, str(gate)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    runs = [
        subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(count)
    ]
    while len(list(gate.iterdir())) < count:
        if any(run.poll() for run in runs):
            raise RuntimeError("contention: a training ended before it began")
        time.sleep(0.1)
    (gate / "open").touch()
    printed = [run.communicate()[0].split() for run in runs]
    return [(float(seconds), int(threads)) for seconds, threads in printed]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_seconds_of_a_step_beside_another_training(precision: str, tmp_path: Path) -> None:
    alone: dict[str, list[float]] = {form: [] for form in FORMS}
    beside: dict[str, list[float]] = {form: [] for form in FORMS}
    for number in range(ROUNDS):
        for form in FORMS:
            for count, into in ((1, alone), (2, beside)):
                gate = tmp_path / f"{number} {form} {count}"
                made = together(count, form, precision, gate)
                into[form] += [seconds for seconds, _ in made]
                threads = ", ".join(str(own) for _, own in made)
                print(f"\n{precision}, {form}: {made[0][0]:.3f} s, threads {threads}", end="")
    print(f"\n{precision}, {VIEWS} views, {os.cpu_count()} cores, seconds a step")
    for form in FORMS:
        one, two = statistics.median(alone[form]), statistics.median(beside[form])
        print(f"{form:>12}: alone {one:.3f}, beside another {two:.3f}, x {two / one:.2f}")
    lost = statistics.median(alone["ours"]) / statistics.median(alone["torch's own"]) - 1
    print(f"lost alone: {100 * lost:.1f} %")


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
