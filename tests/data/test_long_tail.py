"""The long-tailed split: published counts, the subset rule, its hash, the groups."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdd.data.splitting.long_tail import (
    accuracy_groups,
    exponential_counts,
    long_tailed_indices,
    split_sha256,
)
from ltdd.errors import UserError

CIFAR10_LISTS = {
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
}
CIFAR100_IF50 = """
500 480 462 444 426 410 394 379 364 350 336 323 311 299 287 276 265 255 245 235 226 218 209 201 193
186 178 172 165 158 152 146 141 135 130 125 120 115 111 107 102 98 95 91 87 84 81 78 75 72 69 66 64
61 59 56 54 52 50 48 46 44 43 41 39 38 36 35 34 32 31 30 29 27 26 25 24 23 22 22 21 20 19 18 18 17
16 16 15 14 14 13 13 12 12 11 11 10 10 10
"""
# classes, n_max, imbalance factor, total, smallest, (many, medium, few) shot classes
PUBLISHED_TOTALS = [
    (10, 5000, 10, 20431, 500, (10, 0, 0)),
    (10, 5000, 50, 13996, 100, (9, 1, 0)),
    (10, 5000, 100, 12406, 50, (8, 2, 0)),
    (10, 5000, 200, 11203, 25, (7, 3, 0)),
    (100, 500, 10, 19573, 50, (69, 31, 0)),
    (100, 500, 20, 15907, 25, (53, 47, 0)),
    (100, 500, 50, 12608, 10, (41, 40, 19)),
    (100, 500, 100, 10847, 5, (35, 34, 31)),
    (200, 500, 10, 39072, 50, (139, 61, 0)),
    (200, 500, 20, 31711, 25, (107, 93, 0)),
    (200, 500, 100, 21549, 5, (70, 67, 63)),
    (1000, 1281, 5, 636370, 256, (1000, 0, 0)),
    (1000, 1281, 10, 500399, 128, (1000, 0, 0)),
]


@pytest.mark.parametrize(("factor", "counts"), CIFAR10_LISTS.items())
def test_cifar10_counts_are_the_published_ones(factor: int, counts: list[int]) -> None:
    assert exponential_counts(10, factor, 5000) == counts


def test_cifar100_counts_are_the_published_ones() -> None:
    assert exponential_counts(100, 50, 500) == [int(n) for n in CIFAR100_IF50.split()]


@pytest.mark.parametrize(
    ("classes", "n_max", "factor", "total", "smallest", "shots"), PUBLISHED_TOTALS
)
def test_totals_and_shot_groups_are_the_published_ones(
    classes: int, n_max: int, factor: int, total: int, smallest: int, shots: tuple[int, int, int]
) -> None:
    counts = exponential_counts(classes, factor, n_max)
    assert (sum(counts), counts[0], counts[-1]) == (total, n_max, smallest)
    groups = accuracy_groups(counts)
    assert (len(groups.many_shot), len(groups.medium_shot), len(groups.few_shot)) == shots


@given(st.integers(2, 300), st.floats(1, 1e4), st.integers(1, 5000))
def test_counts_start_at_the_head_and_never_increase(
    classes: int, factor: float, n_max: int
) -> None:
    counts = exponential_counts(classes, factor, n_max)
    assert counts[0] == n_max
    assert counts == sorted(counts, reverse=True)
    # Truncation and the rounding of the power lose at most one image.
    assert n_max / factor - 1 - 1e-6 <= counts[-1] <= n_max / factor + 1e-6


@pytest.mark.parametrize("factor", [0.5, 0.999, 0, -1, float("nan"), float("inf")])
def test_imbalance_factor_below_one_is_refused(factor: float) -> None:
    with pytest.raises(UserError, match="expected an imbalance factor >= 1, got"):
        exponential_counts(10, factor, 5000)


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="expected at least 2 classes, got 1"):
        exponential_counts(1, 10, 5000)


def test_balanced_cifar_split_starts_with_the_published_positions() -> None:
    labels = np.repeat(np.arange(10), 5000)
    chosen = long_tailed_indices(labels, 10, 100)
    assert chosen.dtype == np.int64
    assert np.bincount(labels[chosen]).tolist() == CIFAR10_LISTS[100]
    start = 0
    for class_id, count in enumerate(CIFAR10_LISTS[100]):
        mine = chosen[start : start + count] - 5000 * class_id
        # The same positions in every class, because each has a fresh generator.
        assert mine[:8].tolist() == [1501, 2586, 2653, 1055, 705, 106, 589, 2468]
        start += count


def test_split_follows_file_order_of_interleaved_labels() -> None:
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(4), 60))
    chosen = long_tailed_indices(labels, 4, 10)
    for class_id, count in enumerate([60, 27, 12, 6]):
        positions = np.flatnonzero(labels == class_id)
        order = np.random.RandomState(42).choice(60, count, replace=False)
        assert chosen[labels[chosen] == class_id].tolist() == positions[order].tolist()


def test_splits_are_nested_and_without_duplicates() -> None:
    labels = np.tile(np.arange(10), 100)
    larger = None
    for factor in (1, 2, 10, 50, 100):
        chosen = set(long_tailed_indices(labels, 10, factor).tolist())
        assert len(chosen) == sum(exponential_counts(10, factor, 100))
        assert larger is None or chosen < larger
        larger = chosen


def test_small_classes_keep_what_they_have_and_at_least_one() -> None:
    # The profile asks for 100, 10 and 1; the second class has only 4 images.
    labels = np.repeat(np.arange(3), [100, 4, 30])
    assert np.bincount(labels[long_tailed_indices(labels, 3, 100)]).tolist() == [100, 4, 1]
    # Here it asks for 0 images of the last class.
    labels = np.repeat(np.arange(3), [10, 10, 10])
    assert np.bincount(labels[long_tailed_indices(labels, 3, 1000)]).tolist() == [10, 1, 1]


def test_without_a_factor_everything_stays_in_order() -> None:
    labels = np.array([2, 0, 1, 0])
    assert long_tailed_indices(labels, 3, None).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 2], "none of class 1"),
        ([0, 1], "none of class 2"),
        ([0, 1, 2, 3], r"expected labels in 0\.\.2, got 0\.\.3"),
    ],
)
@pytest.mark.parametrize("factor", [None, 2.0])
def test_labels_must_cover_the_classes(
    labels: list[int], message: str, factor: float | None
) -> None:
    with pytest.raises(UserError, match=message):
        long_tailed_indices(np.array(labels), 3, factor)


def test_hash_is_stable_and_depends_on_every_part() -> None:
    labels = np.array([0, 1, 1, 0])
    reference = split_sha256(np.array([3, 1]), labels, ["a", "b"])
    by_hand = b'["a", "b"]' + np.array([3, 1, 0, 1], dtype="<i8").tobytes()
    assert reference == hashlib.sha256(by_hand).hexdigest()
    assert reference == split_sha256(np.array([3, 1], dtype=np.int32), labels, ("a", "b"))
    others = [
        split_sha256(np.array([1, 3]), labels, ["a", "b"]),
        split_sha256(np.array([3, 2]), labels, ["a", "b"]),
        split_sha256(np.array([3, 1]), 1 - labels, ["a", "b"]),
        split_sha256(np.array([3, 1]), labels, ["b", "a"]),
    ]
    assert len({reference, *others}) == 5


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [(2, (1, 0, 1)), (3, (1, 1, 1)), (4, (1, 2, 1)), (10, (3, 4, 3)), (100, (33, 34, 33))],
)
def test_thirds_of_a_profile_are_thirds_by_index(classes: int, sizes: tuple[int, int, int]) -> None:
    groups = accuracy_groups(exponential_counts(classes, 10, 500))
    assert (len(groups.head), len(groups.medium), len(groups.tail)) == sizes
    assert groups.head + groups.medium + groups.tail == tuple(range(classes))


def test_thirds_go_by_count_and_ties_by_index() -> None:
    groups = accuracy_groups([5, 100, 5, 7, 5, 100])
    assert groups.head == (1, 5)
    assert groups.medium == (0, 3)
    assert groups.tail == (2, 4)


def test_shot_thresholds() -> None:
    groups = accuracy_groups([101, 100, 21, 20, 1])
    assert groups.many_shot == (0,)
    assert groups.medium_shot == (1, 2)
    assert groups.few_shot == (3, 4)
