"""Tables that a terminal and a Markdown page show alike."""

from __future__ import annotations

from ltdd.results.tables import markdown_table, percent


def test_columns_are_aligned_and_cells_cannot_break_them() -> None:
    shown = markdown_table(["class", "n"], [["a", "5000"], ["cat|dog", "7"]])
    assert shown.splitlines() == [
        "| class   |    n |",
        "| :------ | ---: |",
        "| a       | 5000 |",
        "| cat/dog |    7 |",
    ]


def test_percent_shows_a_deviation_only_over_several_networks() -> None:
    assert percent({"mean": 0.6236, "std": 0.0015, "n": 3}) == "62.4 ± 0.1"
    assert percent({"mean": 0.6236, "std": 0.0, "n": 1}) == "62.4"
    assert percent(None) == "-"
