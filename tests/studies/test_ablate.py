"""Ablations: what is run, what is shared, and what the table says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.refusal import command_refused

from ltdd.cli.main import main
from ltdd.config import DistillConfig, ExpertsConfig, NoRecovery, PlainExperts, UniMixExperts
from ltdd.engine.storage.files import read_json
from ltdd.engine.watching.events import read_events
from ltdd.errors import UserError
from ltdd.studies.ablate import difference
from ltdd.studies.switches import SWITCHES, all_values, changed, chosen_values, plan

BASE = DistillConfig()
FAST = [
    "--data", "digits", "--imbalance-factor", "50", "--ipc", "2", "--preset", "demo",
    "--experts.epochs", "1", "--recovery.iterations", "2", "--evaluation.epochs", "2",
    "--evaluation.seeds", "2",
]  # fmt: skip


def test_every_value_is_a_valid_configuration() -> None:
    for switch in SWITCHES.values():
        configs = [changed(BASE, changes) for changes in switch.values.values()]
        assert len(set(configs)) == len(configs)
        assert sum(config == BASE for config in configs) <= 1


def test_one_switch_at_a_time_leaves_out_what_the_base_has() -> None:
    variants = plan(BASE, {"labels": ["static", "fkd"], "recovery": ["off"]}, grid=False)
    assert [variant.name for variant in variants] == ["base", "labels=static", "recovery=off"]
    assert variants[0].config == BASE
    assert variants[2].config.recovery == NoRecovery()
    assert len(plan(BASE, chosen_values(list(SWITCHES)), grid=False)) == 1 + sum(
        changed(BASE, changes) != BASE
        for switch in SWITCHES.values()
        for changes in switch.values.values()
    )


def test_a_grid_has_every_combination_once() -> None:
    chosen = {"labels": ["static", "fkd", "hard"], "recovery": ["off"]}
    variants = plan(BASE, chosen, grid=True)
    assert len(variants) == len({variant.config for variant in variants}) == 3 * 2
    assert variants[0].name == "base"
    assert "labels=hard, recovery=off" in {variant.name for variant in variants}
    assert len({variant.folder for variant in variants}) == 6


def test_a_grid_leaves_out_what_another_value_takes_away() -> None:
    chosen = {"recovery": ["off"], "alignment": ["global", "class-wise"]}
    names = [variant.name for variant in plan(BASE, chosen, grid=True)]
    assert names == ["base", "alignment=global", "alignment=class-wise", "recovery=off"]


def test_switches_of_other_forms_are_left_out_or_refused() -> None:
    base = dataclasses.replace(BASE, experts=PlainExperts(epochs=3), recovery=NoRecovery())
    values = all_values(base)
    assert values["debias"] == ["plain", "unimix"]
    assert "alignment" not in values
    variants = {variant.name: variant.config for variant in plan(base, values, grid=False)}
    assert variants["debias=unimix"].experts == UniMixExperts(epochs=3)
    assert "debias=plain" not in variants  # is the base
    with pytest.raises(UserError, match=r"experts\.debias_power: a field of experts\.loss rldd"):
        plan(base, {"debias": ["off"]}, grid=False)
    assert set(all_values(BASE)) == set(SWITCHES)


def test_another_form_keeps_the_settings_that_both_have() -> None:
    base = dataclasses.replace(BASE, experts=ExpertsConfig(epochs=3, debias_power=1.0))
    assert changed(base, {"experts.loss": "ce"}).experts == PlainExperts(epochs=3)


def test_class_wise_alignment_alone_outweighs_the_global_part() -> None:
    (_, variant) = plan(BASE, {"alignment": ["class-wise"]}, grid=False)
    recovery, base = variant.config.recovery, BASE.recovery
    class_wise = recovery.alignment_weight * recovery.class_alignment_weight
    assert class_wise == pytest.approx(base.alignment_weight * base.class_alignment_weight)
    assert recovery.alignment_weight <= 1e-3 * class_wise


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label"], "expected a switch among debias, averaging, .*; got 'label'"),
        (["labels=soft"], "expected values of labels among static, fkd, .*; got 'soft'"),
        (["recovery=off,"], "got ''"),
    ],
)
def test_unknown_switches_and_values_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_values(words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--out x --switch recovery=on", "expected values of recovery among off; got 'on'"),
        ("--out x --grid", "expected --switch with the switches to combine"),
        ("--out x --switch", "expected at least one argument"),
        ("--switch labels", "expected --out DIR"),
        ("--out x --swich labels", "unknown option --swich"),
    ],
)
def test_mistakes_are_one_sentence(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in command_refused(capsys, "ablate", *command.split())
    assert list(tmp_path.iterdir()) == []


def test_difference_and_its_standard_error() -> None:
    points, error = difference(
        {"mean": 0.52, "std": 0.03, "n": 9}, {"mean": 0.50, "std": 0.02, "n": 4}
    )
    assert points == pytest.approx(2)
    assert error == pytest.approx(100 * (0.01**2 + 0.01**2) ** 0.5)


def test_variants_share_their_stages_and_the_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablation"
    words = ["ablate", *FAST, "--out", str(out), "--switch", "labels=static", "recovery"]
    assert main([*words, "--verbose"]) == 0
    shown, events_shown = capsys.readouterr()
    assert events_shown.count(" done\n") == 3
    table = [line.strip("| ").split("|") for line in shown.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in table[2:]] == ["base", "labels=static", "recovery=off"]
    assert [row[-1].strip() for row in table[3:]] == [
        "experts, statistics, initialization, recovery, relabeling, drift, nearest",
        "experts, statistics, initialization",
    ]
    record = json.loads((out / "ablation.json").read_text())
    for entry in record["variants"]:
        run = read_json(out / entry["folder"] / "results.json")
        assert entry["student"] == run["student"]
        events = read_events(out / entry["folder"] / "events.jsonl")
        computed = [e for e in events if e["event"] == "stage_end" and not e["reused"]]
        assert entry["seconds"] == pytest.approx(sum(e["seconds"] for e in computed))
        assert not {e["stage"] for e in computed} & set(entry["reused"])
        assert main(["verify", str(out / entry["folder"])]) == 0
    assert table[2][1].strip() in (out / "ablation.md").read_text()

    stages = {path.name: path.stat().st_mtime_ns for path in (out / "stages").iterdir()}
    # The same command goes on, here with one switch more.
    assert main([*words, "backend=reference", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "ablation.md")
    again = json.loads((out / "ablation.json").read_text())
    assert again["variants"][:3] == record["variants"]
    reused = set(again["variants"][3]["reused"])
    assert reused >= {"experts", "initialization"}
    assert not reused & {"statistics", "recovery"}  # students of equal pixels are the same
    now = {path.name: path.stat().st_mtime_ns for path in (out / "stages").iterdir()}
    assert now.items() > stages.items()

    other = tmp_path / "other"
    pool = ["--store", str(out / "stages"), "--quiet"]
    assert main(["ablate", *FAST, "--out", str(other), "--switch", "labels=static", *pool]) == 0
    for folder in ("base", "labels-static"):
        events = read_events(other / folder / "events.jsonl")
        assert all(e["reused"] for e in events if e["event"] == "stage_end")

    assert main([*words, "--ipc", "3"]) == 2
    assert "holds a different run, with ipc = 2 (now 3)" in capsys.readouterr().err
    assert main(["ablate", *FAST, "--out", str(out / "base")]) == 2
    assert "expected the folder of an ablation" in capsys.readouterr().err
