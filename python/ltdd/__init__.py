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
    from ltdd.pipeline import distill
    from ltdd.results.distilled_set import load
    from ltdd.results.exports import export
    from ltdd.studies.train_student import train_student

    __version__: str

__all__ = ["DistillConfig", "__version__", "data", "distill", "export", "load", "train_student"]


def __getattr__(name: str) -> object:
    if name == "DistillConfig":
        from ltdd.config import DistillConfig

        return DistillConfig
    if name == "data":
        return importlib.import_module("ltdd.data")
    if name == "load":
        from ltdd.results.distilled_set import load

        return load
    if name == "distill":
        from ltdd.pipeline import distill

        return distill
    if name == "export":
        from ltdd.results.exports import export

        return export
    if name == "train_student":
        from ltdd.studies.train_student import train_student

        return train_student
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ltdd")
        except PackageNotFoundError:  # imported from a source tree that was never installed
            return "uninstalled"
    raise AttributeError(f"module 'ltdd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
