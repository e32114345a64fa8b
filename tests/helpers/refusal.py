"""One sentence for every kind of bad input."""

from __future__ import annotations

import pytest

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
