"""Decoding: formats, colour modes, bit depths, orientation, odd sizes and hostile files."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltdd.data.reading.decoder import MAX_PIXELS, Form, Header
from ltdd.data.reading.image_files import Files, Folder, list_files
from ltdd.errors import UserError

GRADIENT = np.linspace(0, 255, 16 * 16).reshape(16, 16).astype(np.uint8)


def read_images(paths: list[Path], size: int, channels: int) -> np.ndarray:
    blocks = list(Files(tuple(map(str, paths))).blocks(Form(size, channels)))
    assert np.concatenate([positions for positions, _ in blocks]).tolist() == [*range(len(paths))]
    return np.concatenate([pixels for _, pixels in blocks])


def read_header(path: Path) -> Header:
    (header,) = Files((str(path),)).headers()
    return header


def decode(path: Path, channels: int = 3, size: int = 16) -> np.ndarray:
    images = read_images([path], size, channels)
    assert images.shape == (1, channels, size, size)
    assert images.dtype == np.uint8
    return images[0].astype(int)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.png", 0),
        ("a.PNG", 0),
        ("a.bmp", 0),
        ("a.ppm", 0),
        ("a.webp", 0),
        ("A.JPG", 6),
        ("a.jpeg", 6),
        ("no_suffix", 0),
        ("wrong.jpg", 0),
        ("a.tif", 0),
        ("A.TIFF", 0),
    ],
)
def test_formats_and_suffixes(tmp_path: Path, name: str, tolerance: int) -> None:
    colours = np.stack([GRADIENT, GRADIENT[::-1], GRADIENT.T], axis=-1)
    format_of = {"no_suffix": "PNG", "wrong.jpg": "PNG", "A.JPG": "JPEG"}
    options = {"lossless": True} if name.endswith("webp") else {"quality": 100, "subsampling": 0}
    path = tmp_path / name
    Image.fromarray(colours).save(path, format_of.get(name), **options)
    expected = colours.transpose(2, 0, 1).astype(int)
    assert np.abs(decode(path) - expected).max() <= tolerance


@pytest.mark.parametrize("name", ["a.tga", "a.pcx", "a.ico"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / name)
    for read in (lambda paths: read_header(*paths), lambda paths: read_images(paths, 16, 3)):
        with pytest.raises(UserError, match=f"{name} \\(not such an image\\)"):
            read([tmp_path / name])


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    wide = GRADIENT.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.astype(np.int32)).save(tmp_path / "wide.pgm")
    for name in ("wide.png", "wide.pgm"):
        assert read_header(tmp_path / name).grey
        assert np.array_equal(decode(tmp_path / name, channels=1)[0], GRADIENT)
        assert np.array_equal(decode(tmp_path / name)[1], GRADIENT)


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    bits = GRADIENT > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert read_header(tmp_path / "bits.png").grey
    assert np.array_equal(decode(tmp_path / "bits.png", channels=1)[0], bits * 255)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, :8] = (200, 100, 50, 255)
    pixels[:, 8:] = (1, 2, 3, 0)
    rgba = Image.fromarray(pixels)
    rgba.save(tmp_path / "rgba.png")
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([200, 100, 50, 1, 2, 3])
    palette.paste(0, (0, 0, 8, 16))
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.fromarray(pixels[..., [0, 3]]).save(tmp_path / "la.png")
    for name in ("rgba.png", "palette.png"):
        result = decode(tmp_path / name)
        assert not read_header(tmp_path / name).grey
        assert result[:, 3, 3].tolist() == [200, 100, 50], name
        assert result[:, 3, 12].tolist() == [255, 255, 255], name
    assert read_header(tmp_path / "la.png").grey
    assert decode(tmp_path / "la.png", channels=1)[0, 3, [3, 12]].tolist() == [200, 255]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=100)
    red, green, blue = decode(tmp_path / "cyan.jpg")[:, 8, 8]
    assert red < 16
    assert min(green, blue) > 239


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # Per orientation: how the stored pixels must be turned to stand upright.
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRADIENT).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "turned.png", channels=1)[0], turn(GRADIENT))


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (1, 1), (9, 300), (33, 17)])
def test_any_shape_is_cropped_to_its_central_square(
    tmp_path: Path, width: int, height: int
) -> None:
    pixels = np.zeros((height, width), dtype=np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side + 1, left : left + side + 1] = 180
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    result = decode(tmp_path / "odd.png", channels=1)[0]
    assert result[2:-2, 2:-2].min() == 180
    header = read_header(tmp_path / "odd.png")
    assert (header.width, header.height) == (width, height)


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((128, 128), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    result = decode(tmp_path / "stripes.png", channels=1)[0]
    assert np.abs(result - 127.5).max() < 8


def test_large_jpeg_keeps_its_content(tmp_path: Path) -> None:
    # Large enough for the decoder to scale while it reads.
    large = np.kron(GRADIENT, np.ones((64, 64), dtype=np.uint8))
    Image.fromarray(large).save(tmp_path / "large.jpg", quality=95)
    assert np.abs(decode(tmp_path / "large.jpg", channels=1)[0] - GRADIENT).mean() < 3


def test_order_of_many_files_is_kept(tmp_path: Path) -> None:
    paths = []
    for value in range(100):
        paths.append(tmp_path / f"{value}.png")
        Image.new("L", (8, 8), value).save(paths[-1])
    assert read_images(paths, 8, 1)[:, 0, 0, 0].tolist() == list(range(100))


def test_files_of_a_class_are_listed_by_relative_path(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "b/deep/1.png", "a/x.png", "b/.hidden/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    files = list_files(Folder(tmp_path, "pets"))
    listed = [Path(path).relative_to(tmp_path).as_posix() for path in files.paths]
    assert listed == ["a/x.png", "b/10.png", "b/2.png", "b/deep/1.png"]
    assert files.labels.tolist() == [0, 1, 1, 1]
    assert files.class_names == ("a", "b")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    for name, width, height in (("big.png", 10_001, 10_000), ("huge.png", 60_000, 60_000)):
        assert width * height > MAX_PIXELS
        (tmp_path / name).write_bytes(png_header(width, height))
        for read in (lambda paths: read_header(*paths), lambda paths: read_images(paths, 16, 3)):
            with pytest.raises(UserError, match=name):
                read([tmp_path / name])


def test_mutated_files_never_escape_as_another_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in ("png", "jpg", "webp", "bmp", "ppm", "tiff", "gif"):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        whole = path.read_bytes()
        messages = []
        for _ in range(60):
            mutated = bytearray(whole[: generator.integers(1, len(whole) + 1)])
            for position in generator.integers(0, len(mutated), 3):
                mutated[position] = generator.integers(0, 256)
            path.write_bytes(mutated)
            try:
                read_header(path)
                decode(path)
            except UserError as error:
                messages.append(str(error))
        assert len(messages) > 20
        assert all(str(path) in message for message in messages)
