"""What a shell gets when it asks for completions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")


def completions(line: str, folder: Path) -> set[str]:
    """Ask as a shell does: the line in the environment, the answer on a channel of its own."""
    answer = folder / "answer"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    subprocess.run([sys.executable, "-m", "ltdd"], env=environment, check=True)
    return {word.strip() for word in answer.read_text().splitlines()}


def test_commands_are_completed(tmp_path: Path) -> None:
    assert completions("ltdd dis", tmp_path) == {"distill"}
    assert {"distill", "evaluate", "split"} <= completions("ltdd ", tmp_path)


def test_options_and_their_choices_are_completed(tmp_path: Path) -> None:
    found = completions("ltdd distill --recovery.it", tmp_path)
    assert found == {"--recovery.iterations"}
    assert completions("ltdd split --imb", tmp_path) == {"--imbalance-factor"}
    found = completions("ltdd distill --initialization.method sc", tmp_path)
    assert found == {"scored_crops"}
