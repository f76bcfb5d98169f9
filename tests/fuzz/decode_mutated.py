"""Mutated image files through the decoder, in a process with a limit of time and memory.

Usage: decode_mutated.py COUNT; the last line of its output is the counts as JSON. An image that
takes more than ten seconds ends the process by SIGALRM.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from mnft.data import decode
from mnft.data.decode import decode_bytes, inspect
from mnft.errors import DataError

SECONDS = 10
MEMORY = 1 << 30
EXTREMES = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 9000, 70_000)


def make_files() -> list[bytes]:
    """Small files of all formats and many of their kinds."""
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    rgb = Image.fromarray(rough).resize((41, 29), Image.Resampling.BICUBIC)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(rgb.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "value" * 20, zip=True)
    deep = Image.fromarray(rng.integers(0, 65536, (9, 11), dtype=np.uint16))
    real = Image.fromarray(rng.random((9, 11), dtype=np.float32))
    frames = [rgb.rotate(90 * n) for n in range(3)]
    animated = {"save_all": True, "append_images": frames}
    made = [
        (rgb, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb, "JPEG", {"optimize": True, "restart_marker_rows": 1, "icc_profile": b"icc" * 50}),
        (rgb.convert("CMYK"), "JPEG", {"icc_profile": b"icc" * 50}),
        (rgb.convert("L"), "JPEG", {"subsampling": 0}),
        (rgb, "PNG", {"pnginfo": text, "exif": exif}),
        (alpha, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": bytes(range(9))}),
        (rgb.convert("1"), "PNG", {}),
        (deep, "PNG", {"transparency": 5}),
        (rgb.convert("P"), "GIF", {"transparency": 3, **animated}),
        (rgb, "GIF", {"interlace": 1}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb, "PPM", {}),
        *((rgb, "TIFF", {"compression": c}) for c in (None, "tiff_lzw", "tiff_adobe_deflate")),
        *((rgb, "TIFF", {"compression": c}) for c in ("packbits", "jpeg")),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (alpha, "TIFF", {"exif": exif}),
        (deep, "TIFF", {}),
        (real, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("LAB"), "TIFF", {}),
        (rgb, "MPO", {"save_all": True, "append_images": frames[:1]}),
    ]
    if features.check("webp"):
        made += [(rgb, "WEBP", {}), (alpha, "WEBP", {"lossless": True, "exif": exif})]
        made += [(alpha, "WEBP", animated)]
    if features.check("avif"):
        made += [(rgb, "AVIF", {}), (alpha, "AVIF", {})]
    if decode.can_decode("HEIC"):
        made += [(rgb, "HEIF", {}), (alpha, "HEIF", {"exif": exif.tobytes()})]
        made += [(rgb, "HEIF", {"save_all": True, "append_images": frames[:1]})]
    if features.check("jpg_2000"):
        made += [(rgb, "JPEG2000", {}), (alpha, "JPEG2000", {})]
    written = []
    for image, kind, options in made:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        written.append(stream.getvalue())
    return written


def mutate(rng: random.Random, files: list[bytes]) -> bytes:
    """A file with some of its bytes, numbers or parts changed."""
    content = bytearray(rng.choice(files))
    # Most of what decides lies in front.
    reach = len(content) if rng.random() < 0.5 else min(len(content), 200)
    for _ in range(rng.choice((1, 1, 2, 4, 20))):
        place = rng.randrange(max(1, min(reach, len(content))))
        what = rng.randrange(8)
        if what <= 1:
            content[place : place + 1] = bytes([rng.randrange(256)])
        elif what == 2:
            code = rng.choice(("<H", ">H", "<I", ">I"))
            size = struct.calcsize(code)
            number = rng.choice(EXTREMES) & (256**size - 1)
            content[place : place + size] = struct.pack(code, number)
        elif what == 3:
            del content[place : place + rng.choice((1, 4, 50))]
        elif what == 4:
            content[place:place] = rng.randbytes(rng.choice((1, 4, 50)))
        elif what == 5:
            part = content[place : place + rng.choice((4, 40, 400))]
            content[place:place] = part * rng.choice((1, 1, 20))
        elif what == 6:
            del content[rng.randrange(len(content) + 1) :]
        else:
            other = rng.choice(files)
            content[place:] = other[rng.randrange(len(other)) :]
    return _with_right_sums(content) if rng.random() < 0.7 else bytes(content)


def _with_right_sums(content: bytearray) -> bytes:
    """The CRCs of a PNG's chunks made right, so that the change is not refused for them."""
    if content[:4] != b"\x89PNG":
        return bytes(content)
    place = 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + size
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[place + 4 : end]))
        place = end + 4
    return bytes(content)


def main(count: int) -> None:
    """Decode and inspect so many different files."""
    files = make_files()
    if assets := os.environ.get("MNFT_ASSETS"):
        odd = sorted(p for p in (Path(assets) / "data" / "odd").rglob("*") if p.is_file())
        files += [p.read_bytes() for p in odd if 0 < p.stat().st_size < 200_000]
    limit = _memory("VmSize") + 4 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    decode_bytes(files[0])
    before = _memory("VmHWM")
    seen: collections.Counter[str] = collections.Counter()
    different: set[bytes] = set()
    slowest = 0.0
    path = Path(tempfile.mkdtemp()) / "mutated"

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64))
    def run(seed: int) -> None:
        nonlocal slowest
        content = mutate(random.Random(seed), files)
        different.add(hashlib.sha256(content).digest())
        path.write_bytes(content)  # what the last one was, if the process ends here
        signal.alarm(SECONDS)
        started = time.perf_counter()
        try:
            image = decode_bytes(content)
            problem = None
        except DataError as error:
            problem = error.message
            assert problem
            seen["refused"] += 1
        else:
            seen["decoded"] += 1
            assert image.mode == "RGB"
            assert np.asarray(image).shape == (image.height, image.width, 3)
        found = inspect(path)
        assert (found.problem is None) == (problem is None), (found.problem, problem)
        signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - started)
        grown = _memory("VmHWM") - before
        assert grown < MEMORY, f"{grown / 1e6:.0f} MB"

    run()
    path.unlink()
    grown = _memory("VmHWM") - before
    answer = {"different": len(different), **seen, "slowest_s": round(slowest, 2)}
    print(json.dumps({**answer, "grown_mb": round(grown / 1e6), "files": len(files)}))


def _memory(name: str) -> int:
    # ru_maxrss would begin with what the process that started this one had.
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]))
