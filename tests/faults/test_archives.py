"""Archives: an honest one is a folder, a hostile one is refused before a byte is written."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults.test_images import picture

from ltdd.data.long_tailed_data import load_data
from ltdd.data.reading import archives
from ltdd.errors import UserError

Archive = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that archives are unpacked below."""
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
@pytest.mark.parametrize("top", ["", "dataset/"])
def test_an_archive_is_its_folder(suffix: str, top: str, tmp_path: Path, cache: Path) -> None:
    names = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(5)]
    for number, name in enumerate(names):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(picture("PNG", number))
    path = tmp_path / f"data{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.write(tmp_path / "data" / name, top + name)
            file.writestr("__MACOSX/cat/._0.png", b"junk")
    else:
        with tarfile.open(path, f"w:{suffix.rpartition('.')[2].replace('tgz', 'gz')}") as file:
            file.add(tmp_path / "data", top or ".")
    for _ in range(2):
        found = load_data(f"imagefolder:{path}")
        expected = load_data(f"imagefolder:{tmp_path / 'data'}")
        assert torch.equal(found.train_images, expected.train_images)
        assert found.split_sha256 == expected.split_sha256
    assert len([p for p in (cache / "archives").iterdir() if not p.name.startswith(".")]) == 1


def zipped(
    name: str = "cat/x.png", content: bytes = b"x", mode: int = 0, double: bool = False
) -> Archive:
    def write(folder: Path) -> Path:
        path = folder / "hostile.zip"
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(info, content)
            if double:
                with pytest.warns(UserWarning, match="Duplicate name"):
                    file.writestr(zipfile.ZipInfo(name), b"y")
        return path

    return write


def twice(*names: str) -> Archive:
    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "hostile.zip", "w") as file:
            for name in names:
                file.writestr(zipfile.ZipInfo(name), b"x")
        return folder / "hostile.zip"

    return write


def tarred(name: str = "cat/x.png", kind: bytes = tarfile.REGTYPE, link: str = "") -> Archive:
    def write(folder: Path) -> Path:
        path = folder / "hostile.tar"
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        with tarfile.open(path, "w") as file:
            file.addfile(info, io.BytesIO())
        return path

    return write


