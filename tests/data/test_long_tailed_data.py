"""Sources: what they load, how folders are read as splits, every kind of bad input."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.data.reading import image_files
from ltdd.data.splitting.long_tail import exponential_counts
from ltdd.errors import UserError

Builder = Callable[..., Path]
TWO = {"cat": 5, "dog": 5}


def load(root: Path, factor: float | None = None, size: int | None = None) -> LongTailedData:
    return load_data(f"imagefolder:{root}", factor, size)


def test_digits_are_split_once_and_hashed() -> None:
    data = load_data("digits", 50)
    assert data.train_images.shape == (364, 1, 8, 8)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert torch.bincount(data.test_labels).tolist() == [50] * 10
    assert data.counts == (128, 86, 55, 36, 23, 15, 9, 6, 4, 2)
    assert (data.num_classes, data.image_size, data.channels) == (10, 8, 1)
    assert data.class_names == tuple("0123456789")
    # The largest intensity of the source is 16.
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    assert data.split_sha256.startswith("9097174e8e3a74d1")
    again = load_data("digits", 50)
    assert again.split_sha256 == data.split_sha256
    assert again.content_sha256 == data.content_sha256
    assert load_data("digits", 20).split_sha256 != data.split_sha256


def test_digits_train_and_test_are_disjoint_parts_of_the_source() -> None:
    from sklearn.datasets import load_digits

    data = load_data("digits")

    def rows(images: torch.Tensor) -> list[bytes]:
        return [image.numpy().tobytes() for image in images]

    source = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(rows(data.train_images) + rows(data.test_images)) == sorted(
        image.tobytes() for image in source
    )
    # The same images in the same order for any imbalance factor.
    assert torch.equal(load_data("digits", 10).test_images, data.test_images)


def test_normalization_is_that_of_the_training_images() -> None:
    data = load_data("digits", 10)
    values = data.train_images.double() / 255
    assert data.mean == pytest.approx([float(values.mean())], rel=1e-12)
    assert data.std == pytest.approx([float(values.std(correction=0))], rel=1e-12)


def test_digits_can_be_enlarged() -> None:
    small, large = load_data("digits", 50), load_data("digits", 50, 16)
    assert large.train_images.shape == (364, 1, 16, 16)
    assert large.split_sha256 == small.split_sha256
    for ours, before in zip(large.test_images[:20, 0], small.test_images[:20, 0], strict=True):
        theirs = Image.fromarray(before.numpy()).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.abs(ours.numpy().astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders(class_folder: Builder, tmp_path: Path, held_out: str) -> None:
    class_folder("train", {"dog": 8, "cat": 30, "emu": 1}, size=12)
    class_folder(held_out, {"cat": 2, "dog": 3, "emu": 4}, size=12)
    (tmp_path / "README.txt").write_text("not part of the data")
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog", "emu")
    assert data.counts == (30, 8, 1)
    assert torch.bincount(data.test_labels).tolist() == [2, 3, 4]
    assert data.train_images.shape == (39, 3, 12, 12)
    expected = np.asarray(Image.open(tmp_path / "train/dog/0003.png")).transpose(2, 0, 1)
    assert np.array_equal(data.train_images[30 + 3].numpy(), expected)
    # The profile asks for 30, 6 and 1; then for 30, 17 and 10, more than there are.
    assert load(tmp_path, 25).counts == (30, 6, 1)
    assert load(tmp_path, 3).counts == (30, 8, 1)


def test_test_wins_over_val(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", TWO)
    class_folder("val", {"cat": 1, "dog": 1})
    class_folder("test", {"cat": 2, "dog": 2})
    assert len(load(tmp_path).test_labels) == 4


def test_single_folder_holds_out_a_balanced_fifth(class_folder: Builder, tmp_path: Path) -> None:
    root = class_folder("pets", {"cat": 40, "dog": 11, "emu": 23})
    data = load(root)
    assert torch.bincount(data.test_labels).tolist() == [2, 2, 2]
    assert data.counts == (38, 9, 21)
    seen = {image.numpy().tobytes() for image in (*data.train_images, *data.test_images)}
    assert len(seen) == 74
    # The imbalance factor cuts the training part only.
    assert torch.equal(load(root, 5).test_images, data.test_images)


def test_a_class_may_be_called_train(class_folder: Builder) -> None:
    root = class_folder("vehicles", {"car": 4, "train": 4, "test": 4})
    assert load(root).class_names == ("car", "test", "train")


def test_only_chosen_files_are_read(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", {"cat": 10, "dog": 10})
    class_folder("test", TWO)
    kept = np.random.RandomState(42).permutation(10)[:2]
    unused = next(i for i in range(10) if i not in kept)
    (tmp_path / f"train/dog/{unused:04}.png").write_bytes(b"broken")
    assert load(tmp_path, 5).counts == (10, 2)
    with pytest.raises(UserError, match=f"dog/{unused:04}.png"):
        load(tmp_path)


def test_content_hash_sees_a_changed_file(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", TWO)
    class_folder("test", TWO)
    before = load(tmp_path)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "train/cat/0002.png")
    after = load(tmp_path)
    assert before.split_sha256 == after.split_sha256
    assert before.content_sha256 != after.content_sha256


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([16, 16], 16), ([16, 20], 32), ([7, 7], 32), ([230, 230], 32), ([224, 224], 224)],
)
def test_default_size(
    class_folder: Builder, tmp_path: Path, sizes: list[int], expected: int
) -> None:
    class_folder("train", {"cat": 1, "dog": 1}, size=sizes[0])
    class_folder("test", {"cat": 1, "dog": 1}, size=sizes[1])
    assert load(tmp_path).image_size == expected
    assert load(tmp_path, size=9).image_size == 9


def test_grey_only_if_all_files_are_grey(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", TWO, mode="L")
    class_folder("test", TWO, mode="L")
    data = load(tmp_path)
    assert data.channels == len(data.mean) == 1
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "test/dog/0000.png")
    data = load(tmp_path)
    assert data.channels == len(data.mean) == 3
    assert torch.equal(data.train_images[:, 0], data.train_images[:, 2])


def test_constant_images_have_a_usable_normalization(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in TWO:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (8, 8), 0).save(tmp_path / part / name / "black.png")
    data = load(tmp_path)
    assert (data.mean, data.std) == ((0.0,), (1.0,))


# --- bad input: one clear sentence each ---


def refuse(source: Path | str, *parts: str, size: int | None = None) -> None:
    spec = source if isinstance(source, str) else f"imagefolder:{source}"
    with pytest.raises(UserError) as caught:
        load_data(spec, None, size)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_missing_folder(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "expected a folder at", "nowhere", "nothing there")
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "expected a folder at", "got a file")


def test_folder_without_class_folders(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    (tmp_path / ".git").mkdir()
    refuse(tmp_path, "expected one folder per class", "got no folder")


def test_one_class_only(class_folder: Builder, tmp_path: Path) -> None:
    refuse(class_folder("pets", {"cat": 4}), "at least 2 class folders", "only cat")
    class_folder("train", {"cat": 4})
    class_folder("test", {"cat": 4})
    refuse(tmp_path, "at least 2 class folders", "train")


def test_class_missing_in_one_part(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", {**TWO, "fox": 1})
    class_folder("test", TWO)
    for _ in range(2):
        refuse(tmp_path, "test images of every class, got none of 'fox'; --incomplete-classes keep")
        (tmp_path / "test/fox").mkdir(exist_ok=True)
    (tmp_path / "test/yak").mkdir()
    refuse(tmp_path, "got no training images of 'yak' and no test images of 'fox'")


def test_one_part_missing(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", TWO)
    data = load(tmp_path)
    assert (data.counts, len(data.test_labels)) == ((4, 4), 2)
    assert data.notes == (f"{tmp_path} has no test part: 1 of every class held out for it",)
    class_folder("pets", TWO)
    assert f"split pets of {tmp_path} is neither trained nor tested on" in load(tmp_path).notes
    (tmp_path / "pets/cat/0000.png").rename(tmp_path / "pets/0.png")
    refuse(tmp_path, "test or val", str(tmp_path / "pets"), "give that folder")


def test_train_missing(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("test", TWO)
    refuse(tmp_path, f"expected a split train in {tmp_path}, got test")


def test_nothing_to_hold_out(class_folder: Builder) -> None:
    root = class_folder("pets", {"cat": 9, "dog": 1})
    refuse(root, "test images of every class, got none of 'dog'", "of those with one image")


def test_unreadable_and_foreign_files_are_named(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", TWO)
    class_folder("test", TWO)
    (tmp_path / "train/cat/notes").write_text("remember the milk")
    refuse(tmp_path, "expected readable PNG", "cat/notes (not such an image)", "on-bad-image skip")
    whole = (tmp_path / "train/dog/0001.png").read_bytes()
    (tmp_path / "train/dog/0001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/cat/notes").unlink()
    refuse(tmp_path, "dog/0001.png")
    for number in range(12):
        (tmp_path / f"test/dog/x{number}.png").write_bytes(b"")
    refuse(tmp_path, "test/dog/x0.png", "test/dog/x2.png", "and 2 more")


def test_hidden_and_thumbnail_files_are_left_out(class_folder: Builder, tmp_path: Path) -> None:
    class_folder("train", TWO)
    class_folder("test", TWO)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "train/cat" / name).write_text("system")
    assert load(tmp_path).counts == (5, 5)


@pytest.mark.parametrize("size", [7, 225, 0, -1])
def test_size_out_of_range(size: int) -> None:
    refuse("digits", "image size between 8 and 224", f"got {size}", size=size)


@pytest.mark.parametrize("source", ["mnist", "", "imagefolder", "imagefolder:", "digits:x"])
def test_unknown_source(source: str) -> None:
    refuse(source, "imagefolder:PATH")


def test_imbalance_factor_below_one() -> None:
    with pytest.raises(UserError, match=re.escape("expected an imbalance factor >= 1, got 0.5")):
        load_data("digits", 0.5)


def test_cifar_without_network_or_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from urllib.error import URLError

    from torchvision.datasets import CIFAR10

    def offline(self: CIFAR10) -> None:
        raise URLError("name resolution failed")

    monkeypatch.setattr(CIFAR10, "download", offline)
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    refuse("cifar10", "expected CIFAR10 in", str(tmp_path / "cache"), "name resolution failed")


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permission bits")
def test_unreadable_folder(class_folder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folder("pets", TWO)

    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    # A real chmod does not stop a test that runs as root.
    monkeypatch.setattr(image_files.os, "scandir", deny)
    refuse(root, "expected a readable folder", "Permission denied")


@pytest.mark.cifar
def test_cifar_folder_is_the_published_split(cifar_root: Path) -> None:
    data = load(cifar_root, 100)
    # The head has all 5,000 images here, so the counts are those of the published profile.
    assert list(data.counts) == exponential_counts(10, 100, 5000)
    assert data.train_images.shape == (12406, 3, 32, 32)
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.class_names[0] == "airplane"
    assert data.split_sha256.startswith("a702cad09ff564b3")
    assert data.mean == pytest.approx((0.4991, 0.5031, 0.4911), abs=1e-3)
