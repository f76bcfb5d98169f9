"""From a label text to targets, mixing of targets that are not known, weights of images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mnft.config.schema import AugmentConfig
from mnft.data.manifest import Sample
from mnft.errors import DataError
from mnft.tasks import open_task
from mnft.tasks.multilabel.labels import parse, read_label
from mnft.tasks.multilabel.targets import count_exact, encode, weigh

LABELS = ("beard", "glasses", "hat")


def samples(*labels: str) -> list[Sample]:
    return [Sample(f"{i}.png", label, "train", str(i)) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("text", "present", "unknown"),
    [
        ("beard;?hat", ("beard",), ("hat",)),
        ("", (), ()),
        (" beard ; hat;", ("beard", "hat"), ()),
        ("hat;hat;?beard;?beard", ("hat",), ("beard",)),
        ("beard;?beard", ("beard",), ()),
        ("?", (), ()),
    ],
)
def test_a_label_text(text: str, present: tuple[str, ...], unknown: tuple[str, ...]) -> None:
    assert read_label(text) == (present, unknown)
    assert parse(text) == present


def test_targets_are_one_zero_or_nan() -> None:
    found = torch.tensor(encode(samples("beard;?hat", "", "hat;glasses", "?other"), LABELS))
    nan = math.nan
    expected = torch.tensor([[1, 0, nan], [0, 0, 0], [0, 1, 1], [0, 0, 0]])
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found.dtype == torch.float32


def test_a_label_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(DataError, match="does not know: cap, shoe"):
        encode(samples("beard;shoe", "cap"), LABELS)


def test_an_image_weighs_as_much_as_its_rarest_label() -> None:
    found = weigh(samples("beard", "beard;hat", "beard;glasses", "glasses", ""), LABELS)
    # beard 3 of 5, glasses 2, hat 1; without any as little as with the most frequent.
    assert found == pytest.approx([5 / 9, 5 / 3, 5 / 6, 5 / 6, 5 / 9])
    assert weigh(samples("", ""), LABELS) == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_blends_targets_and_keeps_what_is_unknown(kind: str) -> None:
    mix = open_task(LABELS, "multilabel").build_mix(AugmentConfig.model_validate({kind: 1.0}))
    assert mix is not None
    torch.manual_seed(0)
    targets = torch.tensor([[1, 0, math.nan], [0, 0, 1], [1, 1, 0]])
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 8, 8).clone()
    mixed, found = mix(images, targets)
    # Each image is mixed with the one before; the fraction follows from the pixels.
    fraction = float(mixed[1].mean())  # image 1 with image 0, which is all zeros
    assert 0 < fraction < 1
    nan = math.nan
    expected = [[1, 1 - fraction, nan], [1 - fraction, 0, nan], [fraction, fraction, 1 - fraction]]
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


def test_exact_counts_images_whose_known_labels_are_all_right() -> None:
    nan = math.nan
    logits = torch.tensor([[2.0, -1, 9], [2, 1, -1], [-1, -1, -1], [1, -1, 1]])
    targets = torch.tensor([[1, 0, nan], [1, 0, 0], [0, 0, 0], [0.7, 0.2, 0.4]])
    found = count_exact(torch.tensor(12.0), logits, targets)
    assert found.tolist() == [4.0, 2.0, 4.0]  # the loss as the mean over labels
    parts = [
        count_exact(torch.tensor(6.0), logits[s], targets[s]) for s in np.split(np.arange(4), 2)
    ]
    assert torch.stack(parts).sum(0).tolist() == found.tolist()
