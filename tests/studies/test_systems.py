"""Several methods side by side: what is run, what is shared, and what the tables say."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.finished_pages import Page
from helpers.refusal import command_refused

from ltdd import pipeline
from ltdd.cli.main import main
from ltdd.config import DistillConfig
from ltdd.data import long_tailed_data
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.run_options import RunOptions
from ltdd.engine.storage.files import read_json
from ltdd.engine.watching.events import read_events
from ltdd.errors import UserError
from ltdd.recipes import configure, find_recipe
from ltdd.recipes.columns import COLUMNS, HARD
from ltdd.studies.published_systems import published_accuracy
from ltdd.studies.systems import System, compare_systems, unneeded_stages

WORDS = [
    "systems", "--data", "digits", "--imbalance-factor", "50", "--ipc", "2", "--preset", "demo",
    "--recipes", "rldd,random,k_center", "--seeds", "2", "--experts.epochs", "1",
    "--evaluation.epochs", "2", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("systems") / "study"
    assert main([*WORDS, "--out", str(out)]) == 0
    return out


def test_every_system_has_three_columns(study: Path) -> None:
    found = read_json(study / "systems.json")
    assert [system["recipe"] for system in found["systems"]] == ["rldd", "random", "k_center"]
    assert found["columns"] == ["own", "hard", "teacher"]
    for system in found["systems"]:
        results = read_json(study / system["folder"] / "results.json")
        own, hard, teacher = (system["columns"][name] for name in found["columns"])
        assert own == results["student"]
        assert (hard["labels"], teacher["labels"]) == ("hard", "fkd")
        for row in (own, hard, teacher):
            assert row["accuracy"]["n"] == 2
            assert row["arch"] == "convnet3"
        kinds = ("hard",) if system["recipe"] == "rldd" else ("hard", "teacher")
        for name in kinds:
            evaluated = read_json(study / system["folder"] / f"evaluations/column-{name}.json")
            assert evaluated["student"] == system["columns"][name]


def test_equal_recipes_on_equal_images_are_the_same_students(study: Path) -> None:
    rldd, random, _ = read_json(study / "systems.json")["systems"]
    assert rldd["columns"]["teacher"] == rldd["columns"]["own"]
    assert random["columns"]["hard"] == random["columns"]["own"]
    events = read_events(study / "random/evaluations/column-hard/events.jsonl")
    stages = [event for event in events if event["event"] == "stage_end"]
    assert {event["stage"] for event in stages} == {"experts", "relabeling", "evaluation"}
    assert all(event["reused"] for event in stages)


def test_one_teacher_is_trained_for_all(study: Path) -> None:
    files = [set(read_json(study / name / "results.json")["files"]) for name in ("rldd", "random")]
    experts = [{name for name in found if name.startswith("experts-")} for found in files]
    assert experts[0] == experts[1] != set()


def test_costs_are_those_of_the_set_alone(study: Path) -> None:
    for system in read_json(study / "systems.json")["systems"]:
        needed = {name for name, stage in system["stages"].items() if stage["needed"]}
        expected = {
            "rldd": {"experts", "statistics", "initialization", "recovery", "relabeling"},
            "random": {"initialization"},
            "k_center": {"experts", "initialization"},
        }
        assert needed == expected[system["recipe"]]
        seconds = sum(system["stages"][name]["seconds"] for name in needed)
        assert system["seconds"] == pytest.approx(seconds)
        assert system["peak_bytes"] == max(system["stages"][n]["peak_bytes"] for n in needed)
        assert system["bytes"]["images"] == 20 * 8 * 8
        assert (system["bytes"]["labels"] > 0) == (system["recipe"] == "rldd")


def test_the_same_command_goes_on(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, loads = tmp_path / "again", []

    def load_data(*given: object) -> LongTailedData:
        loads.append(given)
        return long_tailed_data.load_data(*given)

    monkeypatch.setattr(pipeline, "load_data", load_data)
    shutil.copytree(study, out)
    for stored in (out / "k_center/stages").glob("evaluation-*"):
        stored.unlink()
    shutil.rmtree(out / "stages")
    before = {path: path.read_bytes() for path in study.glob("*/data.safetensors")}
    assert main([*WORDS, "--out", str(out)]) == 0
    events = {
        name: [
            event
            for path in (out / name).rglob("events.jsonl")
            for event in read_events(path)[len(read_events(study / path.relative_to(out))) :]
            if event["event"] == "stage_end" and not event["reused"]
        ]
        for name in ("rldd", "random", "k_center")
    }
    assert len(loads) == 1
    assert events["rldd"] == events["random"] == []
    assert {event["stage"] for event in events["k_center"]} == {"evaluation"}
    assert len(events["k_center"]) == 4  # two students of own, which is hard, and two of teacher
    for path, content in before.items():
        assert (out / path.relative_to(study)).read_bytes() == content
    columns = [
        [system["columns"] for system in read_json(folder / "systems.json")["systems"]]
        for folder in (study, out)
    ]
    assert columns[0] == columns[1]


def test_the_page_shows_every_system(study: Path) -> None:
    text = (study / "systems.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(text) < 5_000_000
    assert "http" not in text
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert alts[:3] == [
        f"{name} images of class 0, 2 in a row" for name in ("rldd", "random", "k_center")
    ]
    assert len(alts) == 30
    system = read_json(study / "systems.json")["systems"][2]
    own = system["columns"]["own"]["accuracy"]
    assert f"{100 * own['mean']:.1f} ± {100 * own['std']:.1f}" in page.words
    assert "arXiv:1708.00489" in page.words


def test_the_markdown_has_a_row_for_every_system(study: Path) -> None:
    text = (study / "systems.md").read_text()
    rows = [line.split("|")[1:] for line in text.splitlines() if line.startswith("| ")]
    names = [row[0].strip() for row in rows if not row[0].startswith(" :-")]
    assert names == 5 * ["system", "rldd", "random", "k_center"]
    header, costs = [cell.strip() for cell in rows[-5]], [cell.strip() for cell in rows[-2]]
    told = dict(zip(header, costs, strict=True))  # of random
    assert told["experts"].startswith("(")
    assert not told["initialization"].startswith("(")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--out x --recipes rldd,rondom", "got 'rondom'; did you mean random"),
        ("--out x --recipe rldd", "expected --recipes NAME,NAME, got --recipe rldd"),
        ("--recipes rldd", "expected --out DIR"),
        ("--out x --seeds 0", "expected --evaluation.seeds"),
        ("--out x --recipes rldd, --preset demo", "expected one of rldd, random"),
    ],
)
def test_mistakes_are_one_sentence(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in command_refused(capsys, "systems", *words.split())
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--out", str(study / "rldd")]) == 2
    assert "got that of a run" in capsys.readouterr().err


def test_other_data_for_one_of_the_methods_are_refused(tmp_path: Path) -> None:
    configs = [configure(data="digits", image_size=size) for size in (None, 16)]
    systems = [System(find_recipe("rldd"), config, RunOptions(quiet=True)) for config in configs]
    with pytest.raises(UserError, match="same data for all methods, got image_size None and 16"):
        compare_systems(systems, {}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "unneeded"),
    [
        ({}, set()),
        ({"recovery": {"method": "none"}}, {"statistics"}),
        ({"relabeling": {"labels": "hard"}}, {"relabeling"}),
        (
            {"recovery": {"method": "none"}, "relabeling": {"labels": "hard"}},
            {"statistics", "relabeling"},
        ),
        (
            {
                "initialization": {"method": "noise"},
                "recovery": {"method": "none"},
                "relabeling": {"labels": "hard"},
            },
            {"statistics", "relabeling", "experts"},
        ),
    ],
)
def test_stages_that_a_set_does_not_need(changes: dict[str, object], unneeded: set[str]) -> None:
    measuring = {"evaluation", "drift", "nearest"}
    assert unneeded_stages(DistillConfig.from_dict(changes)) == unneeded | measuring


@pytest.mark.parametrize("preset", ["demo", "cpu", "paper"])
def test_the_hard_column_is_one_recipe_for_all(preset: str) -> None:
    hard = configure(HARD, preset, data="cifar10").evaluation
    assert (hard.optimizer, hard.learning_rate, hard.momentum) == ("sgd", 0.01, 0.9)
    assert (hard.weight_decay, hard.batch_size, hard.schedule) == (5e-4, 128, "halfway")
    assert (hard.augmentation, hard.cutmix, hard.randaugment) == ("dsa", False, False)
    assert hard.ema_decay == 0
    assert hard.epochs == {"demo": 300}.get(preset, 1000)
    for name in ("random", "k_center", "graph_cut"):
        own = configure(find_recipe(name), preset, data="cifar10")
        assert own.evaluation == hard
        assert own.experts == configure(COLUMNS["teacher"], preset, data="cifar10").experts


@pytest.mark.parametrize(
    ("recipe", "images", "ipc", "expected"),
    [
        ("random", 12406, 10, 34.4),
        ("random", 12406, 50, 52.6),
        ("k_center", 12406, 50, 24.2),
        ("graph_cut", 11203, 20, 25.2),
        ("rldd", 12406, 10, 62.7),
        ("damed", 12406, 50, 64.0),
        ("damed", 11203, 50, 62.3),
        ("edc", 12406, 10, 53.2),
        ("rded", 12406, 1, 21.8),
        ("mtt", 11203, 10, None),
        ("random", 12406, 5, None),
        ("random", 12405, 10, None),
        ("other", 12406, 10, None),
    ],
)
def test_published_figures_are_found_by_the_number_of_images(
    recipe: str, images: int, ipc: int, expected: float | None
) -> None:
    data = SimpleNamespace(num_classes=10, image_size=32, train_labels=range(images))
    assert published_accuracy(recipe, data, ipc) == expected
    other = SimpleNamespace(num_classes=11, image_size=32, train_labels=range(images))
    assert published_accuracy(recipe, other, ipc) is None


def test_budgets_go_between_preset_and_method() -> None:
    recipe = dataclasses.replace(
        HARD,
        method={"evaluation": {"momentum": 0.5}},
        budgets={"demo": {"evaluation": {"epochs": 7}}},
    )
    assert configure(recipe, "demo").evaluation.epochs == 7
    assert configure(recipe, "cpu").evaluation.epochs == 3750
    over = dataclasses.replace(recipe, method={"evaluation": {"epochs": 9}})
    assert configure(over, "demo").evaluation.epochs == 9