def changed(archive: Archive, change: Callable[[bytes], bytes]) -> Archive:
    def write(folder: Path) -> Path:
        path = archive(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return write


def encrypted(content: bytes) -> bytes:
    """Set the encryption flag in the central directory."""
    where = content.index(b"PK\x01\x02") + 8
    return content[:where] + b"\x01" + content[where + 1 :]


def declaring(size: int) -> Callable[[bytes], bytes]:
    """Declare a size in the central directory, whatever there is."""

    def change(content: bytes) -> bytes:
        where = content.index(b"PK\x01\x02") + 24
        return content[:where] + size.to_bytes(4, "little") + content[where + 4 :]

    return change


HOSTILE = {
    "climbs out": (zipped("../x.png"), "points out"),
    "climbs out from within": (zipped("cat/../../x.png"), "points out"),
    "absolute": (zipped("/tmp/x.png"), "points out"),
    "absolute on Windows": (zipped("C:\\x.png"), "points out"),
    "on another machine": (zipped("\\\\server\\share\\x.png"), "points out"),
    "the same name with two separators": (twice("cat/x.png", "cat\\x.png"), "two members"),
    "backslashes": (zipped("cat\\..\\..\\x.png"), "points out"),
    "zipped link": (zipped(content=b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "link or device"),
    "zipped device": (zipped(mode=stat.S_IFCHR | 0o666), "link or device"),
    "twice the same name": (zipped(double=True), "two members"),
    "bomb": (zipped(content=bytes(100 << 20)), "times as large"),
    "one huge member": (changed(zipped(), declaring(2**28 + 1)), "bytes, more than"),
    "encrypted": (changed(zipped(), encrypted), "an encrypted file"),
    "lies about its size": (changed(zipped(content=b"abc"), declaring(4)), "bytes in"),
    "cut zip": (changed(zipped(content=b"abc" * 99), lambda c: c[:-30]), "a whole archive"),
    "no zip": (changed(zipped(), lambda c: b"GIF89a" + bytes(99)), "a whole archive"),
    "tar climbs out": (tarred("../x.png"), "points out"),
    "tar absolute": (tarred("/tmp/x.png"), "points out"),
    "symbolic link": (tarred(kind=tarfile.SYMTYPE, link="/etc/passwd"), "link or device"),
    "link within": (tarred(kind=tarfile.SYMTYPE, link="y.png"), "link or device"),
    "hard link": (tarred(kind=tarfile.LNKTYPE, link="../../etc/passwd"), "link or device"),
    "pipe": (tarred(kind=tarfile.FIFOTYPE), "link or device"),
    "device": (tarred(kind=tarfile.CHRTYPE), "link or device"),
    "no tar": (changed(tarred(), lambda c: b"x" * 2048), "a whole archive"),
    "damaged tar": (changed(tarred(), lambda c: c[:100] + b"7" * 60 + c[160:]), "a whole archive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_leave_nothing_behind(name: str, tmp_path: Path, cache: Path) -> None:
    make, said = HOSTILE[name]
    folder = tmp_path / "in"
    folder.mkdir()
    path = make(folder)
    before = {entry for entry in tmp_path.rglob("*") if cache not in entry.parents}
    with pytest.raises(UserError, match=said) as failure:
        load_data(f"imagefolder:{path}")
    assert str(path) in str(failure.value) or said == "bytes in"
    assert {p.name for p in (cache / "archives").iterdir() if p.is_dir()} == set()
    after = {entry for entry in tmp_path.rglob("*") if cache not in entry.parents}
    assert after - before <= {cache}


FORMS: dict[str, Callable[[str], str]] = {
    "two wrappers": lambda name: f"a/b/{name}",
    "separators of Windows": lambda name: f"data\\{name}".replace("/", "\\"),
    "a point before": lambda name: f"./{name}",
}
BESIDE = {
    "nothing": [],
    "a README": ["README.md", "LICENSE"],
    "litter": ["__MACOSX/cat/._0.png", "$RECYCLE.BIN/cat/0.png", "@eaDir/0.png", "desktop.ini"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beside", BESIDE)
def test_archives_as_tools_make_them(form: str, beside: str, tmp_path: Path) -> None:
    names = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(5)]
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        if form == "separators of Windows":
            file.writestr(zipfile.ZipInfo("data\\"), b"")
        for number, name in enumerate(names):
            file.writestr(FORMS[form](name), picture("PNG", number))
        for name in BESIDE[beside]:
            file.writestr(name, b"x")
            file.writestr(FORMS[form](name), b"x") if form == "two wrappers" else None
    data = load_data(f"imagefolder:{path}")
    assert (data.class_names, data.counts) == (("cat", "dog"), (4, 4))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat/0.png", "cat/1.png"], "at least 2 class folders in {archive}, got only cat"),
        (["cat/0.png", "dog/0.txt"], "got none in {archive}/dog"),
        (["cat/0.png", "dog/0.png"], "got 1 in {archive}; or give {archive}/train"),
        (["cat/0.jpg", "cat/1.png", "dog/0.png", "dog/1.png"], "got {archive}/cat/0.jpg (not"),
        (
            ["w/train/cat/0.png", "w/test/cat/0.png"],
            "at least 2 class folders in {archive}/w/train",
        ),
        (["0.png"], "one folder per class in {archive}, got no folder"),
    ],
)
def test_messages_name_the_archive(
    names: list[str], said: str, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number, name in enumerate(names):
            file.writestr(name, picture("PNG", number) if name.endswith("png") else b"x")
    with pytest.raises(UserError) as failure:
        load_data(f"imagefolder:{path}")
    assert said.format(archive=path) in str(failure.value)
    assert str(cache) not in str(failure.value)


def test_notes_and_names_of_images_name_the_archive(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(6):
            file.writestr(f"{('cat', 'dog')[number % 2]}/{number}.png", picture("PNG", number // 2))
        file.writestr("cat/bad.png", b"x")
    data = load_data(f"imagefolder:{path}", on_bad_image="skip")
    assert data.left_out == (f"{path}/cat/bad.png (not such an image)",)
    said = [*data.notes, *data.left_out, *data.duplicates.examples]
    assert len(said) > 2
    assert not any(str(cache) in text for text in said)


def test_a_cache_that_cannot_be_written_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "file"))
    path = zipped()(tmp_path)
    with pytest.raises(UserError, match=r"cannot unpack .*hostile\.zip into .*LTDD_DATA"):
        load_data(f"imagefolder:{path}")


def test_there_are_many_hostile_archives() -> None:
    assert len(HOSTILE) >= 15
