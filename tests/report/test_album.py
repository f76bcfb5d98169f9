"""Pictures: within their budget, whatever is read; heat maps where the model looked."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import draw

from mnft.preprocessing import Preprocessing
from mnft.report.album import build_heat, build_thumbnails, paint_heat

HALF = (0.5, 0.5, 0.5)
INPUT = Preprocessing((3, 96, 96), HALF, HALF, "bilinear", 0.875)


def open_uri(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_thumbnails_keep_their_aspect_and_unreadable_files_are_none(tmp_path: Path) -> None:
    draw(0, (800, 400)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    files = {name: tmp_path / name for name in ("a.jpg", "b.jpg", "gone.jpg")}
    large, small = build_thumbnails(files, {"a.jpg": files["a.jpg"]})
    assert large["a.jpg"] is not None
    assert (large["a.jpg"].width, large["a.jpg"].height) == (160, 80)
    assert open_uri(large["a.jpg"].uri).size == (160, 80)
    assert large["b.jpg"] is large["gone.jpg"] is None
    assert small["a.jpg"] is not None
    assert small["a.jpg"].width == 80


def test_many_detailed_pictures_get_smaller_and_stay_within_the_budget(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")  # nothing takes more bytes
    files = {str(i): tmp_path / "noise.png" for i in range(200)}
    small = {str(i): tmp_path / "noise.png" for i in range(400)}
    large, half = build_thumbnails(files, small)
    total = sum(len(entry.uri) for entry in [*large.values(), *half.values()] if entry)
    assert len(large) == 200
    assert len(half) == 400
    assert total < 2_800_000


def test_a_heat_map_is_tiny_and_lies_where_the_model_looked() -> None:
    values = np.zeros((7, 7), dtype=np.float32)
    values[0, 6] = 1
    heat = build_heat(values, (160, 120), INPUT)
    assert heat is not None
    assert len(heat.uri) < 400
    image = open_uri(heat.uri).convert("L")
    assert image.size == (7, 7)
    assert np.asarray(image).argmax() == 6
    # 96 of the 109 pixels that the shorter side is resized to, as a square.
    assert heat.height == pytest.approx(100 * 96 / 109, abs=0.01)
    assert heat.width == pytest.approx(heat.height * 120 / 160, abs=0.01)
    assert build_heat(np.zeros((7, 7)), (160, 120), INPUT) is None


def test_a_painted_heat_map_stands_beside_its_image() -> None:
    image = Image.new("RGB", (100, 80), (0, 200, 0))
    values = np.zeros((4, 4), dtype=np.float32)
    values[:2, :2] = 1
    both = np.asarray(paint_heat(image, values, INPUT)).astype(int)
    assert both.shape == (80, 208, 3)
    assert (both[:, :100] == (0, 200, 0)).all()
    hot, cold = both[25, 108 + 35], both[60, 108 + 70]
    assert hot.sum() > cold.sum() + 100
    assert len({*both[2, 108 + 2].tolist()}) == 1  # grey, and outside of what the model saw
