"""The command line: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ltdd.cli.main import COMMANDS, main
from ltdd.cli.options import parse_distill
from ltdd.config import DistillConfig
from ltdd.engine.storage.run_folder import open_run
from ltdd.recipes.presets import PRESETS, preset
from ltdd.results.terminal import accuracy_table


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_does_not_wait_for_torch(command: list[str]) -> None:
    code = (
        "import sys; from ltdd.cli.main import main\n"
        "try:\n    main([*sys.argv[1:], '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("usage: ltdd")


def test_precedence_defaults_preset_file_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: demo\nout: from/file\nrecovery: {iterations: 7, max_batch: 50}\n")
    words = ["--recovery.max_batch", "20", "--config", str(file), "--horizontal-flip=true"]
    request = parse_distill(words)
    config, demo = request.config, preset("demo", "digits")
    assert config.experts.epochs == demo["experts"]["epochs"] != DistillConfig().experts.epochs
    assert config.recovery.iterations == 7
    assert config.recovery.max_batch == 20
    assert config.horizontal_flip is True
    assert config.statistics == DistillConfig().statistics
    assert (request.out, request.options.preset) == (Path("from/file"), "demo")
    other = parse_distill([*words, "--preset", "cpu"]).config
    assert other.experts.batch_size == preset("cpu", "digits")["experts"]["batch_size"]
    assert other.experts.batch_size != demo["experts"]["batch_size"]


@pytest.mark.parametrize("name", [*PRESETS, None])
def test_a_printed_configuration_gives_the_same_run(
    name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "cifar100", "--ipc", "3", "--evaluation.baselines", "[random_real]"]
    words += ["--out", str(tmp_path / "run"), *(["--preset", name] if name else [])]
    with pytest.raises(SystemExit):
        main(["distill", *words, "--print_config"])
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert parse_distill(["--config", str(tmp_path / "run.yaml")]) == parse_distill(words)


def test_dashes_and_underscores_are_alike() -> None:
    for words in (
        ["--imbalance_factor", "5", "--recovery.learning-rate", "0.1"],
        ["--imbalance-factor=5", "--recovery.learning_rate=0.1"],
    ):
        config = parse_distill([*words, "--out", "x"]).config
        assert (config.imbalance_factor, config.recovery.learning_rate) == (5, 0.1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("frobnicate", "unknown command 'frobnicate'; allowed: distill, evaluate, "),
        ("distill", "expected --out DIR"),
        ("distill --out x --ipc 0", "expected --ipc >= 1, got 0"),
        ("distill --out x --ipc many", "expected --ipc to be a whole number, got 'many'"),
        ("distill --out x --ipc", "expected one argument"),
        ("distill --out x --imbalance-factor 0.5", "expected --imbalance-factor >= 1, got 0.5"),
        ("distill --out x --imbalance-factor x", "to be a number or null, got 'x'"),
        ("distill --out x --image-size 4", "expected --image-size between 8 and 224, got 4"),
        ("distill --out x --preset huge", "--preset: expected one of demo, cpu, paper, got 'huge'"),
        ("distill --out x --recipe rlld", "got 'rlld'; did you mean rldd?"),
        ("distill --out x --device tpu", "--device to be one of auto, cpu, cuda, got 'tpu'"),
        ("distill --out x --backend numpy", "one of compiled, reference, got 'numpy'"),
        ("distill --out x --experts.epochs 2.5", "expected --experts.epochs to be a whole number"),
        ("distill --out x --experts.nesterov 3", "expected --experts.nesterov to be true or false"),
        ("distill --out x --experts.loss mse", "one of rldd, ce, unimix, got 'mse'"),
        ("distill --out x --recovery.iteration 3", "did you mean --recovery.iterations?"),
        ("distill --out x --ip 3", "did you mean --ipc? allowed: --config, --recipe, --preset"),
        ("distill --out x --evaluation.baselines [k]", "evaluation.baselines among"),
        ("distill --out x surplus", "unexpected argument 'surplus'"),
        ("distill --out x --config nowhere.yaml", "config file nowhere.yaml: No such file"),
        ("distill --out x --quiet --verbose", "expected --quiet or --verbose, got both"),
        ("evaluate", "required: folder"),
        ("evaluate nowhere", "expected a distilled set in nowhere, got no manifest.json"),
        (
            "evaluate x --labels some",
            "to be one of static, fkd, online, hard, learned or null, got 'some'",
        ),
        ("evaluate x --quiet --verbose", "expected --quiet or --verbose, got both"),
        ("evaluate x --seeds 0", "expected --seeds >= 1, got 0"),
        ("report nowhere", "nowhere"),
        ("compare", "required: folders"),
        ("compare a b", "expected --to FILE.html, the page to write, got none"),
        ("compare a --to b.html", "expected 2 to 8 runs, got 1"),
        ("split --imbalance-factor 0", "expected --imbalance-factor >= 1, got 0"),
        (
            "split --ipc 3",
            "unknown option --ipc; did you mean --fit? allowed: --data",
        ),
        ("doctor --fix", "unknown option --fix"),
    ],
)
def test_bad_options_are_one_sentence_and_status_2(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("ltdd: error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recovery: {iteration: 3}", "run.yaml: unknown option recovery.iteration; did you mean"),
        ("epochs: 3", "run.yaml: unknown option epochs"),
        ("recovery: [1", "expected YAML in the config file"),
        ("just words", "expected fields and values in"),
        ("recovery: {iterations: ten}", "run.yaml: expected recovery.iterations to be a whole"),
        ("ipc: 0", "run.yaml: expected ipc >= 1, got 0"),
        ("preset: huge", "demo, cpu, paper, got 'huge'"),
    ],
)
def test_bad_config_files(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "out"
    file.write_text(content)
    assert main(["distill", "--config", str(file), "--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_in_one_sentence(
    number: signal.Signals,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def distill(*_: object, **__: object) -> None:
        signal.raise_signal(number)
        pytest.fail("went on after the signal")

    monkeypatch.setattr("ltdd.pipeline.distill", distill)
    handler = signal.getsignal(number)
    assert main(["distill", "--out", str(tmp_path / "run")]) == status
    shown = capsys.readouterr().err
    assert shown == f"ltdd: stopped by {number.name}; resume with the same command\n"
    assert signal.getsignal(number) == handler


def test_a_folder_in_use_has_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def distill(config: DistillConfig, out: Path, **_: object) -> None:
        with open_run(out, config.to_dict(), "split"):
            pytest.fail("took a folder in use")

    monkeypatch.setattr("ltdd.pipeline.distill", distill)
    words = ["distill", "--out", str(tmp_path)]
    config = parse_distill(words[1:]).config
    with open_run(tmp_path, config.to_dict(), "split"):
        assert main(words) == 3
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_split_shows_counts_groups_and_a_stable_hash(capsys: pytest.CaptureFixture[str]) -> None:
    hashes = []
    for _ in range(2):
        assert main(["split", "--data", "digits", "--imbalance-factor", "20"]) == 0
        shown = capsys.readouterr().out.splitlines()
        hashes.append(shown[-1].removeprefix("split sha256: "))
    rows = [line.split() for line in shown[1:11]]
    counts = [int(row[2]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert [row[3] for row in rows] == ["head"] * 3 + ["medium"] * 4 + ["tail"] * 3
    assert rows[-1][4] == "few"
    assert f"{sum(counts)}" in shown[11]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 64


def test_doctor_names_every_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("row_moments", "bn_act_moments", "class_moments_update_", "align_loss"):
        line = next(row for row in shown.splitlines() if row.startswith(f"{name} "))
        assert line.split()[1] == "compiled"
    assert "CUDA kernels" in shown


def test_accuracy_table_shows_percent_and_deviation_only_over_several_networks() -> None:
    def scores(mean: float, n: int) -> dict[str, object]:
        cell = {"mean": mean, "std": 0.01, "n": n}
        named = {"arch": "convnet3", "labels": "fkd", "epochs": 9}
        return {"accuracy": cell, "head": cell, "medium": cell, "tail": None} | named

    table = accuracy_table(
        {
            "student": scores(0.7234, 3),
            "teacher": scores(0.9, 1),
            "baselines": {"random_real": scores(0.5, 3)},
        }
    ).splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["student", "random_real", "teacher"]
    assert table[1].split() == ["student", *["72.3", "±", "1.0"] * 3, "-"]
    assert table[3].split() == ["teacher", "90.0", "90.0", "90.0", "-"]
    assert table[4] == "student: convnet3 on fkd labels, 9 epochs, n = 3"
