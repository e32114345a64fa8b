"""What every stage costs as a set grows: in images N, classes K, images per class, pixels.

    python -m benchmarks.scale                  Markdown: every axis at three sizes
    python -m benchmarks.scale --axis classes   one axis alone
    python -m benchmarks.scale --many-classes   all stages with K = 1,000 and N = 50,000
    torchrun --nproc-per-node 2 -m benchmarks.scale --many-classes      the same on several ranks

Images are synthetic: their content does not decide how long anything takes. Every size runs in a
process of its own, so that its peak memory is its own. The last column is the exponent e of a fit
``cost = a size^e``: 1 is linear, and more wants a reason or a remedy.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd import pipeline
from ltdd.config import DistillConfig
from ltdd.data.long_tailed_data import LongTailedData, from_tensors
from ltdd.engine.run_options import RunOptions
from ltdd.engine.surroundings import processes
from ltdd.engine.watching.units import duration, size
from ltdd.results.pages.report import write_report
from ltdd.results.tables import markdown_table

SIX = ("experts", "statistics", "initialization", "recovery", "relabeling", "evaluation")
STAGES = (*SIX, "drift", "nearest")
HEAD, TAIL = 1280, 5  # images of the largest and of the smallest class of a thousand
MANY_CLASSES, MANY_IMAGES = 1000, 50_000


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
    classes: int = 10
    ipc: int = 5
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


def configuration(wanted: Size, epochs: int) -> DistillConfig:
    """Return all stages with short schedules, stored labels of every view and two students."""
    return DistillConfig.from_dict(
        {
            "ipc": wanted.ipc,
            "image_size": wanted.pixels,
            "experts": {"observer": "convnet3_bn", "epochs": epochs, "batch_size": 128},
            "recovery": {"iterations": 20, "max_batch": 100},
            "relabeling": {"labels": "fkd"},
            "evaluation": {
                "student": "convnet3",
                "epochs": 10 * epochs,
                "seeds": 1,
                "baselines": ["random_real"],
                "batch_size": 100,
            },
        }
    )


def measure(wanted: Size, out: Path, epochs: int) -> dict[str, Any]:
    """Run all stages; return seconds and peak bytes of each, and bytes of what they leave."""
    data = synthetic(wanted)
    options = RunOptions(quiet=True, store=None)
    results = pipeline.distill(configuration(wanted, epochs), out, data=data, options=options)
    left = {
        stage: sum(file.stat().st_size for file in out.glob(f"stages/{stage}-*"))
        for stage in STAGES
    }
    return {"stages": results["stages"], "bytes": left}


def apart(wanted: Size, epochs: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--epochs", str(epochs), "--one"]
    done = subprocess.run(
        [*command, json.dumps(dataclasses.asdict(wanted))], stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of a straight line through the logarithms (least squares)."""
    x, y = ([math.log(max(v, 1e-9)) for v in values] for values in (sizes, costs))
    mean_x, mean_y = (sum(values) / len(values) for values in (x, y))
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def table(axis: str, sizes: Sequence[Size], found: Sequence[Mapping[str, Any]]) -> str:
    """Return seconds, peak memory and bytes of every stage along an axis, with their exponents."""
    values = [getattr(wanted, axis) for wanted in sizes]
    rows = []
    for stage in STAGES:
        costs = [one["stages"][stage] for one in found]
        seconds, peaks = ([cost[what] for cost in costs] for what in ("seconds", "peak_bytes"))
        left = [one["bytes"][stage] for one in found]
        shown = [map(duration, seconds), map(size, peaks), map(size, left)]
        powers = ", ".join(f"{exponent(values, v):.2f}" for v in (seconds, peaks, left))
        rows.append([stage, *(" / ".join(cells) for cells in shown), powers])
    title = f"{axis}: {', '.join(map(str, values))}"
    return markdown_table([title, "time", "peak memory", "stored", "exponents"], rows)


def many_classes(out: Path, wanted: Size, epochs: int) -> str:
    """Run all stages with a thousand classes; return what they took, and the report's size."""
    found = measure(wanted, out, epochs)
    if processes()[0] > 0:
        return ""
    report = write_report(out)
    costs = found["stages"]
    rows = [
        [stage, duration(costs[stage]["seconds"]), size(costs[stage]["peak_bytes"])]
        for stage in STAGES
    ]
    files = {file.name: file.stat().st_size for file in (report, out / "results.json")}
    sizes = ", ".join(f"{name} {size(count)}" for name, count in files.items())
    total = sum(cost["seconds"] for cost in costs.values())
    peak = max(cost["peak_bytes"] for cost in costs.values())
    summary = f"all: {duration(total)}, peak {size(peak)}; {sizes}"
    return f"{markdown_table([f'{wanted}', 'time', 'peak memory'], rows)}\n\n{summary}"


def main() -> None:
    """Measure what the command line asks for."""
    axes = [field.name for field in dataclasses.fields(Size)]
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--axis", choices=axes)
    parser.add_argument("--many-classes", action="store_true")
    parser.add_argument("--epochs", type=int, default=2, help="Of experts; students have ten times")
    parser.add_argument("--base", default="{}", help="Fields of `Size` as JSON.")
    parser.add_argument("--out", type=Path, help="Folder of the run of --many-classes.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    base = Size(**json.loads(options.one or options.base))
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "run"
        if options.one:
            print(json.dumps(measure(base, out, options.epochs)))
        elif options.many_classes:
            many = Size(MANY_IMAGES, MANY_CLASSES, 1, 32)
            many = dataclasses.replace(many, **json.loads(options.base))
            print(many_classes(out, many, options.epochs))
        else:
            for axis in [options.axis] if options.axis else axes:
                sizes = [base.times(axis, factor) for factor in (1, 2, 4)]
                found = [apart(wanted, options.epochs) for wanted in sizes]
                print(f"{table(axis, sizes, found)}\n", flush=True)


if __name__ == "__main__":
    main()
