"""Figures on corrupted images: what they are made of, and what follows from them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import COLOURS, draw
from torch import nn

from mnft.config.schema import Config
from mnft.data.corruptions import CORRUPTIONS, corrupt
from mnft.data.decode import decode
from mnft.data.manifest import Sample
from mnft.data.transforms import build_eval_transform, normalize
from mnft.device.machine import Machine
from mnft.errors import DataError
from mnft.evaluation.images import ImageSet
from mnft.evaluation.robustness.batches import (
    VARIANTS,
    CorruptedBatches,
    Variant,
    decode_for_corruption,
)
from mnft.evaluation.robustness.measure import Robustness, measure_robustness
from mnft.evaluation.robustness.panels import find_examples
from mnft.model.bundle import Bundle
from mnft.preprocessing import Preprocessing
from mnft.reporter import SILENT
from mnft.tasks.outputs import Outputs, Rate

SPEC = Preprocessing((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", 0.875)
MACHINE = Machine(torch.device("cpu"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = tmp_path_factory.mktemp("robust")
    samples = []
    for number in range(6):
        path = root / f"{number}.png"
        draw(number, (60, 44)).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        samples.append(Sample(path.name, list(COLOURS)[number % 3], "test", sha256))
    return ImageSet(root, "test", samples, {}, root)


def rows_of(images: ImageSet, batch_size: int) -> dict[int, torch.Tensor]:
    batches = CorruptedBatches(images, list(range(6)), SPEC, MACHINE, batch_size)
    rows = {}
    for batch in batches:
        for position, image, target in zip(
            batch.positions, batch.images, batch.targets, strict=True
        ):
            assert position not in rows
            assert int(target) == position % 6
            rows[position] = image
    return rows


def test_each_variant_of_each_image_comes_once_and_before_the_preprocessing(
    images: ImageSet,
) -> None:
    rows = rows_of(images, 4)
    assert sorted(rows) == list(range(len(VARIANTS) * 6))
    see = build_eval_transform(SPEC)
    for number in (0, 17, 41):
        variant, sample = VARIANTS[number], images.samples[5]
        seed = int(sample.sha256[:16], 16)
        pixels = np.asarray(decode(images.root / sample.path))
        shown = corrupt(pixels, variant.corruption, variant.amount, seed)
        expected = normalize(see(Image.fromarray(shown))[None], SPEC)[0]
        assert torch.equal(rows[number * 6 + 5], expected)


def test_order_and_batches_change_no_pixel(images: ImageSet, monkeypatch: Any) -> None:
    first = rows_of(images, 4)
    turned = ImageSet(images.root, "test", images.samples[::-1], {}, images.root)
    monkeypatch.setattr("mnft.evaluation.robustness.batches.count_cores", lambda: 5)
    second = rows_of(turned, 1)
    for position, image in first.items():
        number, place = divmod(position, 6)
        assert torch.equal(image, second[number * 6 + 5 - place])


def test_the_shorter_side_is_that_of_the_model_at_most(tmp_path: Path) -> None:
    draw(0, (900, 600)).save(tmp_path / "a.jpg")
    sha256 = hashlib.sha256((tmp_path / "a.jpg").read_bytes()).hexdigest()
    sample = Sample("a.jpg", "red", "test", sha256)
    images = ImageSet(tmp_path, "test", [sample], {}, tmp_path)
    assert decode_for_corruption(images, sample, SPEC).shape == (256, 384, 3)
    large = Preprocessing((3, 384, 384), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.96)
    assert decode_for_corruption(images, sample, large).shape == (400, 600, 3)
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.jpg: its content has changed"):
        decode_for_corruption(images, sample)


class Brightness(nn.Module):
    """Answers by the mean brightness: darker than 90 of 255, brighter than 165, or between."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        level = pixels.mean(dim=(1, 2, 3))[:, None]
        return -((level - torch.tensor([[60.0, 127.0, 195.0]]) / 255) ** 2) * 50


