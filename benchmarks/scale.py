"""What every stage costs as a set grows: in images N, classes K, images per class, pixels.

    python -m benchmarks.scale                  Markdown: every axis at three sizes
    python -m benchmarks.scale --axis classes   one axis alone
    python -m benchmarks.scale --many-classes   all stages with K = 1,000 and N = 50,000
    torchrun --nproc-per-node 2 -m benchmarks.scale --many-classes      the same on several ranks
    python -m benchmarks.scale --two-processes  two of one thread against one of two, on idle cores

Images are synthetic: their content does not decide how long anything takes. Every size runs in a
process of its own, so that its peak memory is its own. Time is CPU time of the process, so that
other programs do not count; memory is what a stage has at most beyond the program itself. The last
column is the exponent e of a fit ``cost = a size^e``: 1 is linear, and more wants a reason or a
remedy.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd import pipeline
from ltdd.config import DistillConfig, InitializationConfig
from ltdd.data.long_tailed_data import LongTailedData, from_tensors
from ltdd.engine.machine.memory import peak_bytes
from ltdd.engine.machine.surroundings import processes
from ltdd.engine.run_options import RunOptions
from ltdd.engine.watching.units import duration, size
from ltdd.results.pages.report import write_report
from ltdd.results.tables import markdown_table
from ltdd.stages.nearest_images import SAMPLED
from ltdd.stages.statistics import VIEWS

SIX = ("experts", "statistics", "initialization", "recovery", "relabeling", "evaluation")
STAGES = (*SIX, "drift", "nearest")
HEAD, TAIL = 1280, 5  # images of the largest and of the smallest class of a thousand
MANY_CLASSES, MANY_IMAGES = 1000, 50_000
ITERATIONS = 20
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Size:
    """A set and what is made of it.

    Attributes:
        images: N, of all classes together.
        classes: K.
        ipc: images per class.
        pixels: side of an image.
    """

    images: int = 2000
    classes: int = 20
    ipc: int = 10
    pixels: int = 16

    def times(self, axis: str, factor: int) -> Size:
        """Return a larger one; more classes bring their images along."""
        changes = {axis: getattr(self, axis) * factor}
        if axis == "classes":
            changes["images"] = self.images * factor
        return dataclasses.replace(self, **changes)


def class_sizes(total: int, classes: int) -> list[int]:
    """Return a long tail of so many images: `TAIL` each, and what is left falls exponentially."""
    if classes < MANY_CLASSES:
        return [total // classes] * classes
    spread = (total - TAIL * classes) / (HEAD - TAIL)  # sum of exp(-k / spread) is about spread
    return [TAIL + round((HEAD - TAIL) * math.exp(-k / spread)) for k in range(classes)]


def synthetic(wanted: Size) -> LongTailedData:
    """Return noisy images around one coarse pattern a class, five test images each."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(wanted.classes, 3, 4, 4, generator=generator)
    counts = torch.tensor(class_sizes(wanted.images, wanted.classes))
    parts: list[tuple[Tensor, Tensor]] = []
    for each in (counts, torch.full_like(counts, 5)):
        labels = torch.arange(wanted.classes).repeat_interleave(each)
        images = torch.empty(len(labels), 3, wanted.pixels, wanted.pixels, dtype=torch.uint8)
        for rows in torch.arange(len(labels)).split(1000):
            coarse = patterns[labels[rows]]
            base = F.interpolate(coarse, size=(wanted.pixels, wanted.pixels), mode="bilinear")
            noise = torch.rand(base.shape, generator=generator)
            images[rows] = ((0.7 * base + 0.3 * noise) * 255).to(torch.uint8)
        parts.append((images, labels))
    return from_tensors(*parts[0], *parts[1])


def configuration(wanted: Size, epochs: int, network: str) -> DistillConfig:
    """Return all stages with short schedules, stored labels of every view and two students."""
    return DistillConfig.from_dict(
        {
            "ipc": wanted.ipc,
            "image_size": wanted.pixels,
            "device": "cpu",
            "experts": {"observer": f"{network}_bn", "epochs": epochs, "batch_size": 128},
            "recovery": {"iterations": ITERATIONS, "max_batch": 100},
            "relabeling": {"labels": "fkd"},
            "evaluation": {
                "student": network,
                "epochs": 10 * epochs,
                "seeds": 1,
                "baselines": ["random_real"],
                "batch_size": 100,
            },
        }
    )


