"""HEIC and AVIF, the photographs of phones: decoded like any image, or named with what it takes."""

from __future__ import annotations

import io
import struct
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from support.images import MakeFolder
from typer.testing import Result

from mnft.data import decode as decoder
from mnft.data.decode import MAX_PIXELS, decode_bytes, list_missing_support
from mnft.errors import DataError

Cli = Callable[..., Result]


@pytest.fixture
def heif() -> Any:
    """pillow_heif, as the decoder registers it."""
    module = pytest.importorskip("pillow_heif", reason="mnft[heic] is not installed")
    assert decoder.can_decode("HEIC")
    return module


@pytest.fixture
def without_support(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that decodes neither HEIC nor AVIF."""
    known = tuple(name for name in decoder._known_formats() if name != "AVIF")
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_known_formats", lambda: known)
        patch.setattr(decoder, "_load_heif", lambda: False)
        yield


def encode(image: Image.Image, kind: str = "HEIF", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height), (200, 200, 200))
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    image.paste((0, 0, 255), (0, height // 2, width // 2, height))
    return image


def refusal(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode_bytes(content)
    return caught.value.message


def test_pixels_are_those_of_the_image(heif: Any) -> None:
    image = quarters()
    found = decode_bytes(encode(image, quality=95))
    assert found.mode == "RGB"
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(image))
    assert np.median(difference) <= 2  # the colours bleed at the edges
    assert np.percentile(difference, 90) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(heif: Any, orientation: int) -> None:
    """As a viewer shows it, turned once and not twice."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(quarters(), quality=95, exif=exif.tobytes())
    assert (b"irot" in content or b"imir" in content) == (orientation != 1)
    upright = quarters()
    if orientation > 1:
        upright = upright.transpose(decoder._TRANSPOSE[orientation])
    found = decode_bytes(content)
    assert found.size == upright.size
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(upright))
    assert np.median(difference) <= 2
    assert np.percentile(difference, 90) < 12
    assert decoder.decode_whole(content, 8).size == upright.size


def test_transparency_is_shown_on_white(heif: Any) -> None:
    image = quarters().convert("RGBA")
    image.putalpha(0)
    assert np.asarray(decode_bytes(encode(image, quality=95))).min() > 250


def test_a_thumbnail_never_stands_for_the_image(heif: Any) -> None:
    """Training asks for a small image, which Pillow's `draft` would take from the thumbnail."""
    file = heif.from_pillow(quarters(512, 512))
    stream = io.BytesIO()
    file.save(stream, quality=80, thumbnails=[128])
    assert decode_bytes(stream.getvalue(), min_side=64).size == (512, 512)


