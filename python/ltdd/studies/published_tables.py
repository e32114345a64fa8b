"""Published results, and the settings of this software that answer them.

Figures are top-1 accuracies in % on the balanced test set, means over five students, as printed in
arXiv:2511.18858: of its own method, RLDD, and for context of DAMED (arXiv:2408.14506) and of EDC,
which its authors ran themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

TOLERANCE = 2.0
"""Points below the published figure that count as reproduced. The paper leaves the observer, the
variance estimator and the split's seed open; each is worth about a point, as are other seeds."""


@dataclass(frozen=True)
class DataSet:
    """A data set of the tables.

    Attributes:
        title: its name in the tables.
        prefix: first part of the names of its rows.
        source: value of ``--data`` that downloads it; None if the user has to say where it is.
        classes: K.
        image_size: side in pixels.
        student: architecture of the tables' students.
        images: imbalance factor -> training images of the field's split, where that is fixed.
        cut: whether the exponential profile is cut here; else the data come long-tailed.
    """

    title: str
    prefix: str
    source: str | None
    classes: int
    image_size: int
    student: str
    images: Mapping[int, int] = field(default_factory=dict)
    cut: bool = True


CIFAR10 = DataSet(
    "CIFAR-10-LT",
    "cifar10",
    "cifar10",
    10,
    32,
    "convnet3",
    {10: 20431, 50: 13996, 100: 12406, 200: 11203},
)
CIFAR100 = DataSet(
    "CIFAR-100-LT",
    "cifar100",
    "cifar100",
    100,
    32,
    "convnet3",
    {10: 19573, 20: 15907, 50: 12608, 100: 10847},
)
TINY = DataSet(
    "Tiny-ImageNet-LT",
    "tiny-imagenet",
    None,
    200,
    64,
    "convnet4",
    {10: 39072, 20: 31711, 100: 21549},
)
IMAGENET = DataSet("ImageNet-LT", "imagenet", None, 1000, 64, "convnet4")
IMAGENET_LIST = DataSet(
    "ImageNet-LT list", "imagenet-lt", None, 1000, 224, "resnext50", {256: 115846}, cut=False
)


@dataclass(frozen=True)
class Row:
    """One cell of a published table.

    Attributes:
        name: what `ltdd reproduce` calls it.
        table: what the table shows.
        data: the data set.
        imbalance_factor: largest class over smallest.
        ipc: images per class.
        student: architecture of the student.
        published: accuracy of RLDD in %.
        others: accuracies of other methods in the same cell.
        settings: configuration fields by dotted name, beyond those above.
        tolerance: points below ``published`` that are still inside.
    """

    name: str
    table: str
    data: DataSet
    imbalance_factor: int
    ipc: int
    student: str
    published: float
    others: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE


# Data, imbalance factor, ipc; RLDD, DAMED, EDC, None where nothing is printed.
_Cell = tuple[DataSet, int, int, float, float, float | None]
_ACCURACY: tuple[_Cell, ...] = (
    (CIFAR10, 10, 10, 63.6, 58.1, 56.4),
    (CIFAR10, 10, 20, 68.3, 63.0, 62.7),
    (CIFAR10, 10, 50, 74.1, 70.5, 68.5),
    (CIFAR10, 50, 10, 62.9, 54.2, 55.2),
    (CIFAR10, 50, 20, 67.3, 59.4, 60.2),
    (CIFAR10, 50, 50, 70.6, 65.8, 64.1),
    (CIFAR10, 100, 1, 44.8, 24.1, None),
    (CIFAR10, 100, 10, 62.7, 53.4, 53.2),
    (CIFAR10, 100, 20, 66.4, 58.2, 57.4),
    (CIFAR10, 100, 50, 68.8, 64.0, 60.5),
    (CIFAR100, 10, 10, 47.1, 31.5, 31.5),
    (CIFAR100, 10, 20, 48.8, 37.5, 36.6),
    (CIFAR100, 10, 50, 49.9, 40.0, 38.5),
    (CIFAR100, 20, 10, 45.5, 31.4, 32.7),
    (CIFAR100, 20, 20, 46.9, 35.1, 34.2),
    (CIFAR100, 20, 50, 48.1, 37.0, None),
    (CIFAR100, 50, 1, 31.8, 7.8, None),
    (CIFAR100, 50, 10, 42.1, 29.8, 30.2),
    (CIFAR100, 50, 20, 43.4, 31.9, None),
    (CIFAR100, 50, 50, 44.2, 33.2, None),
    (TINY, 10, 10, 37.8, 26.0, 23.9),
    (TINY, 10, 20, 38.9, 27.9, 25.2),
    (TINY, 20, 10, 36.1, 23.6, 22.1),
    (TINY, 20, 20, 37.0, 25.5, 23.7),
    (TINY, 100, 1, 20.1, 6.0, None),
    (TINY, 100, 10, 28.5, 17.1, None),
    (TINY, 100, 20, 29.8, 18.0, None),
    (IMAGENET, 5, 10, 24.7, 20.8, None),
    (IMAGENET, 5, 20, 25.0, 21.0, None),
    (IMAGENET, 10, 10, 23.5, 20.3, None),
    (IMAGENET, 10, 20, 24.1, 20.7, None),
    (IMAGENET_LIST, 256, 10, 48.2, 17.2, None),
    (IMAGENET_LIST, 256, 20, 48.9, 17.9, None),
)
_ARCHITECTURES = {"vgg11": (64.6, 29.7), "resnet18": (58.7, 43.6), "alexnet": (56.5, 37.9)}
# What the paper takes away. Without debiasing the experts neither resample nor reweigh; without
# recalibration there are only the checkpoint's own statistics, and those are not class by class.
_WITHOUT: Mapping[str, tuple[Mapping[str, Any], Mapping[int, float]]] = {
    "no-debiasing": (
        {"experts.debias_power": 0, "experts.resampling_power": 0},
        {10: 31.7, 20: 32.3, 50: 32.8},
    ),
    "no-recalibration": (
        {"statistics.global_target": "running", "recovery.class_alignment_weight": 0},
        {10: 40.9, 20: 41.8, 50: 42.1},
    ),
    "random-initialization": ({"initialization.method": "random_real"}, {10: 40.8}),
}


def _rows() -> Iterator[Row]:
    for data, factor, ipc, published, damed, edc in _ACCURACY:
        name, table = f"{data.prefix}-if{factor}-ipc{ipc}", "IPC 1" if ipc == 1 else data.title
        others = {"DAMED": damed} | ({} if edc is None else {"EDC": edc})
        yield Row(name, table, data, factor, ipc, data.student, published, others)


def _variants(rows: Mapping[str, Row]) -> Iterator[Row]:
    base = rows["cifar10-if100-ipc10"]
    for student, (published, damed) in _ARCHITECTURES.items():
        yield replace(
            base,
            name=f"{base.name}-{student}",
            table="cross-architecture",
            student=student,
            published=published,
            others={"DAMED": damed},
        )
    for part, (settings, cells) in _WITHOUT.items():
        for ipc, published in cells.items():
            base = rows[f"cifar100-if50-ipc{ipc}"]
            yield replace(
                base,
                name=f"{base.name}-{part}",
                table="ablation",
                published=published,
                others={},
                settings=settings,
            )


_CELLS = {row.name: row for row in _rows()}
ROWS: Mapping[str, Row] = _CELLS | {row.name: row for row in _variants(_CELLS)}
"""Name -> row, in the order in which `ltdd reproduce --list` shows them."""
