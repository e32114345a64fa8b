"""Turn pytest-benchmark's JSON into one dated Markdown table per machine."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import ltdd_ext
from benchmarks.timing import ALLOCATOR

RESULTS = Path(__file__).parent / "results"


def machine_name(data: dict[str, Any]) -> str:
    """Return the processor's name in a form that suits a file name."""
    brand = str(data["machine_info"].get("cpu", {}).get("brand_raw", "cpu")).lower()
    words = [word for word in brand.replace("(r)", "").replace("(tm)", "").split() if word != "cpu"]
    return "-".join(words[:4]) or "cpu"


def write_report(source: Path) -> Path:
    """Write ``results/<machine>-<date>.md`` from a JSON file of pytest-benchmark."""
    data = json.loads(source.read_text(encoding="utf-8"))
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in data["benchmarks"]:
        if entry["extra_info"]:
            groups[entry["group"]].append(entry["extra_info"])
    date = datetime.now(timezone.utc).date().isoformat()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = [
        f"# Operators, {machine_name(data)}, {date}",
        "",
        f"torch {torch.__version__}, commit {commit}, instruction set "
        f"{ltdd_ext.build_info()['cpu_instruction_set']}, one thread.",
        f"Milliseconds of thread CPU time, median of interleaved runs. Allocator: {ALLOCATOR}.",
        "`x NAME` is how many times longer NAME takes. `share` is GB/s over that of a copy (a sum "
        "for class statistics) of the same size, timed in the same turn.",
        "",
    ]
    for group, entries in groups.items():
        lines += [f"## {group}", "", *table(entries), ""]
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{machine_name(data)}-{date}.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    return target


def table(entries: list[dict[str, Any]]) -> list[str]:
    """Return the rows of one group as Markdown."""
    rivals = [name for name in entries[0]["milliseconds"] if name not in ("ours", "yardstick")]
    speed = "gigabytes_per_second" in entries[0]
    header = ["shape", "layout", "dtype", "ours ms", *(f"x {name}" for name in rivals)]
    header += ["GB/s", "share"] if speed else []
    rows = [header, ["---"] * len(header)]
    for entry in entries:
        times = entry["milliseconds"]
        row = [entry["shape"], entry["layout"], entry["dtype"], f"{times['ours']:.3g}"]
        row += [f"{times[name] / times['ours']:.2f}" for name in rivals]
        if speed:
            rate = entry["gigabytes_per_second"]
            row += [f"{rate:.1f}", f"{rate / entry['yardstick_gigabytes_per_second']:.0%}"]
        rows.append(row)
    return ["| " + " | ".join(row) + " |" for row in rows]
