"""Copy an image folder in a size that can be carried to a machine without internet.

Shorter side at most --side pixels, JPEG in --quality; folders and names stay. flower_photos, train
and val, come to 40 MB. Accuracies on such a copy are no figures for benchmarks without saying so
("256 pixels, quality 80").

    python benchmarks/gpu/shrink.py IMAGES TARGET
    python benchmarks/gpu/shrink.py IMAGES TARGET --per-folder 24 --leave-out test
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy, and say how much it is."""
    parser = argparse.ArgumentParser(
        prog=Path(__file__).name,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="must not exist, or be empty")
    parser.add_argument("--side", type=int, default=256, help="pixels of the shorter side, at most")
    parser.add_argument("--quality", type=int, default=80, help="of the JPEG files")
    parser.add_argument("--per-folder", type=int, help="images of each folder, at most")
    parser.add_argument("--leave-out", nargs="+", default=[], help="names of folders, as test")
    args = parser.parse_args(arguments)
    if args.target.exists() and any(args.target.iterdir()):
        parser.error(f"{args.target} is not empty")
    options = {"side": args.side, "quality": args.quality, "per_folder": args.per_folder}
    count, size = shrink(args.source, args.target, **options, leave_out=args.leave_out)
    print(f"{'ok' if count else 'FAIL'}: {count:,} images, {size / 1e6:.1f} MB in {args.target}")
    return int(not count)


def shrink(
    source: Path,
    target: Path,
    *,
    side: int = 256,
    quality: int = 80,
    per_folder: int | None = None,
    leave_out: Collection[str] = (),
) -> tuple[int, int]:
    """Copy the images of a folder, and of those in it, smaller.

    Args:
        source: the folder.
        target: where the copy goes.
        side: pixels of the shorter side, at most.
        quality: of the JPEG files.
        per_folder: images of each folder, at most; the first by name.
        leave_out: names of folders that are not copied.

    Returns:
        The number of images and their bytes.
    """
    count = size = 0
    for folder in [source, *sorted(path for path in source.rglob("*") if path.is_dir())]:
        place = folder.relative_to(source)
        if set(place.parts) & set(leave_out):
            continue
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        for path in images[:per_folder]:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            share = min(1.0, side / min(image.size))
            wanted = (round(image.width * share), round(image.height * share))
            to = target / place / f"{path.stem}.jpg"
            to.parent.mkdir(parents=True, exist_ok=True)
            image.resize(wanted, Image.Resampling.LANCZOS).save(to, "JPEG", quality=quality)
            count += 1
            size += to.stat().st_size
    return count, size


if __name__ == "__main__":
    sys.exit(main())
