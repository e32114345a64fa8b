"""The accuracies of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Return accuracies in percent, mean and standard deviation over networks, one row each.

    Args:
        results: the content of ``results.json``.
    """
    rows = [("student", results["student"])]
    rows += list(results.get("baselines", {}).items())
    rows += [(name, results[name]) for name in ("teacher", "observer") if name in results]
    columns = {"accuracy": "overall", "head": "head", "medium": "medium", "tail": "tail"}
    lines = [f"{'accuracy in %':<18}" + "".join(f"{title:>15}" for title in columns.values())]
    for name, scores in rows:
        cells = "".join(f"{_percent(scores.get(column)):>15}" for column in columns)
        lines.append(f"{name:<18}{cells}".rstrip())
    student = results["student"]
    lines.append(
        f"student: {student['arch']} on {student['labels']} labels, {student['epochs']} epochs, "
        f"n = {student['accuracy']['n']}"
    )
    return "\n".join(lines)


def _percent(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    deviation = f" ± {100 * score['std']:4.1f}" if score["n"] > 1 else " " * 7
    return f"{100 * score['mean']:.1f}{deviation}"