def test_a_bomb_is_refused_before_it_is_decoded(heif: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(Image.new("RGB", (640, 480)))
    monkeypatch.setattr(decoder, "MAX_PIXELS", 640 * 480 - 1)
    monkeypatch.setattr("pillow_heif.HeifImageFile.load", lambda _self: pytest.fail("decoded"))
    assert refusal(content).startswith("too large")


def test_a_bomb_that_lies_about_its_size(heif: Any) -> None:
    """The declared size is small; the stream has more pixels, which libheif then refuses."""
    content = encode(Image.new("RGB", (4096, 4096)))
    true, told = struct.pack(">II", 4096, 4096), struct.pack(">II", 64, 64)
    assert content.count(true) == 1
    assert "Security limit exceeded" in refusal(content.replace(true, told))
    assert "too large" in refusal(content.replace(true, struct.pack(">II", 30_000, 30_000)))
    assert MAX_PIXELS < 30_000**2


def test_damaged_files(heif: Any) -> None:
    content = encode(quarters())
    assert refusal(content[:40]) == "damaged HEIC"
    assert refusal(content[: len(content) - 30])
    assert refusal(content[:100] + bytes(100) + content[200:])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif() -> None:
    found = decode_bytes(encode(quarters(), "AVIF", quality=95))
    assert np.median(np.abs(np.asarray(found).astype(int) - np.asarray(quarters()))) <= 2


def save_model(folder: Path) -> None:
    import timm

    from mnft.model.bundle import ModelCard, save_bundle
    from mnft.preprocessing import Preprocessing

    half = (0.5, 0.5, 0.5)
    card = ModelCard(
        "lenet5", {}, Preprocessing((3, 32, 32), half, half, "bilinear", 1.0), ("a", "b"), {}
    )
    save_bundle(folder, timm.create_model("lenet5", num_classes=2).state_dict(), card, {})


def as_heic(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.with_suffix(".heic").write_bytes(encode(Image.open(path)))
        path.unlink()


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_processes_decode_it_too(
    heif: Any, make_folder: MakeFolder, run_cli: Cli, tmp_path: Path, workers: int
) -> None:
    as_heic(make_folder(per_class=1))
    save_model(tmp_path / "model")
    result = run_cli(
        *("predict", "--ckpt", "model", "images", "--workers", workers, "--batch-size", 1)
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(".heic,") == 3
    assert "cannot" not in result.stdout


def test_a_folder_of_heic_trains(heif: Any, make_folder: MakeFolder, run_cli: Cli) -> None:
    as_heic(make_folder())
    assert run_cli("init", "images").exit_code == 0
    result = run_cli("data", "check", "images")
    assert "wrong_ending" not in result.stderr
    assert result.exit_code == 0, result.stderr
    sets = ("model.name=lenet5", "model.pretrained=false", "train.epochs=1", "data.img_size=32")
    flags = [part for value in (*sets, "run.tensorboard=false") for part in ("--set", value)]
    result = run_cli("train", "images.yaml", *flags)
    assert result.exit_code == 0, result.stderr
    assert "images decoded in" in result.stderr


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60)
GENERIC_AVIF = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(60)


@pytest.mark.usefixtures("without_support")
def test_what_is_missing_is_named_in_init_check_train_and_predict(
    make_folder: MakeFolder, run_cli: Cli, tmp_path: Path
) -> None:
    root = make_folder()
    for name in ("a.HEIC", "b.heif", "c.jpg"):
        (root / "red" / name).write_bytes(HEIC + name.encode())
    (root / "red" / "d.avif").write_bytes(GENERIC_AVIF)
    heic = "HEIC, which this installation cannot read: pip install 'mnft[heic]'"
    avif = "AVIF, which this installation cannot read: pip install --upgrade pillow"
    result = run_cli("init", "images")
    assert result.exit_code == 0
    assert "2 HEIC files cannot be read yet: pip install 'mnft[heic]'" in result.stderr
    assert "1 AVIF file cannot be read yet: pip install --upgrade pillow" in result.stderr
    cures = "hint: pip install 'mnft[heic]'; else pip install --upgrade pillow; else fix"
    for command in (("data", "check", "images"), ("train", "images.yaml")):
        result = run_cli(*command, *(["--set", "model.pretrained=false"] * (len(command) == 2)))
        assert result.exit_code in {1, 3}
        for name in ("a.HEIC", "b.heif", "c.jpg"):
            assert f"red/{name}: {heic}" in result.stderr
        assert f"red/d.avif: {avif}" in result.stderr
        assert cures in result.stderr
    save_model(tmp_path / "model")
    result = run_cli("predict", "--ckpt", "model", root / "red" / "a.HEIC", root / "red/000.png")
    assert f'"{heic}"' in result.stdout


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation whose pillow_heif is there, with a library that cannot be mapped."""
    broken = types.ModuleType("pillow_heif")

    def register_heif_opener(**_options: object) -> None:
        raise ImportError("libheif.so.1: failed to map segment from shared object")

    broken.register_heif_opener = register_heif_opener  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", broken)
    decoder._load_heif.cache_clear()
    yield
    decoder._load_heif.cache_clear()


@pytest.mark.usefixtures("unloadable")
def test_a_library_that_does_not_load_matters_to_heic_only() -> None:
    """As under a limit of memory: every other image is read as before."""
    assert decode_bytes(encode(quarters(), "PNG")).size == (96, 64)
    assert list_missing_support(["a.png"]) == []
    assert refusal(HEIC) == (
        "HEIC, but pillow-heif cannot be loaded: "
        "libheif.so.1: failed to map segment from shared object"
    )


def test_nothing_is_missing_for_other_files(heif: Any) -> None:
    assert list_missing_support(["a.jpg", "b.heic", "c"]) == []
