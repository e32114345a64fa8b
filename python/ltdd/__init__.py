"""Distil a long-tailed image set into a few images per class that a new network can learn from.

``ltdd.distill(config, out)`` runs the whole method, ``ltdd.load(folder)`` reads its result,
``ltdd.train_student(folder, model)`` trains a network of one's own on it, ``ltdd.export(...)``
writes it in the format of another library, and ``ltdd.data`` makes data from one's own tensors or
data sets.
Importing the package is cheap: torch is only imported when one of these is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltdd import data
    from ltdd.config import DistillConfig
    from ltdd.engine.run_options import RunOptions
    from ltdd.pipeline import distill
    from ltdd.results.distilled_set import load
    from ltdd.results.exports import export
    from ltdd.studies.train_student import train_student

    __version__: str

# Public name -> the module it is in; imported when it is first used.
_HOMES = {
    "DistillConfig": "ltdd.config",
    "RunOptions": "ltdd.engine.run_options",
    "distill": "ltdd.pipeline",
    "export": "ltdd.results.exports",
    "load": "ltdd.results.distilled_set",
    "train_student": "ltdd.studies.train_student",
}
__all__ = [
    "DistillConfig",
    "RunOptions",
    "__version__",
    "data",
    "distill",
    "export",
    "load",
    "train_student",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "data":
        return importlib.import_module("ltdd.data")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ltdd")
        except PackageNotFoundError:  # imported from a source tree that was never installed
            return "uninstalled"
    raise AttributeError(f"module 'ltdd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
