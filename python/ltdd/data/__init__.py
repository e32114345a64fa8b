"""Real data: sources, the long-tailed split, decoding, augmentation and the views of a student.

``from_tensors`` and ``from_datasets`` make the data of a run from one's own objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltdd.data.long_tailed_data import LongTailedData, from_datasets, from_tensors, load_data

__all__ = ["LongTailedData", "from_datasets", "from_tensors", "load_data"]


def __getattr__(name: str) -> object:
    # On demand: modules that need only the split do not wait for the decoders.
    if name in __all__:
        from ltdd.data import long_tailed_data

        return getattr(long_tailed_data, name)
    raise AttributeError(f"module 'ltdd.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
