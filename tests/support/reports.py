"""A page as large as pages get, without a training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mnft.report.album import Album, Heat, Neighbour, Thumbnail
from mnft.report.page.render import Page
from mnft.tasks.panels import (
    Cell,
    Chart,
    Chooser,
    Gallery,
    Matrix,
    Panel,
    Picture,
    Point,
    Series,
    Table,
    Text,
    Verdict,
)

NAMES = ("rose", "<script>alert(1)</script>", "وردة جميلة جدا", "向日葵", "a very long name " * 6)


def encode(seed: int, side: int) -> Thumbnail:
    """A picture of soft areas, as photographs are."""
    rng = np.random.default_rng(seed)
    areas = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(areas).resize((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=70)
    uri = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Thumbnail(uri, side, side)


def build_page(names: Sequence[str] = NAMES, pictures: int = 12, rows: int = 5) -> Page:
    """A page with each kind of block: a matrix, a gallery, a sortable table, a chooser."""
    k = len(names)
    shots = [
        Picture(
            f"test/{i}.jpg",
            f"{i % k}-{(i + 1) % k}",
            names[(i + 1) % k],
            0.99 - i / 500,
            names[i % k],
            "1.0%",
            0,
        )
        for i in range(pictures)
    ]
    groups = {
        f"{i}-{(i + 1) % k}": (f"{names[i]} taken for {names[(i + 1) % k]}", 3) for i in range(k)
    }
    cells = [
        [
            Cell(
                str(3 if (a + 1) % k == b else 90 if a == b else ""),
                3,
                bar=0.9 if a == b else 0.03,
                link=f"{a}-{b}" if (a + 1) % k == b else None,
                label=f"{names[a]} taken for {names[b]}: 3 images",
            )
            for b in range(k)
        ]
        for a in range(k)
    ]
    table = [
        [
            Cell(names[i % k] + (f" {i}" if i >= k else "")),
            Cell(str(i * 7 % 11), i * 7 % 11),
            Cell("90.0% (80 to 95)", 0.9, bar=0.9, low=0.8, high=0.95),
        ]
        for i in range(rows)
    ]
    curve = [
        Series(n, [Point(e, (e + 1) ** -s) for e in range(9)]) for n, s in (("a", 0.5), ("b", 1))
    ]
    reliability = [
        Series(
            "x",
            [Point(0.1 * i, 0.1 * i, 0.05 * i, 0.1 * i + 0.05) for i in range(1, 9)],
            line=False,
        )
    ]
    panels = [
        Panel(
            "mistakes", "Mistakes", "What is wrong.", [Gallery("m", shots, groups, pictures + 3)]
        ),
        Panel(
            "confusion",
            "Confusion",
            "Rows and columns.",
            [Matrix("Matrix", "true", "predicted", names, cells)],
        ),
        Panel(
            "classes",
            "Classes",
            "Each class.",
            [Table("Classes", ["class", "images", "recall"], table, sortable=True)],
        ),
        Panel(
            "confidence",
            "Confidence",
            "How sure.",
            [
                Chart(
                    "Reliability", "confidence", "right", reliability, percent=True, diagonal=True
                ),
                Chooser(
                    "Threshold", 400, [(t / 100, 400 - 3 * t, 390 - 3 * t) for t in range(100)]
                ),
            ],
        ),
        Panel(
            "curves", "Curves", "", [Chart("Loss", "epoch", "loss", curve, mark=(3, "best epoch"))]
        ),
        Panel(
            "exports",
            "Exports",
            "",
            [Text("None. Run:", "missing", "mnft export runs/x"), Text("odd", "warning")],
        ),
    ]
    near = [Neighbour(f"train/{i}.jpg", names[i % k], 0.9) for i in range(2)]
    png = io.BytesIO()
    Image.new("RGB", (7, 7), "orange").save(png, "PNG")
    heat = Heat(f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}", 6, 6, 88, 88)
    album = Album(
        {p.path: encode(i, 160) for i, p in enumerate(shots)},
        {n.path: encode(i, 80) for i, n in enumerate(near)},
        {(p.path, 0): heat for p in shots},
        {p.path: near for p in shots},
    )
    verdict = Verdict(
        "90.5%", "accuracy", "87%", "93%", "Of 100 about 90.", {"images": "400"}, ["few"], 0.06
    )
    return Page("flowers", "a model", verdict, panels, album)
