"""Measured rows are kept one by one: what a stopped run leaves, and what a later one replaces."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    pytest.importorskip("cpuinfo")
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.report")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_each_row_is_there_at_once_and_replaced_by_a_later_one(report: ModuleType) -> None:
    speed = {"gigabytes_per_second": 9.0, "yardstick_gigabytes_per_second": 10.0}
    case = ("class statistics", "2x3x4x4", "NCHW", "fp32")
    table = report.add_row(*case, {"ours": 2.0, "compile": 5.0, "yardstick": 1.0}, "alone", **speed)
    assert "| 2x3x4x4 | NCHW | fp32 | 2 | 2.50 | 9.0 | 90% |" in table.read_text()

    report.add_row("recovery step", "2x3x4x4", "NHWC", "bf16", {"ours": 3.0, "peer": 9.0}, "alone")
    report.add_row(*case, {"ours": 1.0, "compile": 5.0, "yardstick": 1.0}, "alone", **speed)
    report.add_row("limited", *case[1:], {"ours": 2.0, "compile": 5.0, "limit": 4.0}, "alone")
    text = table.read_text()
    assert "| shape | layout | dtype | ours ms | x compile | at best |" in text
    assert "| 2x3x4x4 | NCHW | fp32 | 2 | 2.50 | 1.25 |" in text
    assert "| 2x3x4x4 | NCHW | fp32 | 1 | 5.00 | 9.0 | 90% |" in text
    assert text.count("| NCHW |") == 2
    assert "## recovery step" in text
    assert "| 2x3x4x4 | NHWC | bf16 | 3 | 3.00 |" in text
