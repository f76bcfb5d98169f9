"""What is wrong or unusual with single images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from mnft.data.check.findings import CheckInput, Finding

# Sides of more than this ratio lose their ends, see data.geometry.
_MAX_ASPECT = 8
_LARGE_PIXELS = 50_000_000
_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "GIF": {".gif"},
    "WEBP": {".webp"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pnm"},
    "AVIF": {".avif"},
    "HEIF": {".heic", ".heif", ".hif"},
    "JPEG2000": {".jp2"},
}


def check_images(data: CheckInput) -> Iterator[Finding]:
    """Files that do not decode, and images of unusual type, size or colour."""
    is_problem = data.config.on_bad_image == "fail"
    for path, file in data.files.items():
        if (problem := file.inspection.problem) is not None:
            yield Finding("unreadable", is_problem, problem, (path,), leave_out=(path,))
    wrong: Mapping[tuple[str, str], list[str]] = defaultdict(list)
    for image in data.readable:
        stats = data.files[image.path].stats
        extension = PurePosixPath(image.path).suffix.lower()
        if stats and extension not in _EXTENSIONS.get(stats.format, {extension}):
            wrong[stats.format, extension].append(image.path)
    for (content, extension), paths in sorted(wrong.items()):
        what = f"{content} content under the extension {extension}; mnft reads it, others may not"
        yield Finding("wrong_ending", False, what, tuple(paths))
    yield from _check_sizes(data)
    yield from _check_colours(data)


def _check_sizes(data: CheckInput) -> Iterator[Finding]:
    small, long, large = [], [], []
    side = data.needs.input_size
    for image in data.readable:
        size = data.inspection(image).size
        assert size is not None
        if 2 * min(size) < side:
            small.append(image.path)
        if max(size) > _MAX_ASPECT * min(size):
            long.append(image.path)
        if size[0] * size[1] > _LARGE_PIXELS:
            large.append(image.path)
    if small:
        what = f"shorter side under half of the model's input of {side} pixels: much enlarged"
        yield Finding("small_image", False, what, tuple(small))
    if long:
        what = f"one side over {_MAX_ASPECT} times the other: the ends are not seen in training"
        yield Finding("extreme_shape", False, what, tuple(long))
    if large:
        what = f"over {_LARGE_PIXELS / 1e6:.0f} million pixels: slow to decode, much memory"
        yield Finding("large_image", False, what, tuple(large))


def _check_colours(data: CheckInput) -> Iterator[Finding]:
    if data.needs.is_grey:
        return
    kinds: Mapping[bool, list[str]] = defaultdict(list)
    for image in data.readable:
        if stats := data.files[image.path].stats:
            kinds[stats.is_grey].append(image.path)
    grey, coloured = kinds[True], kinds[False]
    if grey and len(grey) <= len(coloured):
        what = f"{len(grey):,} grey among {len(coloured):,} in colour"
        yield Finding("grey_image", False, what, tuple(grey))
    elif grey and coloured:
        what = f"{len(coloured):,} in colour among {len(grey):,} grey"
        yield Finding("colour_image", False, what, tuple(coloured))
