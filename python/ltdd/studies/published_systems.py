"""Published accuracies of the systems on long-tailed data, beside which a study prints its own.

Top-1 in % on the balanced test set, ConvNet-3 (Tiny-ImageNet: ConvNet-4), 10, 20 and 50 images a
class. Sources: arXiv:2408.14506, whose authors ran all but three of them; arXiv:2511.18858 for
RDED, whose authors' code it ran "with adaptations", and for one image a class; arXiv:2511.17914 for
SRe2L. What RLDD, DAMED and EDC reach is in `published_tables`. All are the best of several epochs
on the test images; ours are of the last one.
"""

from __future__ import annotations

from collections.abc import Mapping

from ltdd.data.long_tailed_data import LongTailedData
from ltdd.studies.published_tables import CIFAR10, CIFAR100, ROWS, TINY, DataSet

_Cells = tuple[float | None, float | None, float | None]
_IPC = (10, 20, 50)

_CIFAR10: Mapping[int, Mapping[str, _Cells]] = {
    10: {
        "random": (32.5, 39.6, 51.9),
        "k_center": (21.9, 24.2, 31.7),
        "graph_cut": (28.7, 34.2, 40.6),
        "dc": (37.9, 38.5, 37.4),
        "mtt": (58.0, 59.5, 62.0),
        "dream": (34.6, 42.2, 50.5),
        "idm": (54.8, 57.1, 60.1),
        "datm": (57.2, 60.4, 66.7),
        "rded": (46.2, 55.5, 62.0),
    },
    50: {
        "random": (33.2, 42.0, 51.6),
        "k_center": (17.8, 20.8, 26.1),
        "graph_cut": (24.2, 28.6, 33.9),
        "dc": (37.3, 38.8, 35.8),
        "mtt": (45.8, 49.9, 53.6),
        "dream": (30.8, 38.4, 45.5),
        "idm": (51.9, 53.3, 56.1),
        "datm": (41.6, 43.4, 50.3),
        "rded": (43.3, 46.1, 53.2),
    },
    100: {
        "random": (34.4, 41.4, 52.6),
        "k_center": (16.2, 19.0, 24.2),
        "graph_cut": (22.9, 26.0, 33.3),
        "dc": (36.7, 38.1, 35.3),
        "mtt": (37.7, 41.6, 47.8),
        "dream": (30.8, 34.9, 42.2),
        "idm": (49.8, 50.9, 53.1),
        "datm": (37.3, 38.9, 44.3),
        "rded": (41.2, 45.3, 49.9),
        "sre2l": (22.6, None, 34.6),
    },
    200: {
        "random": (32.5, 42.2, 49.9),
        "k_center": (16.8, 17.5, 22.6),
        "graph_cut": (22.3, 25.2, 29.2),
        "dc": (35.6, 35.7, 33.3),
        "mtt": (None, 22.6, 23.9),
        "dream": (32.7, 32.4, 38.9),
        "idm": (47.0, 48.1, 49.9),
        "datm": (None, 34.8, 40.1),
        "damed": (52.2, 56.6, 62.3),
    },
}
_CIFAR100: Mapping[int, Mapping[str, _Cells]] = {
    10: {
        "random": (14.2, 21.7, 32.1),
        "k_center": (10.7, 15.9, 24.8),
        "graph_cut": (16.9, 22.2, 29.9),
        "dc": (24.0, 27.4, 27.4),
        "mtt": (14.3, 16.7, 13.8),
        "dream": (10.1, 12.0, 13.1),
        "datm": (28.2, 34.1, 31.6),
        "rded": (30.5, 36.0, 37.6),
    },
    20: {
        "random": (15.0, 21.6, 30.5),
        "k_center": (10.0, 15.1, 23.8),
        "graph_cut": (16.0, 20.7, 28.7),
        "dc": (23.2, 26.2, 27.4),
        "mtt": (12.6, 15.0, 10.6),
        "dream": (9.4, 10.3, 12.3),
        "datm": (25.3, 27.2, 27.1),
        "rded": (32.1, 33.9, None),
    },
    50: {
        "random": (13.4, 20.6, 26.9),
        "k_center": (8.7, 12.4, 19.8),
        "graph_cut": (13.1, 17.2, 24.8),
        "dc": (19.8, 22.7, 25.9),
        "mtt": (8.2, 11.2, 6.3),
        "dream": (6.8, 7.6, 9.8),
        "datm": (22.2, 19.8, 22.9),
        "rded": (28.0, None, None),
    },
}
_TINY: Mapping[int, Mapping[str, _Cells]] = {
    10: {
        "random": (7.4, 13.5, None),
        "k_center": (10.4, 11.3, None),
        "graph_cut": (9.8, 5.6, None),
        "mtt": (11.1, 18.1, None),
        "dream": (5.4, 6.8, None),
        "datm": (21.3, 14.5, None),
        "rded": (22.7, 23.3, None),
    },
    20: {
        "random": (7.6, 13.2, None),
        "k_center": (12.6, 9.9, None),
        "graph_cut": (3.4, 5.0, None),
        "mtt": (7.7, 14.7, None),
        "dream": (4.8, 6.0, None),
        "datm": (14.0, 19.0, None),
        "rded": (21.0, 21.8, None),
    },
    100: {"mtt": (5.6, 7.7, None), "datm": (10.1, 11.9, None)},
}
_ONE_IMAGE: Mapping[tuple[str, int], Mapping[str, float]] = {
    ("cifar10", 100): {"dream": 15.3, "datm": 20.4, "g_vbsm": 4.1, "rded": 21.8, "damed": 24.1},
    ("cifar100", 50): {"dream": 11.7, "datm": 12.8, "g_vbsm": 1.8, "rded": 15.6, "damed": 7.8},
    ("tiny-imagenet", 100): {"dream": 1.9, "datm": 5.5, "g_vbsm": 2.3, "rded": 9.1, "damed": 6.0},
}
_TABLES: Mapping[str, Mapping[int, Mapping[str, _Cells]]] = {
    "cifar10": _CIFAR10,
    "cifar100": _CIFAR100,
    "tiny-imagenet": _TINY,
}


def known_data(data: LongTailedData) -> tuple[DataSet, int] | None:
    """Return the data set of the tables and its imbalance factor, told by the images' number."""
    for known in (CIFAR10, CIFAR100, TINY):
        if (data.num_classes, data.image_size) == (known.classes, known.image_size):
            for factor, images in known.images.items():
                if len(data.train_labels) == images:
                    return known, factor
    return None


def published_accuracy(recipe: str, data: LongTailedData, ipc: int) -> float | None:
    """Return what is published of a system for this data set and number of images, in %."""
    known = known_data(data)
    if known is None:
        return None
    of, factor = known
    row = ROWS.get(f"{of.prefix}-if{factor}-ipc{ipc}")
    if row is not None and recipe == "rldd":
        return row.published
    if row is not None and recipe.upper() in row.others:
        return row.others[recipe.upper()]
    if ipc == 1:
        return _ONE_IMAGE.get((of.prefix, factor), {}).get(recipe)
    cells = _TABLES[of.prefix].get(factor, {}).get(recipe)
    return cells[_IPC.index(ipc)] if cells is not None and ipc in _IPC else None
