"""What is wrong or unusual with single images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from mnft.data.check.findings import Finding, Material
from mnft.data.folder import IMAGE_SUFFIXES, FolderScan

# Sides of more than this ratio lose their ends, see data.geometry.
_MAX_ASPECT = 8
_LARGE_PIXELS = 50_000_000
_ENDINGS = {
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


def find_image_faults(material: Material) -> list[Finding]:
    """Files that do not decode, and images of unusual kind, size or colour."""
    return [
        *_unreadable(material),
        *_wrong_endings(material),
        *_sizes(material),
        *_grey(material),
    ]


def find_loose_images(scan: FolderScan) -> list[Finding]:
    """Images that lie in no class folder."""
    loose = tuple(p for p in scan.ignored if Path(p).suffix.lower() in IMAGE_SUFFIXES)
    return [Finding("no_class", False, "in no class folder, not used", loose)] if loose else []


def _unreadable(material: Material) -> Iterator[Finding]:
    is_problem = material.config.on_bad_image == "fail"
    for path, examined in material.examined.items():
        if (problem := examined.inspection.problem) is not None:
            yield Finding("unreadable", is_problem, problem, (path,), leave_out=(path,))


def _wrong_endings(material: Material) -> Iterator[Finding]:
    found: Mapping[tuple[str, str], list[str]] = defaultdict(list)
    for image in material.readable:
        looks = material.examined[image.path].looks
        ending = PurePosixPath(image.path).suffix.lower()
        if looks and ending not in _ENDINGS.get(looks.format, {ending}):
            found[looks.format, ending].append(image.path)
    for (content, ending), paths in sorted(found.items()):
        what = f"{content} content under the ending {ending}; mnft reads it, others may not"
        yield Finding("wrong_ending", False, what, tuple(paths))


def _sizes(material: Material) -> Iterator[Finding]:
    small, long, large = [], [], []
    side = material.expected.input_size
    for image in material.readable:
        size = material.inspection(image).size
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


def _grey(material: Material) -> Iterator[Finding]:
    if material.expected.is_grey:
        return
    kinds: Mapping[bool, list[str]] = defaultdict(list)
    for image in material.readable:
        if looks := material.examined[image.path].looks:
            kinds[looks.is_grey].append(image.path)
    grey, coloured = kinds[True], kinds[False]
    if grey and len(grey) <= len(coloured):
        what = f"{len(grey):,} grey among {len(coloured):,} in colour"
        yield Finding("grey_image", False, what, tuple(grey))
    elif grey and coloured:
        what = f"{len(coloured):,} in colour among {len(grey):,} grey"
        yield Finding("colour_image", False, what, tuple(coloured))
