"""What every form of stage 4 has."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

from ltdd.config.settings import Number, settings
from ltdd.config.stage import Stage

Share = Annotated[Number, Interval(ge=0, le=1)]
"""Part of a whole."""


@settings
class RecoveryForm(Stage):
    """Optimisation of the images."""

    STAGE = "recovery"
    FORM = "method"

    method: str = ""
    """How the images are optimised."""
