"""The hash of what a picture shows: what changes it, and what not, and the search for near ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import draw

from mnft.data.check import perceptual
from mnft.data.check.perceptual import (
    Thumbnail,
    build_thumbnail,
    compute_hash,
    list_alike,
    list_near_pairs,
)
from mnft.data.decode import decode
from mnft.data.folder import list_images


def save(image: Image.Image, **options: object) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, **options)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def thumbnail(image: Image.Image) -> Thumbnail:
    built = build_thumbnail(image)
    assert built is not None
    return built


def crop(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    left, top = round(width * share), round(height * share)
    return image.crop((left, top, width - left, height - top))


def distance(one: Thumbnail, other: Thumbnail) -> int:
    return (one.hash ^ other.hash).bit_count()


def likeness(one: Image.Image, other: Image.Image) -> str:
    found = list_alike([thumbnail(one), thumbnail(other)])
    return ("same" if found.is_tight[0] else "alike") if len(found.places) else "other"


def test_the_hash_is_that_of_the_paper() -> None:
    """Against the sum of cosines written out."""
    grey = np.asarray(draw(0).convert("L").resize((32, 32)))
    place, frequency = np.meshgrid(np.arange(32), np.arange(1, 9))
    cosines = np.cos(np.pi * (2 * place + 1) * frequency / 64)
    values = (cosines @ grey.astype(np.float64) @ cosines.T).ravel()
    bits = "".join("1" if value > np.median(values) else "0" for value in values)
    assert compute_hash(grey) == int(bits, 2)
    assert bits.count("1") == 32


@pytest.mark.parametrize("seed", range(5))
def test_brightness_and_contrast_do_not_change_the_hash(seed: int) -> None:
    grey = np.asarray(draw(seed).convert("L").resize((32, 32)))
    assert (compute_hash(grey) ^ compute_hash(grey // 2 + 40)).bit_count() <= 4
    turned = (compute_hash(grey) ^ compute_hash(255 - grey)).bit_count()
    assert turned >= 60  # a negative is another picture


@pytest.mark.parametrize("seed", range(5))
def test_the_same_image_saved_again(seed: int) -> None:
    image = draw(seed)
    assert likeness(image, save(image, format="JPEG", quality=40)) == "same"
    assert likeness(image, image.resize((128, 96), Image.Resampling.BICUBIC)) == "same"
    assert likeness(image, save(image, format="WEBP", quality=60)) == "same"


@pytest.mark.parametrize("seed", range(5))
def test_a_changed_picture_looks_alike_but_is_not_the_same(seed: int) -> None:
    image = draw(seed)
    assert likeness(image, image.convert("L").convert("RGB")) == "alike"
    assert likeness(image, image.point(lambda level: min(255, round(level * 1.3)))) == "alike"
    assert likeness(image, crop(image, 0.008)) in {"alike", "same"}


def test_other_pictures_and_larger_changes_are_other() -> None:
    images = [draw(seed) for seed in range(60)]
    assert len(list_alike([thumbnail(image) for image in images]).places) == 0
    assert likeness(images[0], crop(images[0], 0.15)) == "other"
    assert likeness(images[0], images[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == "other"


def test_near_hashes_of_other_pictures_are_not_alike() -> None:
    """The hash knows signs alone; the pictures themselves decide."""
    one, other = thumbnail(draw(1)), thumbnail(draw(2))
    assert len(list_alike([one, Thumbnail(one.hash, other.grey, other.colours)]).places) == 0


def test_plain_and_tiny_images_are_not_compared() -> None:
    noise = np.random.default_rng(0).integers(100, 110, (64, 64, 3), dtype=np.uint8)
    assert build_thumbnail(Image.fromarray(noise)) is None
    assert build_thumbnail(Image.new("RGB", (300, 300), "white")) is None
    assert build_thumbnail(draw(0).resize((31, 100))) is None
    assert build_thumbnail(draw(0).resize((32, 100))) is not None


def flip(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def test_the_search_finds_what_a_comparison_of_all_does() -> None:
    rng = np.random.default_rng(0)
    values = [int(value) for value in rng.integers(0, 2**64, 300, dtype=np.uint64)]
    for value in values[:100]:
        bits = rng.permutation(64)[: rng.integers(0, 14)]
        values.append(flip(value, bits.tolist()))
    hashes = np.array(values, dtype=np.uint64)
    pairs, is_complete = list_near_pairs(hashes)
    table = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = [(i, j) for i, j in np.argwhere(table <= 10).tolist() if i < j]
    assert [tuple(pair) for pair in pairs.tolist()] == expected
    assert 50 < len(expected) < 100
    assert is_complete


@pytest.mark.parametrize("number", [0, 1])
def test_the_search_of_next_to_nothing(number: int) -> None:
    pairs, is_complete = list_near_pairs(np.arange(number, dtype=np.uint64))
    assert (pairs.shape, is_complete) == ((0, 2), True)


def test_the_search_stops_where_all_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "MAX_PAIRS", 1000)
    _, is_complete = list_near_pairs(np.zeros(100, dtype=np.uint64))
    assert not is_complete
    _, is_complete = list_near_pairs(np.zeros(10, dtype=np.uint64))
    assert is_complete


@pytest.mark.real
@pytest.mark.slow
def test_photographs(assets: Path) -> None:
    """Every 12th photograph: all copies saved again or resized are found, no two are confused."""
    images = [decode(path) for path in list_images(assets / "data/flowers")[::12]]
    own = [thumbnail(image) for image in images]
    assert len(list_alike(own).places) == 0
    saved = [likeness(image, save(image, format="JPEG", quality=50)) for image in images]
    assert set(saved) <= {"same", "alike"}
    assert saved.count("same") >= 0.99 * len(images)
    assert {likeness(image, image.reduce(2)) for image in images} <= {"same", "alike"}
    assert {likeness(image, crop(image, 0.01)) for image in images} <= {"same", "alike"}
