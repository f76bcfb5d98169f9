"""Image file to RGB pixels: the one decoder of train, eval, predict and check."""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError, features

from mnft.errors import DataError, first_line
from mnft.text import count

# Pillow's own warning limit. An RGBA image of that size takes 360 MB; decoders need up to
# twice that for a moment.
MAX_PIXELS = 89_478_485

# Formats by content; HEIF, of the extra `heic`, is added where a file may be one. EPS and other
# formats that run programs or read further files stay out.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# What phones write, and what decodes it where Pillow cannot.
CURES = {
    "HEIC": "pip install 'mnft[heic]'",
    "AVIF": "pip install --upgrade pillow",  # 11.3 or newer
}
_PHONE_SUFFIXES = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".avif": "AVIF"}
# Brands of the ISO base media file format (ISO/IEC 23008-12); mif1 and msf1 may be either.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}

# What Pillow's decoders were seen to raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {5, 6, 7, 8}

# Damaged EXIF and large images are judged here; Pillow's own warnings would only repeat it.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Decoded(NamedTuple):
    """An upright RGB image, the size it has when it is decoded whole, and its type by content."""

    image: Image.Image
    size: tuple[int, int]
    format: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a file after reading it once.

    Attributes:
        sha256: hash of the file's bytes, hexadecimal; empty when it could not be read.
        size: width and height in pixels as a viewer shows it; None when it cannot be decoded, or
            was not decoded because its content is known.
        problem: why it cannot be decoded; None when it can.
    """

    sha256: str
    size: tuple[int, int] | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that is named as an image but cannot be decoded, and why."""

    path: Path
    reason: str


def decode(path: Path) -> Image.Image:
    """Decode an image file as a viewer would show it.

    The type is read from the content, not from the name. EXIF orientation is applied;
    transparency is shown on white; CMYK, palette, grey, 1-bit and 16-bit images become 8-bit RGB;
    of an animation the first frame is taken.

    Args:
        path: an image file.

    Returns:
        An image of mode "RGB".

    Raises:
        DataError: the file cannot be read or decoded, is cut off, or has over MAX_PIXELS
            pixels.
    """
    try:
        return decode_bytes(read_content(path))
    except DataError as error:
        raise DataError(f"{path}: {error.message}") from error


def decode_bytes(content: bytes, *, min_side: int | None = None) -> Image.Image:
    """Decode the content of an image file; see `decode`.

    Args:
        content: the bytes of the file.
        min_side: the number of pixels that no side may fall below when a JPEG is decoded at 1/2,
            1/4 or 1/8 of its size (scaled DCT, several times faster); None decodes at full size.
    """
    return decode_whole(content, min_side).image


def decode_whole(content: bytes, min_side: int | None) -> Decoded:
    """Decode as `decode_bytes` does, and give the full size and the type as well."""
    if not content:
        raise DataError("the file is empty")
    formats = _known_formats()
    if content[4:8] == b"ftyp" and can_decode("HEIC"):
        formats += ("HEIF",)
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(width * height)
            if min_side is not None and image.format in {"JPEG", "MPO"}:
                # For a HEIC file this would give a thumbnail, which may show something else.
                scale = min_side / min(width, height)
                image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
            image.load()
            if image.format == "HEIF":  # whose transformations are applied now
                width, height = image.size
            try:
                orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
            except _DECODER_ERRORS:
                orientation = 1  # damaged EXIF says nothing; viewers show the image as it is
            size = (height, width) if orientation in _SIDEWAYS else (width, height)
            upright = _to_rgb(image)
            if (method := _TRANSPOSE.get(orientation)) is not None:
                upright = upright.transpose(method)
            return Decoded(upright, size, str(image.format))
    except UnidentifiedImageError as error:
        raise DataError(_explain_unknown(content)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))
        raise _too_large(int(found[0]) if found else MAX_PIXELS) from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot be decoded: {reason}") from error


