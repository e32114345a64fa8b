"""Broken image files: each is named, refused by default and left out on demand."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.tiny_run import Forked, open_to_others
from PIL import Image

from ltdd.data.long_tailed_data import load_data
from ltdd.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")


def picture(form: str, number: int = 0) -> bytes:
    """Return a noisy 16x16 image: it does not compress, so its end matters."""
    noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


def png(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        ending = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + ending

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def other_format(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, form)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("x.png", picture("PNG"))
    return file.getvalue()


def broken() -> dict[str, bytes]:
    """Return contents that are no images, by what is wrong with them."""
    cases = {}
    for form in FORMATS:
        whole = picture(form)
        for percent in (10, 50, 90):
            cases[f"{form} cut at {percent} %"] = whole[: len(whole) * percent // 100]
        cases[f"{form} without its first bytes"] = whole[4:]
        cases[f"{form} of zeros"] = bytes(len(whole))
    for form in ("ICO", "TGA", "PCX"):
        cases[form] = other_format(form)
    whole = picture("PNG")
    return cases | {
        "empty": b"",
        "one byte": b"\x89",
        "text": b"not an image\n",
        "html": b"<!doctype html><title>404</title>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pickle": pickle.dumps({"x": 1}),
        "zip": archive(),
        "program": b"\x7fELF" + bytes(60),
        "bomb of 3.6 gigapixels": png(60_000, 60_000, b"\0" * 100),
        "bomb of 144 megapixels": png(12_000, 12_000, b"\0" * 100),
        "no pixels": png(16, 16, b""),
        "no width": png(0, 16, b""),
        "damaged pixels": whole[:60] + b"\xff" * 9 + whole[69:],
        "floating-point pixels": b"PF\n16 16\n-1.0\n" + bytes(16 * 16 * 12),
        "PPM that promises more": b"P6\n4000 4000\n255\n" + bytes(100),
        "PPM with a word for a size": b"P6\nten 16\n255\n" + bytes(768),
        "BMP with a negative width": b"BM"
        + struct.pack("<IHHIIiiHH", 822, 0, 0, 54, 40, -16, 16, 1, 24)
        + bytes(792),
    }


class Tag(NamedTuple):
    """An entry of a TIFF table: its type is a number, with the bytes of one value."""

    number: int
    kind: int
    count: int
    value: int


def tiff(*tags: Tag, order: str = "<", rest: bytes = bytes(768), start: int = 8) -> bytes:
    """Return a 16x16 RGB file with tags beside or instead of those it needs."""
    usual = [
        Tag(256, 4, 1, 16), Tag(257, 4, 1, 16), Tag(259, 3, 1, 1), Tag(262, 3, 1, 2),
        Tag(277, 3, 1, 3), Tag(258, 3, 1, 8), Tag(278, 4, 1, 16), Tag(279, 4, 1, 768),
        Tag(273, 4, 1, 8),
    ]  # fmt: skip
    chosen = {tag.number: tag for tag in (*usual, *tags)}
    body = b"".join(
        struct.pack(order + "HHI", *tag[:3])
        + struct.pack(order + ("HH" if tag.kind == 3 else "I"), tag.value, *[0] * (tag.kind == 3))
        for _, tag in sorted(chosen.items())
    )
    table = struct.pack(order + "H", len(chosen)) + body + bytes(4)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, len(rest) + 8)
    return head + rest + table


def hostile_tiffs() -> dict[str, tuple[bytes, str]]:
    """Return files that ask for more than they hold, with what is said of them."""
    large = bytes(1 << 20)
    same = [Tag(n, 7, len(large), 8) for n in range(40000, 40900)]
    many = [Tag(n, 3, 1, 0) for n in range(40000, 42000)]
    return {
        "many tags over the same bytes": (tiff(*same, rest=large), "larger than the file"),
        "more tags than anybody needs": (tiff(*many), "TIFF tags"),
        "a million strips": (tiff(Tag(273, 3, 500_000, 8), rest=large), "more than 262,144 values"),
        "a text longer than the file": (tiff(Tag(270, 2, 1 << 31, 8)), "larger than the file"),
        "tiles of four gigapixels": (
            tiff(Tag(322, 4, 1, 65536), Tag(323, 4, 1, 65536), Tag(259, 3, 1, 8)),
            "tiles of 65536x65536",
        ),
        "tables that hold each other": (tiff(Tag(34665, 4, 1, 776)), "contain each other"),
        "a table behind the end": (tiff(Tag(34665, 4, 1, 1 << 30)), "outside of the file"),
        "an unknown compression": (tiff(Tag(259, 3, 1, 34712)), "compression 34712"),
        "a table at nowhere": (b"II*\0\xff\xff\xff\x7f" + bytes(99), "outside of the file"),
        "bytes of the version turned round": (
            b"II\0*" + tiff(*same, rest=large)[4:],
            "larger than the file",
        ),
        "a big TIFF with more tags than bytes": (
            b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 40) + bytes(99),
            "TIFF tags",
        ),
        "more pixels than there may be": (
            tiff(Tag(256, 4, 1, 60_000), Tag(257, 4, 1, 60_000)),
            "pixels",
        ),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with six good images each."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            path = tmp_path / "data" / name / f"{number}.png"
            path.write_bytes(picture("PNG", number + 100 * (name == "dog")))
    return tmp_path / "data"


def refused_and_left_out(folder: Path, bad: Path, clean: torch.Tensor, why: str = "") -> None:
    with pytest.raises(UserError) as failure:
        load_data(f"imagefolder:{folder}")
    assert str(bad) in str(failure.value), why
    assert "\n" not in str(failure.value), why
    data = load_data(f"imagefolder:{folder}", on_bad_image="skip")
    assert [str(bad) in text for text in data.left_out] == [True], why
    assert torch.equal(data.train_images, clean), why


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_named_and_can_be_left_out(folder: Path) -> None:
    cases = broken()
    assert len(cases) >= 40
    clean = load_data(f"imagefolder:{folder}").train_images
    bad = folder / "dog" / "broken.png"
    for why, content in cases.items():
        bad.write_bytes(content)
        refused_and_left_out(folder, bad, clean, why)


@pytest.mark.parametrize("order", ["<", ">"])
def test_plain_tiffs_are_read(folder: Path, order: str) -> None:
    (folder / "dog" / "plain.tif").write_bytes(tiff(order=order))
    assert sum(load_data(f"imagefolder:{folder}").counts) == 11


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("why", hostile_tiffs())
def test_tiffs_that_ask_for_more_than_they_hold_are_refused_in_little_memory(
    folder: Path, why: str
) -> None:
    content, said = hostile_tiffs()[why]
    bad = folder / "dog" / "broken.tif"
    bad.write_bytes(content)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def refused() -> None:
        most = mapped + (400 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with pytest.raises(UserError, match=f"broken.tif .*{said}"):
            load_data(f"imagefolder:{folder}")

    assert Forked(refused).wait() == 0


def test_things_that_are_no_files_are_named(folder: Path, tmp_path: Path) -> None:
    clean = load_data(f"imagefolder:{folder}").train_images
    bad = folder / "dog" / "odd.png"
    links = {"itself": bad, "nowhere": tmp_path / "nowhere.png"}
    for target in links.values():
        bad.symlink_to(target)
        refused_and_left_out(folder, bad, clean)
        bad.unlink()
    os.mkfifo(bad)
    refused_and_left_out(folder, bad, clean)


def test_folders_in_a_circle_are_read_once(folder: Path) -> None:
    clean = load_data(f"imagefolder:{folder}")
    (folder / "cat" / "again").symlink_to(folder / "cat")
    (folder / "cat" / "up").symlink_to(folder)
    looped = load_data(f"imagefolder:{folder / 'cat' / 'up'}")
    assert torch.bincount(looped.train_labels).tolist()[1] == clean.counts[1]
    (folder / "cat" / "up").unlink()
    assert load_data(f"imagefolder:{folder}").split_sha256 == clean.split_sha256


def test_unreadable_files_and_folders_are_named(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")

    def as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(UserError, match=r"0\.png \(permission denied\)"):
            load_data(f"imagefolder:{folder}")
        assert len(load_data(f"imagefolder:{folder}", on_bad_image="skip").left_out) == 1
        (folder / "cat" / "0.png").stat()

    def closed_folder() -> None:
        os.setuid(65534)
        with pytest.raises(UserError, match=r"readable folder at .*deep, got Permission denied"):
            load_data(f"imagefolder:{folder}")

    open_to_others(folder)
    (folder / "cat" / "0.png").chmod(0)
    assert Forked(as_nobody).wait() == 0
    (folder / "cat" / "deep").mkdir(mode=0)
    assert Forked(closed_folder).wait() == 0


def test_a_class_without_a_readable_image_is_named(folder: Path) -> None:
    for path in (folder / "cat").iterdir():
        path.write_bytes(b"no")
    why = r"training images of every class, got none of 'cat' .*/0.png \(not such"
    with pytest.raises(UserError, match=why):
        load_data(f"imagefolder:{folder}", on_bad_image="skip")


def test_names_from_all_over_the_world(folder: Path) -> None:
    clean = load_data(f"imagefolder:{folder}")
    for old, new in (("cat", "猫 кошка"), ("dog", "Überhund")):
        (folder / old).rename(folder / new)
    (folder / "Überhund" / "0.png").rename(folder / "Überhund" / "0 \udcff.PNG")
    renamed = load_data(f"imagefolder:{folder}")
    assert renamed.class_names == ("Überhund", "猫 кошка")
    assert sorted(renamed.counts) == sorted(clean.counts)
    (folder / "Überhund").rename(folder / "dog\n")
    with pytest.raises(UserError, match=r"UTF-8 names .* got 'dog\\n'"):
        load_data(f"imagefolder:{folder}")
