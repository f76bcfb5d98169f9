"""Where the model's input lies on an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mnft.data.transforms import build_eval_transform
from mnft.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)
GEOMETRIES = [("center", 0.875), ("squash", 1.0), ("center", 1.0)]


@pytest.mark.parametrize("size", [(300, 200), (120, 340), (256, 256)])
@pytest.mark.parametrize(
    ("mode", "crop_pct"), [("center", 0.875), ("squash", 1.0), ("center", 1.0)]
)
def test_the_input_lies_where_the_pipeline_takes_it_from(
    size: tuple[int, int], mode: str, crop_pct: float
) -> None:
    """An image whose red is its x, and whose green is its y, tells where pixels come from."""
    width, height = size
    x = np.linspace(0, 255, width)[None].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    image = Image.fromarray(np.stack([x, y, y], 2).round().astype(np.uint8))
    preprocessing = Preprocessing((3, 96, 96), HALF, HALF, "bilinear", crop_pct, mode)
    pixels = build_eval_transform(preprocessing)(image).float() / 255
    left, top, share_x, share_y = preprocessing.locate_input(*size)
    found = (pixels[0, 48, 0], pixels[0, 48, -1], pixels[1, 0, 48], pixels[1, -1, 48])
    expected = (left, left + share_x, top, top + share_y)
    assert [float(value) for value in found] == pytest.approx(expected, abs=0.015)


def test_a_border_lies_outside_of_the_image() -> None:
    preprocessing = Preprocessing((3, 96, 96), HALF, HALF, "bilinear", 1.0, "border")
    assert preprocessing.locate_input(200, 100) == (0.0, -0.5, 1.0, 2.0)
