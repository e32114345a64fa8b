"""Print what a run ended with, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltdd.engine.watching import units
from ltdd.results.tables import unmeasured
from ltdd.stages.metrics import usual_floor


def run_summary(results: Mapping[str, Any], out: Path) -> str:
    """Return accuracies, costs, bytes and the places of the files.

    Args:
        results: the content of ``results.json``.
        out: the run folder.
    """
    parts = [accuracy_table(results), weak_teacher(results), cost_table(results), _places(out)]
    return "\n\n".join(part for part in parts if part)


def weak_teacher(results: Mapping[str, Any]) -> str:
    """Return a warning if the teacher has hardly learned anything, else an empty string."""
    accuracy, classes = results["teacher"]["accuracy"]["mean"], len(results["class_names"])
    if accuracy >= usual_floor(classes):
        return ""
    return (
        f"warning: the teacher is right in {100 * accuracy:.1f} % of the test images, chance is "
        f"{100 / classes:.1f} %; images and labels come from it, so give it more "
        "--experts.epochs before judging the rest"
    )


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Return accuracies in percent, mean and standard deviation over networks, one row each.

    Args:
        results: the content of ``results.json``.
    """
    rows = [("student", results["student"])]
    rows += list(results.get("baselines", {}).items())
    rows += [(name, results[name]) for name in ("teacher", "observer") if name in results]
    columns = {"accuracy": "overall", "head": "head", "medium": "medium", "tail": "tail"}
    lines = [_row("accuracy in %", list(columns.values()))]
    lines += [
        _row(name, [_percent(scores.get(column)) for column in columns]) for name, scores in rows
    ]
    student = results["student"]
    lines.append(
        f"student: {student['arch']} on {student['labels']} labels, {student['epochs']} epochs, "
        f"n = {student['accuracy']['n']}"
    )
    missing = unmeasured(results)
    return "\n".join([*lines, f"note: {missing}"] if missing else lines)


def cost_table(results: Mapping[str, Any]) -> str:
    """Return time and peak memory of every stage, and the bytes of images and labels."""
    stages, stored = results["stages"], results["bytes"]
    lines = [_row("stage", ["time", "peak memory"])]
    lines += [
        _row(name, [units.duration(cost["seconds"]), units.size(cost["peak_bytes"])])
        for name, cost in [*stages.items(), ("all", total_cost(stages))]
    ]
    sizes = f"images: {units.size(stored['images'])}, labels: {units.size(stored['labels'])}"
    return "\n".join([*lines, sizes])


def total_cost(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the seconds of all stages together and the largest of their peaks."""
    return {
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "peak_bytes": max((stage["peak_bytes"] for stage in stages.values()), default=0),
    }


def _places(out: Path) -> str:
    """Return where to find what; only what is there."""
    kinds = {
        "report": "report.html",
        "distilled set": "data.safetensors",
        "explained by": "manifest.json",
        "results": "results.json",
        "losses": "metrics.csv",
        "tensorboard": "tensorboard",
    }
    return "\n".join(
        f"{kind + ':':<18}{out / name}" for kind, name in kinds.items() if (out / name).exists()
    )


def _row(name: str, cells: Sequence[str]) -> str:
    return (f"{name:<18}" + "".join(f"{cell:>15}" for cell in cells)).rstrip()


def _percent(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    deviation = f" ± {100 * score['std']:4.1f}" if score["n"] > 1 else " " * 7
    return f"{100 * score['mean']:.1f}{deviation}"