def work(wanted: Size, config: DistillConfig) -> dict[str, tuple[int, str]]:
    """Return how many units every stage works through, and what a unit is."""
    images = sum(class_sizes(wanted.images, wanted.classes))
    made, epochs = wanted.classes * wanted.ipc, config.evaluation.epochs
    asked = made + min(images, SAMPLED)
    return {
        "experts": (images * config.experts.epochs, "images"),
        "statistics": (images, "images"),
        "initialization": (images * InitializationConfig.crops_per_image, "crops"),
        "recovery": (made * ITERATIONS, "views"),
        "relabeling": (made * epochs, "views"),
        "evaluation": (2 * made * epochs, "views"),
        "drift": (made * (2 * VIEWS + 1), "views"),
        "nearest": (asked * images, "pairs"),
    }


class Clock:
    """CPU seconds and seconds of every stage, from the events of a run (`Sink`).

    Seconds are from the end of the stage before: what several ranks compute at once is logged when
    it is there.
    """

    def __init__(self) -> None:
        self.cpu, self.seconds = (dict.fromkeys(STAGES, 0.0) for _ in range(2))
        self._began, self._ended = 0.0, time.perf_counter()

    def start(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Take what earlier processes logged: nothing."""

    def add(self, event: Mapping[str, Any]) -> None:
        """Begin with a stage, and end with it."""
        if event["event"] == "stage_start":
            self._began = time.process_time()
        elif event["event"] == "stage_end":
            self.cpu[event["stage"]] += time.process_time() - self._began
            now = time.perf_counter()
            self.seconds[event["stage"]] += now - self._ended
            self._ended = now


def measure(wanted: Size, out: Path, epochs: int, network: str) -> dict[str, Any]:
    """Run all stages; return for each seconds, CPU seconds, peak bytes, and bytes that it leaves.

    Peak bytes are those beyond the program itself, the data included.
    """
    program = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    data, clock = synthetic(wanted), Clock()
    options = RunOptions(quiet=True, store=None, sinks=lambda folder: [clock])
    config = configuration(wanted, epochs, network)
    costs = pipeline.distill(config, out, data=data, options=options)["stages"]
    return {
        stage: {
            "cpu": clock.cpu[stage],
            "seconds": clock.seconds[stage],
            "peak": max(costs[stage]["peak_bytes"] - program, 0),
            "left": sum(file.stat().st_size for file in out.glob(f"stages/{stage}-*")),
        }
        for stage in STAGES
    }


def apart(
    wanted: Size, epochs: int, network: str, ranks: int = 1, threads: int | None = None
) -> dict[str, Any]:
    """`measure` in a process of its own, or in several.

    Args:
        wanted, epochs, network: what is made.
        ranks: number of processes.
        threads: of each; None leaves it open.
    """
    words = ["--nproc-per-node", str(ranks), "-m"]
    start = ["-m"] if ranks == 1 else ["-m", "torch.distributed.run", *words]
    options = ["--epochs", str(epochs), "--network", network]
    one = ["--one", json.dumps(dataclasses.asdict(wanted))]
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *start, "benchmarks.scale", *options, *one],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | given,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of a straight line through the logarithms (least squares)."""
    x, y = ([math.log(max(v, 1e-9)) for v in values] for values in (sizes, costs))
    mean_x, mean_y = (sum(values) / len(values) for values in (x, y))
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def table(axis: str, sizes: Sequence[Size], found: Sequence[Any], config: DistillConfig) -> str:
    """Return time, rate, memory and bytes of every stage along an axis, with exponents."""
    values = [getattr(wanted, axis) for wanted in sizes]
    units = [work(wanted, config) for wanted in sizes]
    rows = []
    for stage in STAGES:
        cpu, peak, left = ([one[stage][part] for one in found] for part in ("cpu", "peak", "left"))
        shown = [map(duration, cpu), map(size, peak), map(size, left)]
        rates = [units[n][stage][0] / max(seconds, 1e-9) for n, seconds in enumerate(cpu)]
        rate = f"{' / '.join(f'{rate:,.0f}' for rate in rates)} {units[0][stage][1]}"
        powers = ", ".join(f"{exponent(values, v):.2f}" for v in (cpu, peak, left))
        time_, memory, stored = (" / ".join(cells) for cells in shown)
        rows.append([stage, time_, rate, memory, stored, powers])
    title = f"{axis}: {', '.join(map(str, values))}"
    header = [title, "CPU time", "per CPU second", "memory", "stored", "exponents"]
    return markdown_table(header, rows)


def many_classes(out: Path, wanted: Size, epochs: int, network: str) -> str:
    """Run all stages with a thousand classes; return what they took, and the report's size."""
    found = measure(wanted, out, epochs, network)
    if processes()[0] > 0:
        return ""
    began = time.process_time()
    report = write_report(out)
    took = f"report {duration(time.process_time() - began)} of CPU time"
    units = work(wanted, configuration(wanted, epochs, network))
    rows = [
        [
            stage,
            duration(cost["cpu"]),
            f"{units[stage][0] / cost['cpu']:.3g} {units[stage][1]}",
            size(cost["peak"]),
            size(cost["left"]),
        ]
        for stage, cost in found.items()
    ]
    files = {file.name: file.stat().st_size for file in (report, out / "results.json")}
    sizes = ", ".join(f"{name} {size(count)}" for name, count in files.items())
    cpu = duration(sum(cost["cpu"] for cost in found.values()))
    header = [f"{wanted}", "CPU time", "per CPU second", "memory", "stored"]
    whole = f"stages {cpu} of CPU time, {took}, peak {size(peak_bytes(CPU))}; {sizes}"
    return f"{markdown_table(header, rows)}\n\n{whole}"


def two_processes(wanted: Size, epochs: int, network: str) -> str:
    """Return seconds of every stage by one process of two threads and by two of one, in turns."""
    run = functools.partial(apart, wanted, epochs, network)
    found: dict[str, list[dict[str, Any]]] = {"one": [], "two": []}
    for _ in range(2):
        found["one"].append(run(ranks=1, threads=2))
        found["two"].append(run(ranks=2, threads=1))
    rows = []
    for stage in STAGES:
        one, two = (min(made[stage]["seconds"] for made in found[who]) for who in ("one", "two"))
        rows.append([stage, f"{one:.2f} s", f"{two:.2f} s", f"{one / two:.2f}"])
    header = [f"{wanted}, {network}", "one of two threads", "two of one thread", "quotient"]
    return markdown_table(header, rows)


def main() -> None:
    """Measure what the command line asks for."""
    axes = [field.name for field in dataclasses.fields(Size)]
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--axis", choices=axes)
    parser.add_argument("--many-classes", action="store_true")
    parser.add_argument("--two-processes", action="store_true")
    parser.add_argument("--epochs", type=int, default=2, help="Of experts; students have ten times")
    parser.add_argument("--network", default="convnet3_w32", help="Of students; experts have _bn.")
    parser.add_argument("--base", default="{}", help="Fields of `Size` as JSON.")
    parser.add_argument("--out", type=Path, help="Folder of the run of --many-classes.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    how = options.epochs, options.network
    given = json.loads(options.one or options.base)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "run"
        if options.one:
            found = measure(Size(**given), out, *how)
            if processes()[0] == 0:
                print(json.dumps(found))
        elif options.many_classes:
            many = dataclasses.replace(Size(MANY_IMAGES, MANY_CLASSES, 1, 32), **given)
            print(many_classes(out, many, *how))
        elif options.two_processes:
            print(two_processes(Size(**({"images": 1000, "ipc": 5, "pixels": 32} | given)), *how))
        else:
            measured = functools.cache(lambda wanted: apart(wanted, *how))
            for axis in [options.axis] if options.axis else axes:
                sizes = [Size(**given).times(axis, factor) for factor in (1, 2, 4)]
                rows = [measured(wanted) for wanted in sizes]
                print(f"{table(axis, sizes, rows, configuration(sizes[0], *how))}\n", flush=True)


if __name__ == "__main__":
    main()
