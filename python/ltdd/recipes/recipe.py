"""A method as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
"""Fields of the configuration, nested like it."""
Published = Settings | Callable[[str, int | None, int], Settings]
"""Settings for every data set, or a function of data source, image size and images per class."""


@dataclass(frozen=True)
class Recipe:
    """A published method: which form of every stage, with which settings.

    Write the source of each value beside it.

    Attributes:
        name: as in ``--recipe``.
        title: what it is, on one line.
        paper: where it is published, such as ``arXiv:2511.18858``.
        method: what makes it this method whatever the budget, where that differs from the defaults
            of `DistillConfig`; budgets (presets) fill in the rest.
        published: the settings of its publication on top of ``method``.
        budgets: preset -> fields in which the method wants another budget than `presets` gives, on
            top of the preset and below ``method``.
        choice: says in words whose published settings a data source and an image size get.
    """

    name: str
    title: str
    paper: str
    method: Settings = field(default_factory=dict)
    published: Published = field(default_factory=dict)
    budgets: Mapping[str, Settings] = field(default_factory=dict)
    choice: Callable[[str, int | None], str] | None = None

    def published_settings(self, data: str, image_size: int | None, ipc: int) -> Settings:
        """Return the settings of the publication for a data source."""
        if callable(self.published):
            return self.published(data, image_size, ipc)
        return self.published
