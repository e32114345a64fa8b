"""The options of ``ltdd distill``: which there are, and how the forms of a stage choose them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltdd.cli.main import main
from ltdd.cli.options import distill_parser, fields, parse_distill
from ltdd.config import STAGES, ClusteredCrops, NoRecovery, PlainExperts
from ltdd.config.settings import fields_of
from ltdd.errors import UserError

SURFACE = Path(__file__).with_name("distill_options.txt")


def helped(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["distill", *words, "--help"])
    assert not end.value.code
    return " ".join(capsys.readouterr().out.split())


def test_the_options_are_those_of_the_list() -> None:
    """A new option is a cost for everybody who reads the help: enter it in the list on purpose."""
    options = [a.option_strings[0] for a in distill_parser()._actions if "." not in a.dest]
    lines = sorted(options)
    for stage, forms in STAGES.items():
        for spec in sorted({spec.name for form in forms for spec in fields_of(form)}):
            owners = [f.form() for f in forms if spec in {s.name for s in fields_of(f)}]
            shared = len(owners) == len(forms)
            lines.append(f"--{stage}.{spec}" + ("" if shared else f" {','.join(owners)}"))
    assert lines == SURFACE.read_text(encoding="utf-8").splitlines()


def test_every_field_is_an_option_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    """In the help of the forms that have it."""
    shown = helped(capsys)
    for stage, forms in STAGES.items():
        for form in forms[1:]:
            shown += helped(capsys, f"--{stage}.{form.FORM}", form.form())
    for name, spec in fields():
        assert len(spec.doc) > 10, name
        option = name if "." in name else name.replace("_", "-")
        assert f"--{option} " in shown
    assert "rho: the second batch draws an image" in shown


def test_help_shows_the_fields_and_defaults_of_the_chosen_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = helped(capsys, "--experts.loss", "ce", "--preset", "cpu")
    assert "--experts.consistency_weight" not in shown
    assert "experts - Plain cross-entropy, nothing mixed (the form ce; " in shown
    assert "--experts.loss rldd|unimix --help shows the others)" in shown
    assert "Fewest training steps" in shown
    assert "default: 600" in shown  # of the preset
    assert "default: clustered_crops" in shown
    rldd = helped(capsys)
    assert "--experts.consistency_weight X" in rldd
    assert "`unimix`: Mixing towards the tail" in rldd


@pytest.mark.parametrize(
    "content", ["experts: {loss: ce}", "experts.loss: ce\nrecovery: {method: none}"]
)
def test_help_knows_the_forms_of_a_file(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(content)
    shown = helped(capsys, "--config", str(tmp_path / "run.yaml"))
    assert "--experts.debias_power" not in shown
    assert ("--recovery.iterations" in shown) == ("none" not in content)


def test_what_a_preset_sets_for_another_form_is_left_out() -> None:
    words = "--out x --preset cpu --experts.loss ce --recovery.method none --initialization.method"
    config = parse_distill([*words.split(), "random_real"]).config
    assert config.experts == PlainExperts(
        observer="convnet3_bn", epochs=50, min_steps=600, batch_size=128, learning_rate=0.05,
        nesterov=True, weight_decay=1e-3, schedule="one_cycle", distil_from="resnet9",
        distil_from_epochs=60, distil_from_resizing=True, distil_temperature=2.0, randaugment=True,
    )  # fmt: skip
    assert config.recovery == NoRecovery()
    assert config.initialization.method == "random_real"
    crops = parse_distill(["--out", "x", "--preset", "cpu", "--initialization.method=scored_crops"])
    assert getattr(crops.config.initialization, "crop_min_scale", None) == 0.9
    assert parse_distill(["--out", "x", "--preset", "cpu"]).config.initialization == ClusteredCrops(
        crop_min_scale=0.9
    )


@pytest.mark.parametrize(
    ("words", "file", "said"),
    [
        (
            "--experts.loss ce --experts.consistency_weight 2",
            "",
            "--experts.consistency_weight: a field of experts.loss rldd, got experts.loss ce",
        ),
        (
            "--experts.loss=unimix",
            "experts: {epochs: 3, debias_power: 1.0}",
            "run.yaml: experts.debias_power: a field of experts.loss rldd, got experts.loss unimix",
        ),
        (
            "--recovery.max-batch 3",
            "recovery: {method: none}",
            "--recovery.max_batch: a field of recovery.method alignment, got recovery.method none",
        ),
        (
            "",
            "initialization: {method: noise, crops_per_image: 3}",
            "run.yaml: initialization.crops_per_image: a field of initialization.method "
            "scored_crops or clustered_crops, got initialization.method noise",
        ),
    ],
)
def test_what_a_user_sets_for_another_form_is_refused(
    words: str, file: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(file)
    with pytest.raises(UserError) as caught:
        parse_distill(["--out", "x", "--preset", "cpu", "--config", "run.yaml", *words.split()])
    assert str(caught.value) == said


def test_the_last_of_repeated_options_and_files_counts(tmp_path: Path) -> None:
    for name, epochs in (("a", 3), ("b", 4)):
        (tmp_path / name).write_text(f"experts: {{epochs: {epochs}, loss: ce}}")
    files = ["--config", str(tmp_path / "a"), f"--config={tmp_path / 'b'}"]
    assert parse_distill([*files, "--out", "x"]).config.experts == PlainExperts(epochs=4)
    words = ["--experts.epochs", "5", *files, "--out", "x", "--experts.epochs=6"]
    assert parse_distill(words).config.experts == PlainExperts(epochs=6)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("2", 2.0), (".5", 0.5), ("1.", 1.0), ("1.5E2", 150.0), ("+3", 3.0)],
)
def test_numbers_are_decimal_on_the_command_line_and_in_files(
    text: str, value: float, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(f"recovery: {{learning_rate: {text}}}")
    for words in (
        ["--recovery.learning_rate", text],
        ["--config", str(tmp_path / "run.yaml")],
    ):
        assert parse_distill([*words, "--out", "x"]).config.recovery.learning_rate == value


def test_null_takes_an_optional_value_back(tmp_path: Path) -> None:
    words = ["--out", "x", "--preset", "cpu", "--experts.min_steps", "null"]
    assert parse_distill([*words, "--experts.class_map=null"]).config.experts.min_steps is None


def test_folders_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    request = parse_distill(["--out=~/run", "--store=~/stages"])
    assert request.out == Path("/somewhere/run")
    assert request.options.store == Path("/somewhere/stages")
    assert parse_distill(["--out=x", "--store=none"]).options.store is None


def test_the_record_names_recipe_and_preset() -> None:
    options = parse_distill(["--out", "x", "--recipe", "rldd", "--preset", "demo"]).options
    assert (options.recipe, options.preset) == ("rldd", "demo")
    options = parse_distill(["--out", "x"]).options
    assert (options.recipe, options.preset) == ("rldd", None)