def inspect(path: Path, known: Container[str] = ()) -> Inspection:
    """Hash a file and try to decode it.

    Args:
        path: the file.
        known: SHA-256 of contents that were decoded before, and need not be again.
    """
    try:
        content = read_content(path)
    except DataError as error:
        return Inspection("", None, error.message)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 in known:
        return Inspection(sha256, None, None)
    try:
        # What is damaged shows at an eighth of the size too: all of the data is read.
        return Inspection(sha256, decode_whole(content, min_side=1).size, None)
    except DataError as error:
        return Inspection(sha256, None, error.message)


def read_content(path: Path, *, sha256: str | None = None) -> bytes:
    """The bytes of a file.

    Args:
        path: the file.
        sha256: the hash that the bytes must have; None reads any file.

    Raises:
        DataError: it cannot be read, or its content has changed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"cannot be read: {error}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError("its content has changed")
    return content


def _too_large(pixels: int) -> DataError:
    return DataError(
        f"too large: {pixels / 1e6:.0f} million pixels, the limit is {MAX_PIXELS / 1e6:.0f} million"
    )


def list_missing_support(paths: Iterable[str]) -> list[str]:
    """What must be installed to decode files of these names, each in words with its number."""
    kinds = Counter(_PHONE_SUFFIXES.get(PurePath(path).suffix.lower()) for path in paths)
    return [
        f"{count(kinds[kind], f'{kind} file')} cannot be read yet: {cure}"
        for kind, cure in CURES.items()
        if kinds[kind] and not can_decode(kind)
    ]


def can_decode(kind: str) -> bool:
    """Whether "HEIC" or "AVIF" files can be decoded here."""
    return _load_heif() if kind == "HEIC" else kind in _known_formats()


def list_cures(problems: Iterable[str]) -> list[str]:
    """Those of `CURES` that problems of files name."""
    problems = list(problems)
    return [cure for cure in CURES.values() if any(cure in problem for problem in problems)]


def _explain_unknown(content: bytes) -> str:
    """Why no decoder takes a file."""
    if content[4:8] == b"ftyp":
        end = min(int.from_bytes(content[:4], "big"), 256)
        brands = {content[8:12], *(content[at : at + 4] for at in range(16, end, 4))}
        for kind, known in (("AVIF", _AVIF_BRANDS), ("HEIC", _HEIC_BRANDS)):
            if brands & known:
                if can_decode(kind):
                    return f"damaged {kind}"
                return f"{kind}, which this installation cannot read: {CURES[kind]}"
    return "not an image of a known type"


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    lacking = set() if features.check("avif") else {"AVIF"}
    return tuple(name for name in _FORMATS if name in Image.OPEN and name not in lacking)


@cache
def _load_heif() -> bool:
    """Register the decoder of HEIC with Pillow; False where it is not installed.

    Only called for a file that may be HEIC: the libraries take 30 MB, and where memory is short
    they fail to load although no such file is there.

    Raises:
        DataError: it is installed but does not load.
    """
    try:
        import pillow_heif

        # Images are decoded side by side already; thumbnails and depth maps are of no use.
        pillow_heif.register_heif_opener(
            decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
        )
    except ModuleNotFoundError:
        return False
    except ImportError as error:  # also where too little memory is left to map a library
        raise DataError(f"HEIC, but pillow-heif cannot be loaded: {first_line(error)}") from error
    return True


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = _to_eight_bits(values)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "CMYK" and (profile := image.info.get("icc_profile")):
        # A damaged profile raises: then the colours are converted without it.
        with suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            managed = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return managed if managed is not None else image.convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale the smallest usual range that holds the values to 0..255.

    Integers are taken as 16-bit, or as 32-bit where they exceed that; floats as 0..1, 0..255 or
    16-bit. Pillow's own `convert` clips at 255, which turns most such images white.
    """
    tops = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0, 2.0**32 - 1)
    values = np.nan_to_num(values.astype(np.float32), posinf=np.inf, neginf=-np.inf)
    highest = values[np.isfinite(values)].max(initial=0.0)
    top = next((top for top in tops if highest <= top), tops[-1])
    return np.asarray(np.clip(np.round(values * (255.0 / top)), 0, 255), dtype=np.uint8)
