"""Numbers as people read them: ``1 min 54 s``, ``2.4 GB``."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Return seconds as text, with two parts at most.

    Example:
        >>> duration(7.25), duration(114), duration(9000)
        ('7.2 s', '1 min 54 s', '2.5 h')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Return a number of bytes as text with three digits, in powers of 1000.

    Example:
        >>> size(64), size(2_400_000_000)
        ('64 bytes', '2.4 GB')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(3, int(math.log10(count) // 3))
    return f"{count / 1000**power:.3g} {('', 'kB', 'MB', 'GB')[power]}"
