"""What the documents tell people to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.tiny_run import QUIET

from ltdd import pipeline
from ltdd.cli.main import main
from ltdd.config import DistillConfig, EvaluationConfig, ExpertsConfig, RecoveryConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "ltdd_ext/*.md", "python/**/*.md", "csrc/**/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
}
TEXT = "\n".join(DOCUMENTS.values())


def _blocks(language: str) -> list[tuple[str, str]]:
    """Return (document, block) for every fenced block of a language."""
    pattern = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    return [(name, block) for name, text in DOCUMENTS.items() for block in pattern.findall(text)]


@pytest.fixture(scope="module")
def folder_with_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a (very short) run in runs/demo, as `make demo` leaves it."""
    folder = tmp_path_factory.mktemp("readme")
    config = DistillConfig(
        imbalance_factor=50.0,
        ipc=1,
        experts=ExpertsConfig(observer="convnet3_bn", epochs=1),
        recovery=RecoveryConfig(iterations=1),
        evaluation=EvaluationConfig(epochs=1, seeds=1, baselines=()),
    )
    pipeline.distill(config, folder / "runs" / "demo", options=QUIET)
    return folder


@pytest.mark.parametrize(("name", "block"), _blocks("python"))
def test_python_blocks_run(
    name: str, block: str, folder_with_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_with_demo)
    exec(compile(block, name, "exec"), {})


def _commands() -> list[list[str]]:
    lines = "".join(block for _, block in _blocks("sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(ltdd [^`]*)`", TEXT)
    words = [shlex.split(line, comments=True) for line in [*lines, *inline]]
    return [w[1:] for w in words if w[:1] == ["ltdd"]]


def test_the_distill_commands_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [c for c in _commands() if c[0] == "distill" and "--help" not in c]
    assert commands
    for command in commands:
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main([*command, "--print_config"]))
        assert not end.value.code, command
        assert "experts:" in capsys.readouterr().out


def test_every_command_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    names = {command[0] for command in _commands()}
    assert {"distill", "evaluate", "split", "doctor"} <= names
    for name in names:
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main([name, "--help"]))
        assert not end.value.code
        assert capsys.readouterr().out


def test_make_verbs_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"`make ([a-z0-9-]+)", TEXT))
    assert {"demo", "test"} <= verbs
    for verb in verbs:
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_files_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name])
    for target in targets:
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


def test_named_tests_are_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", TEXT))
    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()
