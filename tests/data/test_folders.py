"""Folders as people have them: litter, other files, levels, published sets as unpacked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.refusal import refused
from helpers.trees import images, write

from ltdd.data.long_tailed_data import load_data

TWO = ("train/cat", "train/dog", "test/cat", "test/dog")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


def zipped(root: Path) -> str:
    return shutil.make_archive(str(root), "zip", root)


LITTER = (
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.png",
    "#recycle/0.png",
    "$RECYCLE.BIN/0.png",
    "System Volume Information/0.png",
    "lost+found/0.png",
    "__MACOSX/._0.png",
    "@Recycle/0.png",
    ".thumbnails/0.png",
    ".ipynb_checkpoints/0-checkpoint.png",
    "._0.png",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "ehthumbs.db",
    "0.png:Zone.Identifier",
)


@pytest.mark.parametrize("litter", LITTER)
def test_what_systems_leave_behind_is_no_image(litter: str, tmp_path: Path) -> None:
    clean = load_data(f"imagefolder:{write(tmp_path / 'data', images(*TWO))}")
    places = ("", "train/", "train/cat/", "test/dog/deep/")
    write(tmp_path / "data", [place + litter for place in places])
    for spec in (tmp_path / "data", zipped(tmp_path / "data")):
        data = load_data(f"imagefolder:{spec}")
        assert (data.content_sha256, data.notes) == (clean.content_sha256, ())


def test_copies_on_network_storage_do_not_leak(tmp_path: Path) -> None:
    folders = [f"{n}/@eaDir/{i}.png" for n in ("cat", "dog") for i in range(6)]
    root = write(tmp_path / "data", images("cat", "dog", count=6) + images(*folders, count=3))
    data = load_data(f"imagefolder:{root}")
    assert sum(data.counts) + len(data.test_labels) == 12


def test_files_that_are_no_images_are_passed_over_and_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "data", images(*TWO))
    clean = load_data(f"imagefolder:{root}")
    write(root, ["train/cat/a.txt", "train/dog/b.TXT", "test/dog/deep/c.xml", "train/all.csv"])
    for spec in (root, zipped(root)):
        data = load_data(f"imagefolder:{spec}")
        assert data.notes == ("passed over 3 files that are no images (.txt 2, .xml 1)",)
        assert data.content_sha256 == clean.content_sha256


def test_an_image_under_another_name_counts(tmp_path: Path) -> None:
    names = ["cat/a", "cat/b.xyz", "cat/c.PNG", "dog/a.jpg", "dog/b.0001"]
    data = load_data(f"imagefolder:{write(tmp_path / 'data', names)}")
    assert (data.counts, data.notes[1:]) == ((2, 1), ())
    (tmp_path / "data/cat/d.xyz").write_text("no image")
    refused(f"imagefolder:{tmp_path / 'data'}", "cat/d.xyz (not such", "--on-bad-image skip")


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    root = write(tmp_path / "data", [*images("cat", "dog"), "annotations/0.xml"])
    refused(f"imagefolder:{root}", "in every class folder", str(root / "annotations"), "only .xml")


def test_loose_images_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "data", [*images("cat", "dog"), "a.png", "b.jpg", "README.md"])
    assert (
        f"passed over 2 images of no class, directly in {root}"
        in load_data(f"imagefolder:{root}").notes
    )


SPECIES = ("bird/emu", "bird/owl", "mammal/cat", "mammal/dog")


@pytest.mark.parametrize("top", ["", "train/"])
@pytest.mark.parametrize("packed", [False, True])
def test_two_levels_of_classes_are_asked_for(top: str, packed: bool, tmp_path: Path) -> None:
    root = write(tmp_path / "data", images(*(top + name for name in SPECIES)))
    if top:
        write(root, images(*(f"test/{name}" for name in SPECIES)))
    spec = zipped(root) if packed else str(root)
    asked = f"'imagefolder:{spec}[levels=2]'"
    refused(f"imagefolder:{spec}", "got only folders, such as bird/emu", asked, "[levels=1]")
    assert load_data(f"imagefolder:{spec}[levels=2]").class_names == SPECIES
    assert load_data(f"imagefolder:{spec}[levels=1]").class_names == ("bird", "mammal")
    refused(f"imagefolder:{spec}[levels=3]", "folders of classes in", "bird/emu, got a file")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("[levels=0]", "N from 1 to 9, got '0'"),
        ("[levels=two]", "got 'two'"),
        ("[levls=2]", "expected [levels=N] behind imagefolder:, got [levls=2]"),
        ("[columns=a,b]", "expected [levels=N] behind imagefolder:, got [columns=a,b]"),
    ],
)
def test_wrong_options_are_named(option: str, said: str, tmp_path: Path) -> None:
    refused(f"imagefolder:{write(tmp_path / 'data', images(*SPECIES))}{option}", said)


def test_a_folder_may_be_called_like_an_option(tmp_path: Path) -> None:
    root = write(tmp_path / "run[levels=2]", images("cat", "dog"))
    assert load_data(f"imagefolder:{root}").class_names == ("cat", "dog")


def test_one_folder_inside_every_class_is_no_level(tmp_path: Path) -> None:
    root = write(tmp_path / "data", images("cat/images", "dog/images"))
    assert load_data(f"imagefolder:{root}").class_names == ("cat", "dog")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wrapper", ["", "tiny-imagenet-200/"])
def test_tiny_imagenet_as_unpacked(packed: bool, wrapper: str, tmp_path: Path) -> None:
    wnids = ("n01", "n02", "n03")
    folders = [f"{wrapper}train/{wnid}/images" for wnid in wnids]
    root = write(tmp_path / "data", images(*folders, f"{wrapper}test/images"))
    write(root, images(f"{wrapper}val/images", count=6))
    lines = [f"{n}.png\t{wnids[n % 3]}\t0\t0\t62\t62\n" for n in range(6)]
    notes = root / wrapper / "val/val_annotations.txt"
    notes.write_text("".join(lines))
    for wnid in wnids:
        (root / wrapper / f"train/{wnid}/{wnid}_boxes.txt").write_text("0.png\t0\t0\t62\t62\n")
    (root / wrapper / "wnids.txt").write_text("\n".join(wnids))
    data = load_data(f"imagefolder:{zipped(root) if packed else root}")
    assert (data.class_names, data.counts) == (wnids, (4, 4, 4))
    assert data.test_labels.tolist() == [0, 1, 2] * 2
    assert any("split test" in note and "it has no labels" in note for note in data.notes)
    assert "passed over 3 files that are no images (.txt 3)" in data.notes
    for text, said in (
        (lines[:5], "got none of '5.png'"),
        ([*lines, "9.png\tn01\n"], "line 7: expected an image 9.png"),
        ([*lines, "0.png\tn02\n"], "line 7: expected one class of 0.png, got 'n01' and 'n02'"),
        (["0.png n01\n"], "line 1: expected a file, a tab and a class"),
    ):
        notes.write_text("".join(text))
        refused(f"imagefolder:{root}", "val_annotations.txt", said)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"], "give cifar10"),
        (["data_batch_1", "test_batch"], "CIFAR-10's Python pickles; give cifar10 (torchvision:C"),
        (["cifar-10-batches-bin/data_batch_1.bin"], "give cifar10 (torchvision:CIFAR10)"),
        (["cifar-100-python/meta", "cifar-100-python/train", "cifar-100-python/test"], "cifar100"),
        (["raw/train-images-idx3-ubyte"], "give torchvision:MNIST"),
        (["train_32x32.mat"], "give torchvision:SVHN"),
        (["train.zip", "test.zip"], "got no folder but test.zip; unpack it first"),
        (["1.png", "labels.csv"], "list:FILE@"),
    ],
)
def test_other_forms_are_refused_with_what_reads_them(
    files: list[str], said: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "data", files)
    refused(f"imagefolder:{root}", str(root), said)
    archive = zipped(root)
    refused(f"imagefolder:{archive}", archive, said)


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.npz", "npz:"), ("a.csv", "list:"), ("a.parquet", "hf:"), ("a.rar", "archives are .zip")],
)
def test_a_file_is_refused_with_what_reads_it(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    refused(f"imagefolder:{tmp_path / name}", "got a file", said)


def test_a_home_folder_may_be_short(tmp_path: Path) -> None:
    root = write(tmp_path / "data", images("cat", "dog"))
    (tmp_path / "all.txt").write_text("".join(f"data/{p} {p[:3]}\n" for p in images("cat", "dog")))
    short = load_data("imagefolder:~/data")
    assert short.content_sha256 == load_data(f"imagefolder:{root}").content_sha256
    for spec in ("list:~/all.txt", "list:~/all.txt,~/all.txt", "list:~/all.txt@~"):
        assert load_data(spec).class_names == ("cat", "dog")
    refused("npz:~/a.npz", f"{tmp_path}/a.npz")
