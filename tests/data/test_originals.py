"""What becomes of images that are not 8-bit squares, and what is said about it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltdd.cli.main import main
from ltdd.data.long_tailed_data import LongTailedData, from_tensors, load_data
from ltdd.data.reading.arrays import bring_to
from ltdd.data.reading.decoder import Form, opened, pixels_of
from ltdd.data.reading.originals import limits_of
from ltdd.data.summary import describe, facts

RAMP = np.arange(400).reshape(20, 20)


def write(root: Path, arrays: dict[str, np.ndarray], suffix: str = ".png") -> str:
    """Write part/class/name files and return the spec of their folder."""
    for name, array in arrays.items():
        path = root / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return f"imagefolder:{root}"


def images(low: int, high: int, dtype: type) -> dict[str, np.ndarray]:
    """Return two classes of one training and one test image, from `low` to `high`."""
    scaled = low + RAMP * (high - low) / 399
    pixels = np.rint(scaled).astype(dtype)
    return {f"{p}/{c}/x": np.roll(pixels, n) for n, (p, c) in enumerate(four())}


def four() -> list[tuple[str, str]]:
    return [(part, name) for part in ("train", "test") for name in ("cat", "dog")]


@pytest.mark.parametrize(
    ("suffix", "dtype", "ends", "limits"),
    [
        (".png", np.uint16, (0, 4000), (0, 4095)),  # 12-bit X-rays
        (".tif", np.uint16, (0, 4095), (0, 4095)),
        (".tif", np.uint16, (0, 1023), (0, 1023)),
        (".png", np.uint16, (0, 65535), (0, 65535)),
        (".png", np.uint16, (0, 200), (0, 255)),
        (".tif", np.int16, (-1000, 3000), (-1024, 4095)),  # Hounsfield units
        (".tif", np.int32, (-5, 900), (-8, 1023)),
        (".tif", np.int32, (0, 2**24), (0, 2**25 - 1)),
        (".pgm", np.int32, (0, 65535), (0, 65535)),
    ],
)
def test_wide_values_are_scaled_by_what_the_set_holds(
    tmp_path: Path, suffix: str, dtype: type, ends: tuple[int, int], limits: tuple[int, int]
) -> None:
    given = images(*ends, dtype)
    data = load_data(write(tmp_path, given, suffix))
    assert data.originals is not None
    assert (data.originals.limits, data.originals.wide) == (limits, 4)
    low, high = limits
    exact = (given["train/cat/x"].astype(float) - low) * 255 / (high - low)
    assert np.abs(data.train_images[0, 0].numpy() - exact).max() <= 0.5
    assert data.levels > 100
    assert any(f"the values {low:,} to {high:,}" in note for note in data.notes)


def test_test_images_have_the_scale_of_the_training_images_and_are_clipped(tmp_path: Path) -> None:
    given = images(0, 4000, np.uint16)
    given["test/dog/x"] = np.full((20, 20), 9000, np.uint16)
    given["test/cat/x"] = np.full((20, 20), 2048, np.uint16)
    data = load_data(write(tmp_path, given))
    assert data.originals is not None
    assert data.originals.limits == (0, 4095)
    assert data.test_images[:, 0, 0, 0].tolist() == [128, 255]
    assert any("beyond them are clipped" in note for note in data.notes)


def test_the_scale_follows_the_training_images_that_are_used(tmp_path: Path) -> None:
    given = images(0, 4000, np.uint16)
    spec = write(tmp_path, given)
    before = load_data(spec)
    Image.fromarray(np.full((20, 20), 50_000, np.uint16)).save(tmp_path / "train/dog/y.png")
    after = load_data(spec)
    assert (before.originals.limits, after.originals.limits) == ((0, 4095), (0, 65535))  # type: ignore[union-attr]
    # What was said is said again when the pixels come from the cache.
    again = load_data(spec)
    assert (again.notes, again.originals) == (after.notes, after.originals)
    assert torch.equal(again.train_images, after.train_images)


def test_eight_bit_images_beside_wide_ones_keep_their_pixels(tmp_path: Path) -> None:
    given = images(0, 4000, np.uint16)
    given["train/cat/x"] = (RAMP % 256).astype(np.uint8)
    data = load_data(write(tmp_path, given))
    assert np.array_equal(data.train_images[0, 0].numpy(), given["train/cat/x"])


def test_values_whose_zero_is_white_are_turned_round(tmp_path: Path) -> None:
    pixels = images(0, 4000, np.uint16)
    spec = write(tmp_path, pixels, ".tif")
    upright = load_data(spec).train_images.clone()
    for name, array in pixels.items():
        Image.fromarray(array).save(tmp_path / f"{name}.tif", tiffinfo={262: 0})
    assert torch.equal(load_data(spec).train_images, 255 - upright)


def test_limits_are_powers_of_two_around_the_values() -> None:
    cases = {
        (0, 0): (0, 255), (0, 255): (0, 255), (3, 256): (0, 511), (0, 4095): (0, 4095),
        (0, 4096): (0, 8191), (-1, 10): (-1, 255), (-1024, 3071): (-1024, 4095),
        (-1025, 0): (-2048, 255), (-7, -3): (-8, 255),
    }  # fmt: skip
    assert {ends: limits_of(ends) for ends in cases} == cases


def strip(width: int, height: int) -> np.ndarray:
    """Return a picture that is dark in its first quarter and light in its last."""
    pixels = np.full((height, width), 120, np.uint8)
    along = pixels if width > height else pixels.T
    along[:, : max(width, height) // 4] = 20
    along[:, -(max(width, height) // 4) :] = 220
    return pixels


@pytest.mark.parametrize(("width", "height"), [(160, 20), (20, 160), (3000, 9), (9, 3000)])
def test_pictures_and_arrays_fit_alike(width: int, height: int) -> None:
    pixels, file = strip(width, height), io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for fit in ("crop", "pad", "squeeze"):
        form = Form(16, 1, fit)  # type: ignore[arg-type]
        with opened(file.getvalue()) as picture:
            ours = pixels_of(picture, form)[0].astype(int)
        theirs = bring_to(form, pixels[None, None])[0, 0].astype(int)
        assert np.abs(ours - theirs).max() <= 1
        along = ours if width > height else ours.T
        ends = along[7, 0], along[7, -1]
        assert ends == ((120, 120) if fit == "crop" else (20, 220)), fit
        if fit == "pad":
            across = max(1, round(16 * min(width, height) / max(width, height)))
            assert along.all(axis=1).tolist() == [7 <= row < 7 + across for row in range(16)]
            assert along.any(axis=1).sum() == across


def test_what_a_crop_cuts_away_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"train/cat/x": (20, 20), "train/dog/x": (25, 20), "test/cat/x": (20, 20)}
    spec = write(tmp_path, {k: strip(*v) for k, v in sizes.items()} | {"test/dog/x": strip(24, 20)})
    assert load_data(spec).notes == ()  # sides of 5:4 are what photographs have
    write(tmp_path, {"test/dog/x": strip(100, 20)})
    (note,) = load_data(spec).notes
    assert "25 % of the pixels on average and 80 % of the longest image (100x20)" in note
    assert "--fit pad or --fit squeeze" in note
    for fit in ("pad", "squeeze"):
        assert main(["split", "--data", spec, "--fit", fit]) == 0
        shown = capsys.readouterr().out
        assert f"  found 20x20 to 100x20, {fit[:3]}" in shown
        assert "note:" not in shown


def test_fits_are_cached_apart(tmp_path: Path) -> None:
    spec = write(tmp_path, {f"{p}/{c}/x": strip(64, 16) for p, c in four()})
    found: dict[str, LongTailedData] = {}
    for _ in range(2):
        for fit in ("crop", "pad", "squeeze"):
            data = load_data(spec, fit=fit)  # type: ignore[arg-type]
            before = found.setdefault(fit, data)
            assert torch.equal(data.train_images, before.train_images)
            assert data.originals is not None
            assert data.originals.fit == fit
    assert len({data.content_sha256 for data in found.values()}) == 3


def test_tensors_can_be_padded() -> None:
    wide = torch.full((4, 1, 8, 32), 9, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    data = from_tensors(wide, labels, wide, labels, image_size=16, fit="pad")
    assert data.train_images[0, 0, :, 0].tolist() == [0] * 6 + [9] * 4 + [0] * 6


def test_images_that_show_nothing_are_warned_about(class_folder: Callable[..., Path]) -> None:
    noise = class_folder("noise", {"cat": 9, "dog": 9}, 16)
    assert "warning" not in describe(load_data(f"imagefolder:{noise}"))
    root = noise.parent / "dull"
    for number in range(6):
        few = (RAMP + number) % 6 * 50
        flat = np.full((20, 20), 7 * number) + RAMP % 2
        for name, pixels in (("few", few), ("flat", flat)):
            write(root / name, {f"{c}/{number}": pixels.astype(np.uint8) for c in ("cat", "dog")})
    few, flat = (load_data(f"imagefolder:{root / name}") for name in ("few", "flat"))
    assert "warning: the training images have only 6 different pixel values" in describe(few)
    assert "10 of 10 training images are nearly constant" in describe(flat)
    assert facts(flat)["originals"]["smallest"] == (20, 20)


def test_only_the_first_page_or_frame_is_read_and_that_is_said(tmp_path: Path) -> None:
    first, second = (Image.fromarray(a) for a in (strip(16, 16), 255 - strip(16, 16)))
    for suffix in ("tif", "gif", "png", "webp"):
        root = tmp_path / suffix
        for part, name in four():
            path = root / part / name / f"x.{suffix}"
            path.parent.mkdir(parents=True)
            options = {"lossless": True} if suffix == "webp" else {}
            first.save(path, save_all=True, append_images=[second], **options)
        data = load_data(f"imagefolder:{root}")
        assert "only the first page or frame is read of 4 images" in data.notes[0]
        assert np.array_equal(data.train_images[0, 0].numpy(), strip(16, 16)), suffix
