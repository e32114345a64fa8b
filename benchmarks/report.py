"""Keep every measured row at once, and render them as one dated Markdown table per machine.

Rows lie in ``results/<machine>-<date>.json``; the table beside it is written anew after each, so a
run that is stopped loses nothing and a later one replaces only the rows it measures again.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cpuinfo
import torch

import ltdd_ext
from ltdd.engine.storage.files import read_json, write_json, write_text

RESULTS = Path(__file__).parent / "results"
NOT_RIVALS = ("ours", "yardstick", "limit")


@functools.cache
def machine_name() -> str:
    """Return what was measured, for a file name: a GPU, or a processor and its instruction set."""
    if torch.cuda.is_available():
        brand, kernels = torch.cuda.get_device_name(), []
    else:
        brand = str(cpuinfo.get_cpu_info().get("brand_raw", "cpu"))
        # A virtual machine may hide tiles that others of the same name have.
        kernels = [ltdd_ext.build_info()["cpu_instruction_set"]]
    words = brand.lower().replace("(r)", "").replace("(tm)", "").replace("/", "-").split()
    names = [word for word in words if word not in ("cpu", "processor")][:4]
    return "-".join([*(names or ["cpu"]), *kernels])


@functools.cache
def commit() -> str:
    """Return the short hash of the commit, with a plus where files differ from it."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()


def add_row(
    group: str,
    shape: str,
    layout: str,
    dtype: str,
    milliseconds: dict[str, float],
    setting: str,
    **more: float,
) -> Path:
    """Store one measured case and write the table; return where the table lies.

    Args:
        group: Heading below which the row stands.
        shape: Input, as text.
        layout: ``NCHW`` or ``NHWC``.
        dtype: ``fp32`` or ``bf16``.
        milliseconds: Time of each form, ``ours`` among them.
        setting: How it was timed: threads, clock, allocator.
        more: ``gigabytes_per_second`` and ``yardstick_gigabytes_per_second`` where they apply.
    """
    stem = f"{machine_name()}-{datetime.now(timezone.utc).date().isoformat()}"
    stored = RESULTS / f"{stem}.json"
    rows = read_json(stored)["rows"] if stored.exists() else []
    new = {
        "group": group,
        "shape": shape,
        "layout": layout,
        "dtype": dtype,
        "milliseconds": milliseconds,
        **more,
        "setting": setting,
        "torch": torch.__version__,
        "commit": commit(),
        "instruction_set": ltdd_ext.build_info()["cpu_instruction_set"],
        "load": round(os.getloadavg()[0], 1),
    }
    at = next((i for i, row in enumerate(rows) if _key(row) == _key(new)), len(rows))
    rows[at : at + 1] = [new]
    write_json(stored, {"rows": rows})
    table = stored.with_suffix(".md")
    write_text(table, render(stem, rows))
    return table


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return row["group"], row["shape"], row["layout"], row["dtype"]


def render(title: str, rows: list[dict[str, Any]]) -> str:
    """Return the Markdown of all rows."""

    def said(field: str) -> str:
        return ", ".join(sorted({str(row[field]) for row in rows}))

    loads = sorted(row["load"] for row in rows)
    lines = [
        f"# Operators, {title}",
        "",
        f"torch {said('torch')}, commit {said('commit')}, instruction set "
        f"{said('instruction_set')}.",
        f"Milliseconds, median of interleaved runs. Timing: {said('setting')}.",
        f"Load average of the machine while rows were measured: {loads[0]} to {loads[-1]}.",
        "`x NAME` is how many times longer NAME takes. `share` is GB/s over that of a copy (a sum "
        "for class statistics) of the same size, timed in the same turn. `at best` is how many "
        "times longer compile takes than one call and one sum over the same bytes.",
    ]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    for group, members in groups.items():
        lines += ["", f"## {group}", "", *table_of(members)]
    return "\n".join(lines) + "\n"


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows of one group as lines of a Markdown table."""
    rivals = [name for name in rows[0]["milliseconds"] if name not in NOT_RIVALS]
    speed = "gigabytes_per_second" in rows[0]
    header = ["shape", "layout", "dtype", "ours ms", *(f"x {name}" for name in rivals)]
    limited = "limit" in rows[0]["milliseconds"]
    header += ["at best"] if limited else []
    header += ["GB/s", "share"] if speed else []
    lines = [header, ["---"] * len(header)]
    for row in rows:
        times = row["milliseconds"]
        line = [row["shape"], row["layout"], row["dtype"], f"{times['ours']:.3g}"]
        line += [f"{times[name] / times['ours']:.2f}" if name in times else "" for name in rivals]
        if limited:
            line.append(f"{times['compile'] / times['limit']:.2f}")
        if speed:
            rate = row["gigabytes_per_second"]
            line += [f"{rate:.1f}", f"{rate / row['yardstick_gigabytes_per_second']:.0%}"]
        lines.append(line)
    return ["| " + " | ".join(line) + " |" for line in lines]
