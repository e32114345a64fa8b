"""The public methods of a class."""

from __future__ import annotations


def methods(owner: type) -> set[str]:
    """Return ``Class.method`` of every public method."""
    return {
        f"{owner.__name__}.{name}"
        for name, value in vars(owner).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, classmethod))
    }
