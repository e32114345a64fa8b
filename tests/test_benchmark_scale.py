"""What the scaling benchmark makes its sets and its exponents of."""

from __future__ import annotations

import pytest

from benchmarks.scale import HEAD, MANY_CLASSES, MANY_IMAGES, TAIL, Size, class_sizes, exponent


def test_exponents_are_those_of_powers() -> None:
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert exponent([10, 20, 40], [5.0, 20.0, 80.0]) == pytest.approx(2)
    assert exponent([10, 20, 40], [7.0, 7.0, 7.0]) == pytest.approx(0)


def test_a_thousand_classes_have_the_tail_of_imagenet_lt() -> None:
    sizes = class_sizes(MANY_IMAGES, MANY_CLASSES)
    assert (len(sizes), sizes[0], sizes[-1]) == (MANY_CLASSES, HEAD, TAIL)
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == pytest.approx(MANY_IMAGES, rel=0.02)
    assert class_sizes(1000, 10) == [100] * 10


def test_more_classes_bring_their_images_along() -> None:
    base = Size()
    wider = base.times("classes", 4)
    assert wider.images / wider.classes == base.images / base.classes
    assert base.times("pixels", 2) == Size(pixels=2 * base.pixels)
