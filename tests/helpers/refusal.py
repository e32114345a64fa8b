"""One sentence for every kind of bad input."""

from __future__ import annotations

import pytest

from ltdd.cli import main
from ltdd.data.long_tailed_data import load_data
from ltdd.errors import UserError


def refused(spec: str, *parts: str) -> None:
    """Check that a source is refused in one sentence that holds these parts."""
    with pytest.raises(UserError) as caught:
        load_data(spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def command_refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must fail; return its one sentence."""
    assert main.main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ltdd: error: ")
    assert said.count("\n") == 1
    return said
