"""The decoder: every kind of image file as a viewer shows it, and everything else refused."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from mnft.data.decode import MAX_PIXELS, decode, decode_bytes, inspect
from mnft.errors import DataError

ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode_bytes(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def asymmetric(width: int = 48, height: int = 32) -> Image.Image:
    """Four quarters of four colours, so that no two orientations look alike."""
    image = Image.new("RGB", (width, height), (200, 200, 200))
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste((0, 0, 255), (0, height // 2, width // 2, height))
    return image


def noise(width: int = 64, height: int = 48) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_header(width: int, height: int, bit_depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that says how large it is and then holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=["jpeg", "png", "webp", "tiff", "tiff-lzw"],
)
def test_exif_orientation(kind: str, options: dict[str, Any], orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encode(asymmetric(), kind, exif=exif, **options)

    found = decode_bytes(content)

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert found.size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.array_equal(found, expected)


def test_eight_orientations_are_eight_pictures() -> None:
    seen = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image = decode_bytes(encode(asymmetric(), "PNG", exif=exif))
        seen.add((image.size, image.tobytes()))
    assert len(seen) == 8


def test_orientation_six_is_turned_clockwise() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = decode_bytes(encode(asymmetric(), "PNG", exif=exif))
    # The stored bottom left (blue) comes to the top left.
    assert image.getpixel((0, 0)) == (0, 0, 255)
    assert image.getpixel((31, 0)) == (255, 0, 0)


def test_unknown_orientation_is_none() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    assert np.array_equal(pixels(encode(asymmetric(), "PNG", exif=exif)), asymmetric())


@pytest.mark.parametrize("cut", [8, 14, 20, 40])
def test_damaged_exif_decodes(cut: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "a description " * 9
    whole = exif.tobytes()
    content = encode(noise(), "JPEG", exif=whole[:cut] + b"\xff" * (len(whole) - cut))
    plain = encode(noise(), "JPEG")
    found = pixels(content)
    assert found.shape[:2] in {(48, 64), (64, 48)}
    if found.shape == (48, 64, 3):
        assert np.array_equal(found, pixels(plain))


# Colour


def test_jpeg_is_what_pillow_gives() -> None:
    content = encode(noise(), "JPEG")
    assert np.array_equal(pixels(content), Image.open(io.BytesIO(content)))


def test_cmyk_without_profile() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = pixels(encode(cmyk, "JPEG", quality=100))
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


def test_cmyk_with_a_profile_that_is_not_for_cmyk_falls_back() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for icc in (profile, b"no profile at all"):
        found = pixels(encode(cmyk, "JPEG", quality=100, icc_profile=icc))
        assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


def test_cmyk_with_a_profile_is_colour_managed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def convert(image: Image.Image, source: Any, target: Any, outputMode: str) -> Image.Image:
        seen.append((image.mode, outputMode))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = pixels(encode(cmyk, "JPEG", icc_profile=profile))
    assert seen == [("CMYK", "RGB")]
    assert (found == (1, 2, 3)).all()


def test_palette() -> None:
    image = asymmetric().quantize(8)
    assert np.array_equal(pixels(encode(image, "PNG")), image.convert("RGB"))


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_with_transparency_is_shown_on_white(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    for x in range(3):
        image.putpixel((x, 0), x)
    found = pixels(encode(image, "PNG", transparency=transparency)).astype(int)
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[0, 1].tolist() == [255, 255, 255]
    half = (0, 0, 200) if isinstance(transparency, int) else (127, 127, 227)
    assert np.abs(found[0, 2] - half).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 100, 200, 128), (127, 177, 227)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
        ("LA", (0, 128), (127, 127, 127)),
    ],
)
def test_transparency_is_shown_on_white(mode: str, colour: Any, expected: Any) -> None:
    found = pixels(encode(Image.new(mode, (5, 4), colour), "PNG")).astype(int)
    assert found.shape == (4, 5, 3)
    assert np.abs(found - expected).max() <= 1


def test_one_transparent_colour_of_an_rgb_image() -> None:
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((1, 0), (0, 0, 255))
    found = pixels(encode(image, "PNG", transparency=(9, 9, 9)))
    assert found[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_grey_and_one_bit() -> None:
    grey = Image.fromarray(np.array([[0, 77, 255]], dtype=np.uint8))
    assert pixels(encode(grey, "PNG"))[0, :, 1].tolist() == [0, 77, 255]
    bits = Image.fromarray(np.array([[0, 255, 0]], dtype=np.uint8)).convert("1")
    assert pixels(encode(bits, "PNG"))[0, :, 2].tolist() == [0, 255, 0]


DEEP = np.array([[0, 257, 257 * 100, 257 * 100 + 128, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_divided_by_257(kind: str) -> None:
    found = pixels(encode(Image.fromarray(DEEP), kind))
    assert found[0, :, 0].tolist() == [0, 1, 100, 100, 255]
    assert (found[..., 0] == found[..., 1]).all()


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    image = Image.fromarray(np.array([[0, 250]], dtype=np.uint16))
    assert pixels(encode(image, "PNG"))[0, :, 0].tolist() == [0, 1]


def test_big_endian_sixteen_bit_tiff() -> None:
    image = Image.frombytes("I;16B", (5, 1), DEEP.astype(">u2").tobytes())
    assert pixels(encode(image, "TIFF"))[0, :, 0].tolist() == [0, 1, 100, 100, 255]


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    found = pixels(encode(Image.fromarray(DEEP), "PNG", transparency=257 * 100))
    assert found[0, :, 0].tolist() == [0, 1, 255, 100, 255]


def test_sixteen_bit_pgm() -> None:
    content = b"P5 3 1 65535\n" + np.array([0, 257 * 50, 65535], dtype=">u2").tobytes()
    assert pixels(content)[0, :, 0].tolist() == [0, 50, 255]


def test_thirty_two_bit_integers() -> None:
    values = np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32)
    assert pixels(encode(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 64, 128]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([-3.0, 0.25, np.nan], [0, 64, 0]),
        ([0.0, 0.25, np.inf], [0, 64, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_float_tiff(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert pixels(encode(image, "TIFF"))[0, :, 0].tolist() == expected


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    for kind, options in [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})]:
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (pixels(content) == (255, 0, 0)).all(), kind


@pytest.mark.parametrize("kind", ["BMP", "DIB", "PPM", "AVIF", "JPEG2000", "MPO"])
def test_other_formats(kind: str) -> None:
    options = {"save_all": True, "append_images": [noise()]} if kind == "MPO" else {}
    found = pixels(encode(asymmetric(), kind, **options)).astype(int)
    assert found.shape == (32, 48, 3)
    assert np.abs(found[4, 4] - (255, 0, 0)).max() < 20


@pytest.mark.parametrize(("kind", "name"), [("PNG", "a.jpg"), ("GIF", "a.png"), ("WEBP", "a.gif")])
def test_the_content_decides_and_not_the_ending(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(encode(Image.new("RGB", (5, 6), (255, 0, 0)), kind))
    image = decode(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (5, 6))


# Refused


def refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode_bytes(content)
    return caught.value.message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_what_is_cut_off_is_refused(kind: str, share: float) -> None:
    content = encode(noise(), kind)
    refused(content[: int(len(content) * share)])


def test_jpeg_without_its_last_bytes_is_refused() -> None:
    assert "truncated" in refused(encode(noise(), "JPEG")[:-20])


def test_trailing_bytes_do_no_harm() -> None:
    content = encode(noise(), "JPEG")
    assert np.array_equal(pixels(content + b"\0" * 2000), pixels(content))


def test_empty() -> None:
    assert refused(b"") == "the file is empty"


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        b"\0" * 5000,
        b"GIF",
    ],
    ids=["html", "svg", "pdf", "eps", "zeros", "gif-start"],
)
def test_what_is_no_image_is_refused(content: bytes) -> None:
    assert refused(content) == "not an image of a known type"


def test_formats_that_are_not_listed_are_refused() -> None:
    # EPS would run Ghostscript; the others stand for all that Pillow could open.
    for kind in ("EPS", "PCX", "TGA", "ICO"):
        assert refused(encode(noise(), kind)) == "not an image of a known type"


@pytest.mark.parametrize(
    ("width", "height", "bits", "millions"),
    [
        (20_000, 20_000, 1, 400),
        (11_000, 9_000, 1, 99),
        (9_500, 9_500, 8, 90),
        (2**30, 2**30, 8, 1152921504607),
    ],
)
def test_bombs_are_refused_before_they_are_unpacked(
    width: int, height: int, bits: int, millions: int
) -> None:
    started = time.monotonic()
    colour = 0 if bits == 1 else 2
    message = refused(png_header(width, height, bits, colour))
    assert time.monotonic() - started < 0.5
    assert message == f"too large: {millions} million pixels, the limit is 89 million"


def test_a_whole_one_bit_bomb_is_refused_quickly() -> None:
    content = encode(Image.new("1", (11_000, 9_000)), "PNG")
    started = time.monotonic()
    assert "99 million pixels" in refused(content)
    assert time.monotonic() - started < 0.5


def test_the_limit_is_the_largest_that_is_allowed() -> None:
    # The header passes; only the missing pixels are complained of.
    side = int(MAX_PIXELS**0.5)
    assert "too large" not in refused(png_header(side, side, 1, 0))
    assert "too large" in refused(png_header(side + 1, side + 1, 1, 0))


def test_png_text_bomb_is_refused() -> None:
    content = encode(noise(), "PNG")
    text = b"Comment\0\0" + zlib.compress(b"x" * 80_000_000)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    end = 8 + 25  # after the signature and the header
    assert "cannot be decoded" in refused(content[:end] + chunk + content[end:])


def test_random_damage_is_refused_or_decoded_but_never_crashes() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = noise(24, 20)
    contents = [encode(image, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    contents += [encode(image, kind) for kind in ("GIF", "BMP", "PPM", "JPEG2000")]
    random = np.random.default_rng(3)
    for content in contents:
        for _ in range(40):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            places = random.integers(0, min(len(damaged), 300), 4)
            damaged[places] = random.integers(0, 256, 4)
            with contextlib.suppress(DataError):
                assert decode_bytes(damaged.tobytes()).mode == "RGB"


# Paths


def test_the_path_stands_in_front(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        decode(file)
    assert caught.value.message == f"{file}: the file is empty"


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jpg: cannot be read: No such file"):
        decode(tmp_path / "missing.jpg")
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        decode(tmp_path)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(DataError, match=r"cannot be read: Too many levels"):
        decode(tmp_path / "loop.jpg")


def test_names_that_no_file_can_have() -> None:
    for name, reason in [("a\0b.jpg", "null byte"), ("x" * 300 + ".jpg", "name too long")]:
        with pytest.raises(DataError, match=f"(?i){reason}"):
            decode(Path(name))
        assert reason in str(inspect(Path(name)).problem).lower()


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encode(noise(), "PNG"))

    def refuse(self: Path) -> bytes:  # the superuser may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        decode(file)
    assert inspect(file).problem == "cannot be read: Permission denied"


def test_inspect(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encode(asymmetric(), "PNG", exif=exif))
    bad.write_bytes(b"abc")
    found = inspect(good)
    assert (found.size, found.problem) == ((32, 48), None)
    found = inspect(bad)
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (found.size, found.problem) == (None, "not an image of a known type")
    assert inspect(tmp_path / "missing").sha256 == ""


def test_no_warning_even_where_warnings_are_errors(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    whole = exif.tobytes()
    damaged = encode(noise(), "JPEG", exif=whole[:14] + b"\xff" * (len(whole) - 14))
    palette = asymmetric().quantize(4)
    contents = {
        "exif.jpg": damaged,
        "palette.png": encode(palette, "PNG", transparency=bytes([0, 9, 255])),
        "large.png": png_header(11_000, 9_000, 1, 0),
        "cut.tif": encode(noise(), "TIFF")[:4000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys; from pathlib import Path; from mnft.data.decode import inspect\n"
        "for name in sys.argv[1:]: print(inspect(Path(name)).problem)"
    )
    command = [sys.executable, "-W", "error", "-c", code, *map(str, tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(contents)


# Real files


def odd_files() -> list[tuple[str, str]]:
    """(name, what is expected) of each line of NOTES.tsv."""
    folder = os.environ.get("MNFT_ASSETS")
    notes = Path(folder) / "data" / "odd" / "NOTES.tsv" if folder else None
    if notes is None or not notes.is_file():
        return [("", "")]
    with notes.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["file"], row["expected"].split()[0].strip(",(")) for row in rows]


@pytest.mark.real
@pytest.mark.parametrize(("name", "expected"), odd_files())
def test_odd_file(assets: Path, name: str, expected: str) -> None:
    problem = inspect(assets / "data" / "odd" / name).problem
    if expected == "decodes":
        assert problem is None
        assert decode(assets / "data" / "odd" / name).mode == "RGB"
    elif expected == "either":
        assert problem is None or "98 million" in problem or "99 million" in problem
    else:
        assert expected in {"bad", "ignored"}
        assert problem


@pytest.mark.real
def test_all_odd_files_are_noted(assets: Path) -> None:
    names = {name for name, _ in odd_files()} | {"NOTES.tsv"}
    assert len(names) > 30
    assert {file.name for file in (assets / "data" / "odd").iterdir()} == names
