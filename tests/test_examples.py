"""The examples run as they are; that of a recipe is in tests/recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("name", ["own_images", "own_network", "operators_in_your_loop"])
def test_examples_run(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_example_is_run_somewhere() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"own_images", "own_network", "operators_in_your_loop", "add_a_recipe"}
