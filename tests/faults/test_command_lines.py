"""Whatever a user types or whatever a folder holds: one sentence, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.refusal import command_refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a\0b"], "expected --out to be a folder"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "/proc/run"], "free in /proc"),
        (["--data", "imagefolder:a\0b"], "got nothing there"),
        (["--data", "imagefolder:/dev/zero"], "got a file"),
        (["--ipc", 10**12], "MiB free in"),
    ],
    ids=lambda value: "",
)
def test_bad_options(
    words: list[object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in words else ["--out", tmp_path / "run"]
    options = ["--experts.observer", "convnet3_bn", "--quiet"]
    assert said in command_refused(capsys, "distill", *out, *options, *words)


# Words of a command line, and a part of the one sentence that answers them.
LINES: list[tuple[str, str]] = [
    # wrong types
    ("--ipc x", "expected --ipc to be a whole number, got 'x'"),
    ("--ipc 2.0", "got 2.0"),
    ("--ipc 1e3", "got 1000.0"),
    ("--ipc true", "got True"),
    ("--ipc yes", "got True"),
    ("--ipc null", "got 'null'"),
    ("--ipc ~", "expected --ipc to be a whole number, got"),
    ("--ipc []", "got []"),
    ("--ipc [3]", "got [3]"),
    ("--ipc {}", "got '{}'"),
    ("--ipc {a:3}", "got '{a:3}'"),
    ("--ipc 0x10", "got '0x10'"),
    ("--ipc 0o7", "got '0o7'"),
    ("--ipc 010", "got '010'"),
    ("--ipc 1_000", "got '1_000'"),
    ("--ipc 1:30", "got '1:30'"),
    ("--ipc 3,4", "got '3,4'"),
    ("--ipc 2026-11-25", "got '2026-11-25'"),
    ("--ipc !!int", "got '!!int'"),
    ("--ipc !!python/name:os.system", "to be a whole number"),
    ("--ipc *a", "got '*a'"),
    ("--ipc &a", "to be a whole number"),
    ("--ipc [*a", "to be a whole number"),
    ("--ipc .inf", "got inf"),
    ("--ipc .nan", "got nan"),
    ("--ipc 3;4", "got '3;4'"),
    ("--ipc 3%", "got '3%'"),
    ("--ipc -3", "expected --ipc >= 1, got -3"),
    ("--ipc 0", "expected --ipc >= 1, got 0"),
    ("--ipc -0", "expected --ipc >= 1, got 0"),
    ("--imbalance-factor many", "to be a number or null, got 'many'"),
    ("--imbalance-factor .5", "expected --imbalance-factor >= 1, got 0.5"),
    ("--imbalance-factor .nan", "to be a finite number, got nan"),
    ("--imbalance-factor -.inf", "to be a finite number, got -inf"),
    ("--imbalance-factor 1e400", "to be a finite number, got inf"),
    ("--imbalance-factor [1.5]", "got [1.5]"),
    ("--imbalance-factor true", "got True"),
    ("--image-size 7", "between 8 and 224, got 7"),
    ("--image-size 225", "between 8 and 224, got 225"),
    ("--image-size 32.0", "to be a whole number or null, got 32.0"),
    ("--image-size 32x32", "got '32x32'"),
    ("--image-size (32)", "got '(32)'"),
    ("--seed -1", "expected --seed between 0 and 9223372036854775807, got -1"),
    ("--seed 9223372036854775808", "expected --seed between"),
    ("--seed " + "9" * 4300, "expected --seed between"),
    ("--seed " + "9" * 100_000, "to be a whole number"),
    ("--seed 0." + "3" * 100_000, "to be a whole number"),
    ("--horizontal-flip 1", "to be true or false, got 1"),
    ("--horizontal-flip maybe", "to be true or false, got 'maybe'"),
    ("--horizontal-flip null", "to be true or false, got 'null'"),
    ("--deterministic [true]", "to be true or false, got [True]"),
    ("--backend cuda", "to be one of compiled, reference, got 'cuda'"),
    ("--backend Compiled", "got 'Compiled'; did you mean compiled?"),
    ("--backend null", "got 'null'"),
    ("--device cuda:0", "got 'cuda:0'; did you mean cuda?"),
    ("--precision fp16", "got 'fp16'; did you mean bf16?"),
    ("--precision 32", "got '32'"),
    # fields of stages
    ("--experts.epochs 0", "expected --experts.epochs >= 1, got 0"),
    ("--experts.epochs 1.5", "--experts.epochs to be a whole number, got 1.5"),
    ("--experts.batch_size 1", "expected --experts.batch_size >= 2, got 1"),
    ("--experts.color_jitter 1.01", "between 0 and 1, got 1.01"),
    ("--experts.color_jitter -0.1", "between 0 and 1, got -0.1"),
    ("--experts.crop_min_scale 0", "between 0.001 and 1, got 0"),
    ("--experts.crop_padding -1", "expected --experts.crop_padding >= 0, got -1"),
    ("--experts.min_steps 0", "expected --experts.min_steps >= 1, got 0"),
    ("--experts.warmup_epochs 0", "expected --experts.warmup_epochs >= 1"),
    ("--experts.warmup_epochs 2 --experts.schedule one_cycle", "schedule cosine with warmup"),
    ("--experts.nesterov true --experts.momentum 0", "momentum > 0"),
    ("--experts.learning_rate fast", "to be a number, got 'fast'"),
    ("--experts.learning_rate -1e-3", "expected --experts.learning_rate >= 0, got -0.001"),
    ("--experts.schedule linear", "to be one of cosine, one_cycle, got 'linear'"),
    ("--experts.averaging swa", "to be one of none, ema, got 'swa'"),
    ("--experts.extra_observers resnet18", "to be a list such as [random_real]"),
    ("--experts.extra_observers [1]", "got [1]"),
    ("--experts.extra_observers [[a]]", "got [['a']]"),
    ("--experts.extra_observers {a:b}", "got '{a:b}'"),
    ("--experts.extra_observers &a[*a]", "to be a list such as"),
    ("--experts.teacher_weights w.pt", "to name the architecture of experts.teacher_weights"),
    ("--statistics.global_target mean", "one of mixture, paper, edc, running, got 'mean'"),
    ("--statistics.batch_size 0", "expected --statistics.batch_size >= 1"),
    (
        "--initialization.method crops",
        "to be one of scored_crops, clustered_crops, random_real, correct_real, noise, ",
    ),
    ("--initialization.crops_per_image 0", "expected --initialization.crops_per_image >= 1"),
    ("--initialization.crop_min_scale 2", "between 0.001 and 1, got 2"),
    ("--recovery.method off", "to be one of alignment, none, "),
    ("--recovery.iterations 0", "got 0; recovery.method none leaves the images as they start"),
    ("--recovery.iterations -5", "expected --recovery.iterations >= 1, got -5"),
    ("--recovery.max_batch none", "to be a whole number, got 'none'"),
    ("--recovery.alignment_weight 1e999", "recovery.alignment_weight"),
    ("--relabeling.labels soft", "to be one of static, fkd, online, hard, learned, got 'soft'"),
    ("--relabeling.packing_top 0", "expected --relabeling.packing_top >= 1"),
    ("--evaluation.ema_decay 1", "expected --evaluation.ema_decay between 0 and"),
    ("--evaluation.seeds 0", "expected --evaluation.seeds >= 1, got 0"),
    ("--evaluation.optimizer Muon", "did you mean muon?"),
    ("--evaluation.baselines [full]", "expected evaluation.baselines among random_real"),
    ("--evaluation.baselines random_real", "to be a list such as [random_real]"),
    ("--evaluation.cutmix 0", "to be true or false, got 0"),
    # forms
    ("--experts.loss mse", "to be one of rldd, ce, unimix, got 'mse'"),
    ("--experts.loss CE", "to be one of rldd, ce, unimix, got 'CE'"),
    ("--experts.loss [ce]", "got '[ce]'"),
    ("--experts.loss ce --experts.debias_power 1", "a field of experts.loss rldd, got experts"),
    ("--experts.debias_power 1 --experts.loss unimix", "got experts.loss unimix"),
    ("--experts.loss rldd --experts.loss ce --experts.variant code", "got experts.loss ce"),
    ("--experts.loss ce --experts.projection_dim 0", "a field of experts.loss rldd"),
    ("--preset cpu --experts.loss ce --experts.resampling_power 1", "a field of experts.loss"),
    ("--initialization.method noise --initialization.crop_min_scale 1", "clustered_crops, got"),
    ("--initialization.method random_real --initialization.crops_per_image 2", "random_real"),
    (
        "--recovery.method none --recovery.iterations 3",
        "a field of recovery.method alignment or",
    ),
    ("--experts.variant paper", "to be one of code, printed, got 'paper'"),
    ("--experts.method ce", "unknown option --experts.method; did you mean"),
    ("--recovery.loss ce", "unknown option --recovery.loss"),
    # names
    ("--ip 3", "unknown option --ip; did you mean --ipc?"),
    ("--IPC 3", "unknown option --IPC"),
    ("--ipc3", "unknown option --ipc3; did you mean --ipc?"),
    ("-ipc 3", "unknown option -ipc"),
    ("-x", "unknown option -x"),
    ("--experts", "unknown option --experts; did you mean"),
    ("--experts 3", "unknown option --experts"),
    ("--experts. 3", "unknown option --experts."),
    ("--experts.epochs.x 3", "unknown option --experts.epochs.x; did you mean --experts.epochs?"),
    ("--expert.epochs 3", "did you mean --experts.epochs?"),
    ("--experts.weight_norm sum1", "unknown option --experts.weight_norm"),
    ("--.. 3", "unexpected argument '--..'"),
    ("--= 3", "unexpected argument '--='"),
    ("--", "unexpected argument '--'"),
    ("-- --ipc 3", "unexpected argument"),
    ("-", "unexpected argument '-'"),
    ("---", "unexpected argument '---'"),
    ("surplus", "unexpected argument 'surplus'"),
    ("--quiet surplus", "unexpected argument 'surplus'"),
    ("--ipc 3 4", "unexpected argument '4'"),
    ("--ipc=3 -4", "unexpected argument '-4'"),
    ("\u2013ipc 3", "unexpected argument '\u2013ipc'"),
    ("--\u0456pc 3", "did you mean --ipc?"),
    ("--ipc \u0663", "to be a whole number, got '\u0663'"),
    ("--ipc \U0001f600", "to be a whole number"),
    ("--ipc \u202e3", "to be a whole number, got '\\u202e3'"),
    ("--ipc \udcff", "to be a whole number, got '\\udcff'"),
    ("--experts.loss \u200bce", "got '\\u200bce'"),
    # missing and surplus values
    ("--ipc", "expected one argument"),
    ("--ipc --seed 3", "expected one argument"),
    ("--ipc=", "to be a whole number, got ''"),
    ("--ipc==3", "got '=3'"),
    ("--experts.loss=", "to be one of rldd, ce, unimix, got ''"),
    ("--quiet=true", "--quiet"),
    ("--quiet --verbose", "expected --quiet or --verbose, got both"),
    ("--preset", "expected one argument"),
    ("--preset=", "expected one of demo, cpu, paper, got ''"),
    ("--preset gpu", "expected one of demo, cpu, paper, got 'gpu'; did you mean cpu?"),
    ("--preset [demo]", "got '[demo]'"),
    ("--recipe nothing", "--recipe: expected one of rldd, "),
    ("--recipe RLDD --preset cpu", "got 'RLDD'"),
    ("--recipe=", "--recipe: expected one of rldd, "),
    ("--checkpoint-seconds -1", "expected --checkpoint-seconds >= 0, got -1"),
    ("--checkpoint-seconds .inf", "to be a finite number, got inf"),
    ("--checkpoint-seconds soon", "to be a number, got 'soon'"),
    ("--on-bad-image ignore", "to be one of fail, skip, got 'ignore'"),
    ("--preset cpu --ipc x", "expected --ipc to be a whole number, got 'x'"),
    ("--preset paper --image-size x", "to be a whole number or null, got 'x'"),
    ("--preset cpu --ipc 0", "expected --ipc >= 1, got 0"),
    # places
    ("--out=", "expected --out DIR, a folder, got ''"),
    ("--out ~nobody-of-this-name/run", "~nobody-of-this-name is nobody's home folder"),
    ("--out /dev/null/run", "/dev/null is none"),
    ("--out null", "expected --out DIR, a folder for the results, got none"),
    ("--store=", "expected --store DIR, a folder, got ''"),
    ("--store ~nobody-of-this-name", "~nobody-of-this-name is nobody's home folder"),
    ("--store /dev/null", "expected --store to be a folder, got '/dev/null'"),
    ("--store /dev/null/stages", "/dev/null is none"),
    ("--store a\0b", "expected --store to be a folder"),
    ("--config", "expected one argument"),
    ("--config=", "cannot read the config file"),
    ("--config nowhere.yaml", "cannot read the config file nowhere.yaml: No such file"),
    ("--config a\0b", "config file"),
    ("--config /dev/null/x", "Not a directory"),
    ("--config /dev/zero", "expected a config file of at most 1 MiB"),
    ("--config /dev/null --config /", "Is a directory"),
    ("--config " + "x" * 300, "File name too long"),
]


@pytest.mark.parametrize(("line", "said"), LINES, ids=lambda text: text[:40])
def test_nasty_command_lines(
    line: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = command_refused(capsys, "distill", "--out", tmp_path / "run", *line.split(" "))
    assert said in sentence
    assert len(sentence) < 2500
    assert list(tmp_path.iterdir()) == []


FILES: list[tuple[bytes, str]] = [
    (b"\xff\xfe\x00", "expected YAML in the config file"),
    (b"\x00", "expected YAML in the config file"),
    (b"- a\n", "expected fields and values in bad.yaml, got ['a']"),
    (b"3", "expected fields and values in bad.yaml, got 3"),
    (b"just words", "expected fields and values in bad.yaml, got 'just words'"),
    (b"experts: 3\n", "expected experts to be a mapping of fields, got 3"),
    (b"experts:\n", "expected experts to be a mapping of fields, got None"),
    (b"experts: [epochs, 3]\n", "expected experts to be a mapping"),
    (b"experts: {epochs: null}\n", "expected experts.epochs to be a whole number, got None"),
    (b"experts: {epochs: '3'}\n", "expected experts.epochs to be a whole number, got '3'"),
    (b"experts: {epochs: 3_0}\n", "got '3_0'"),
    (b"experts: {epochs: {a: 1}}\n", "got {'a': 1}"),
    (b"experts: {epoch: 3}\n", "unknown option experts.epoch; did you mean experts.epochs?"),
    (b"experts: {3: 3}\n", "unknown option experts.3"),
    (b"experts: {null: 3}\n", "unknown option experts.None"),
    (b"experts: {loss: mse}\n", "to be one of rldd, ce, unimix, got 'mse'"),
    (b"experts: {loss: [ce]}\n", "got ['ce']"),
    (b"experts: {loss: ce, variant: code}\n", "experts.variant: a field of experts.loss rldd"),
    (b"experts: {loss: &l [*l]}\n", "experts.loss to be one of"),
    (b"recovery: {iterations: 0}\n", "got 0; recovery.method none leaves"),
    (b"recovery: {iterations: 1e3}\n", "got 1000.0"),
    (b"recovery: {method: null}\n", "recovery.method to be one of alignment, none, "),
    (b"recovery.method.x: 3\n", "unknown option recovery.method.x"),
    (b"a: &a [*a]\n", "unknown option a"),
    (b"a: *b\n", "undefined alias"),
    (b"? [a, b]\n: 3\n", "unhashable key"),
    (b"? {a: b}\n: 3\n", "unhashable key"),
    (b"1: 2\n", "unknown option 1"),
    (b"config: other.yaml\n", "unknown option config"),
    (b"help: true\n", "unknown option help"),
    (b"data: !!python/object/apply:os.mkdir [pwned]\n", "could not determine a constructor"),
    (b"data: 7\n", "expected data to be text, got 7"),
    (b"data: [digits]\n", "expected data to be text, got ['digits']"),
    (b"ipc: [1, 2]\n", "expected ipc to be a whole number, got [1, 2]"),
    (b"ipc: 010\n", "got '010'"),
    (b"ipc: yes\n", "got True"),
    (b"ipc: .nan\n", "got nan"),
    (b"ipc: " + b"9" * 5000 + b"\n", "config file"),
    (b"quiet: please\n", "expected quiet to be true or false, got 'please'"),
    (b"preset: huge\n", "demo, cpu, paper, got 'huge'"),
    (b"preset: [demo]\n", "expected preset to be text or null, got ['demo']"),
    (b"recipe: 3\n", "expected recipe to be text or null, got 3"),
    (b"checkpoint_seconds: x\n", "expected checkpoint_seconds to be a number"),
    (b"on_bad_image: ask\n", "expected on_bad_image to be one of fail, skip"),
    (b"evaluation: {baselines: random_real}\n", "to be a list such as [random_real]"),
    (b"evaluation: {baselines: [1]}\n", "got [1]"),
    (b"{" * 3000, "config file"),
    (b"[" * 100_000, "config file"),
    (b"a: 'b\n", "expected YAML in the config file"),
    (b"\tipc: 3\n", "expected YAML in the config file"),
    (b"--- {ipc: 3}\n--- {ipc: 4}\n", "expected a single document"),
    (b"ipc: 3\n" * 200_000, "at most 1 MiB"),
    (
        b"a0: &a0 [x, x]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 60))
        + b"ipc: *a59\n",
        "unknown option a0",
    ),
    (
        b"data: &a0 [x, x]\nipc: "
        + b"".join(b"[&a%d [*a%d, *a%d]," % (n, n - 1, n - 1) for n in range(1, 60))
        + b"x" + b"]" * 59,
        "bad.yaml: expected",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), FILES, ids=lambda value: repr(value)[:40])
def test_nasty_config_files(
    content: bytes,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(content)
    sentence = command_refused(capsys, "distill", "--out", tmp_path / "run", "--config", "bad.yaml")
    assert said in sentence
    assert "bad.yaml" in sentence or "--pre" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


OTHER_COMMANDS: list[tuple[str, str]] = [
    ("", "unknown command ''"),
    ("Distill --out x", "unknown command 'Distill'"),
    ("--out x", "unknown command '--out'"),
    ("distill --out", "expected one argument"),
    ("evaluate run --seeds x", "expected --seeds to be a whole number or null, got 'x'"),
    ("evaluate run --seeds 0", "expected --seeds >= 1, got 0"),
    ("evaluate run --labels", "expected one argument"),
    ("evaluate run --label fkd", "unknown option --label; did you mean --labels?"),
    ("evaluate run other", "unexpected argument 'other'"),
    ("evaluate run --tensorboard=1", "--tensorboard"),
    ("export run", "expected --format, got none"),
    ("export run --format zip", "--to"),
    ("export --format x --to y", "required: folder"),
    ("card run --licence mit", "did you mean --license?"),
    ("card", "required: folder"),
    ("compare run", "expected --to FILE.html"),
    ("compare --to x.html", "required: folders"),
    ("report", "required: folder"),
    ("report a b", "unexpected argument 'b'"),
    ("verify --quiet run", "unknown option --quiet"),
    ("split --imbalance-factor 0.5", "expected --imbalance-factor >= 1, got 0.5"),
    ("split --image-size 3", "expected --image-size between 8 and 224, got 3"),
    ("split --image-size big", "expected --image-size to be a whole number or null, got 'big'"),
    ("split digits", "unexpected argument 'digits'"),
    ("check-teacher run --floor 2", "expected --floor between 0 and 1, got 2"),
    ("check-teacher run --floor x", "expected --floor to be a number or null, got 'x'"),
    ("check-teacher run --on-bad-image x", "expected --on-bad-image to be one of fail, skip"),
    ("doctor now", "unexpected argument 'now'"),
    ("ablate --out x --experts.epochs x", "expected --experts.epochs to be a whole number"),
    ("ablate --out x --experts.loss ce --switch debias=off", "experts.debias_power: a field of"),
    ("reproduce", "expected a row"),
    ("reproduce cifar10 --out x", "unknown row 'cifar10'"),
]


@pytest.mark.parametrize(("line", "said"), OTHER_COMMANDS, ids=lambda text: text[:40])
def test_nasty_lines_of_other_commands(
    line: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in command_refused(capsys, *line.split(" "))
    assert list(tmp_path.iterdir()) == []