def test_figures_are_those_of_the_corrupted_images(tmp_path: Path) -> None:
    samples = []
    for number, (label, value) in enumerate([("a", 60), ("b", 127), ("c", 195)] * 2):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40, 40), (value + number, value, value)).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        samples.append(Sample(path.name, label, "test", sha256))
    images = ImageSet(tmp_path, "test", samples, {}, tmp_path)
    spec = Preprocessing((3, 16, 16), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0)
    bundle = Bundle(tmp_path, Brightness(), "brightness", ("a", "b", "c"), spec, {})
    targets = np.array([0, 1, 2] * 2)
    logits = np.eye(3, dtype=np.float32)[targets] * 9
    found = measure_robustness(
        bundle,
        images,
        Outputs(np.arange(6), logits, targets, {}),
        Config.model_validate({"data": {"root": "."}}),
        device="cpu",
        batch_size=4,
        flip=False,
        reporter=SILENT,
    )
    by_name = {
        (CORRUPTIONS[v.corruption].name, v.level): rate.value
        for v, rate in zip(VARIANTS, found.rates, strict=True)
    }
    assert found.clean.value == 1.0
    # 127 and 195 times 0.6 are 76 and 117; 127 times 1.3 is 165, and 60 times 1.6 is 96.
    assert [by_name["dark", level] for level in range(3)] == pytest.approx([1 / 3] * 3)
    assert [by_name["bright", level] for level in range(3)] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert by_name["turned", 2] == by_name["out of focus", 2] == by_name["JPEG", 2] == 1.0
    assert found.ratings.shape == (42, 6)
    assert found.mean == pytest.approx(np.mean([rate.value for rate in found.rates]))
    assert found.mean == pytest.approx(found.ratings.mean())
    assert [CORRUPTIONS[number].name for number in found.worst[:2]] == ["dark", "bright"]


def make(clean: list[float], corrupted: list[float], trained: float = 0.0) -> Robustness:
    """The same ratings under each variant."""
    value = float(np.mean(corrupted))
    return Robustness(
        figure="accuracy",
        title="accuracy",
        clean=Rate(float(np.mean(clean)), 0.0, 1.0),
        rates=(Rate(value, 0.0, 1.0),) * len(VARIANTS),
        clean_ratings=np.array(clean),
        ratings=np.tile(np.array(corrupted), (len(VARIANTS), 1)),
        outputs=np.zeros((len(VARIANTS), len(clean), 3)),
        trained=trained,
    )


def test_the_interval_of_the_drop_is_that_of_paired_images() -> None:
    clean, corrupted = [1.0] * 90 + [0.0] * 10, [1.0] * 70 + [0.0] * 30
    drop = make(clean, corrupted).drop
    assert drop.value == pytest.approx(0.2)
    error = np.std(np.subtract(clean, corrupted), ddof=1) / 10
    assert (drop.low, drop.high) == pytest.approx((0.2 - 1.96 * error, 0.2 + 1.96 * error))


def test_advice_is_given_where_the_figure_clearly_falls() -> None:
    clean = [1.0] * 100
    assert "augment.device=0.5" in (make(clean, [1.0] * 80 + [0.0] * 20).advice or "")
    assert make(clean, [1.0] * 98 + [0.0] * 2).advice is None  # falls by two points
    assert make([1.0] * 5, [1.0] * 4 + [0.0]).advice is None  # one image of five
    assert make([1.0], [0.0]).advice is None
    trained = make(clean, [1.0] * 80 + [0.0] * 20, trained=0.5).advice
    assert trained is not None
    assert "augment.device is 0.5 already" in trained


def test_examples_are_right_when_clean_and_the_most_harmed_come_first() -> None:
    found = make([1.0, 0.0, 1.0, 1.0], [1.0] * 4)
    ratings = found.ratings.copy()
    ratings[:, 1] = 0.0  # wrong when clean, too
    ratings[VARIANTS.index(Variant(3, 2)), 2] = 0.0
    for variant in (Variant(5, 1), Variant(5, 2), Variant(2, 0), Variant(8, 1)):
        ratings[VARIANTS.index(variant), 3] = 0.0
    means = np.ones(len(VARIANTS))
    means[VARIANTS.index(Variant(8, 0))] = 0.1  # the worst corruption overall
    found = Robustness(
        **{
            **{name: getattr(found, name) for name in found.__slots__},
            "ratings": ratings,
            "rates": tuple(Rate(float(mean), 0.0, 1.0) for mean in means),
        }
    )
    examples = find_examples(found)
    assert [position for position, _ in examples] == [3, 2]
    shown = [VARIANTS[number] for number in examples[0][1]]
    assert shown == [Variant(2, 0), Variant(8, 1), Variant(5, 1)]
