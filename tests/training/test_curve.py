"""The learning curve of the head: how parts are drawn, fitted and scored."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mnft.data.manifest import Sample
from mnft.errors import DataError
from mnft.tasks import load_label_rules, open_task
from mnft.tasks.outputs import Features
from mnft.training.head.curve import HeadImages, choose_sizes, compute_curve, draw_part

CLASSES = ("cat", "cow", "dog")
RULES = load_label_rules("classify")
CPU = torch.device("cpu")


def samples_of(number: int, *, split: str = "train", group: int = 0) -> list[Sample]:
    return [
        Sample(
            f"{split}{i}.png",
            CLASSES[i % 3],
            split,
            f"{split}{i}",
            f"{split}-{i // group}" if group else None,
        )
        for i in range(number)
    ]


def images_of(number: int, seed: int, split: str, task: str = "classify") -> HeadImages:
    """Three clouds in eight dimensions, near to one another."""
    targets = torch.arange(number) % 3
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))
    if task == "multilabel":
        targets = torch.nn.functional.one_hot(targets, 3).float()
    values = centres[torch.arange(number) % 3] + 1.5 * noise
    return HeadImages(Features(values, targets), samples_of(number, split=split))


def test_sizes_are_halved_down_to_five_a_class() -> None:
    assert choose_sizes(1600, 5, RULES) == [25, 50, 100, 200, 400, 800, 1600]
    assert choose_sizes(100_000, 5, RULES) == [1563, 3125, 6250, 12500, 25000, 50000, 100000]
    assert choose_sizes(60, 3, RULES) == [15, 30, 60]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="59 training images of 3 classes, expected 20 for each"):
        choose_sizes(59, 3, RULES)


def test_a_part_keeps_the_proportions_of_the_classes() -> None:
    samples = [s for i, s in enumerate(samples_of(240)) if s.label != "dog" or i % 2 == 0]
    drawn = draw_part(samples, RULES, 50, seed=1)
    assert Counter(samples[i].label for i in drawn) == {"cat": 20, "cow": 20, "dog": 10}
    assert drawn == draw_part(samples, RULES, 50, seed=1)
    assert drawn != draw_part(samples, RULES, 50, seed=2)
    assert draw_part(samples, RULES, len(samples), seed=1) == list(range(len(samples)))


def test_groups_stay_together() -> None:
    samples = samples_of(240, group=6)
    drawn = draw_part(samples, RULES, 60, seed=3)
    assert len(drawn) == pytest.approx(60, abs=6)
    assert set(Counter(samples[i].group for i in drawn).values()) == {6}


@pytest.mark.parametrize(("task", "figure"), [("classify", "accuracy"), ("multilabel", "map")])
def test_the_points_are_figures_of_heads(task: str, figure: str) -> None:
    opened, rules = open_task(CLASSES, task), load_label_rules(task)
    train, val = images_of(120, 1, "train", task), images_of(60, 2, "val", task)
    calls: list[tuple[int, int]] = []
    points = compute_curve(
        opened,
        rules,
        train,
        val,
        balanced=False,
        seed=0,
        device=CPU,
        on_progress=lambda done, of: calls.append((done, of)),
    )
    assert [round(point.images) for point in points] == pytest.approx([15, 30, 60, 120], abs=2)
    assert [len(point.figures) for point in points] == [5, 5, 5, 1]
    assert calls[-1] == (16, 16)
    whole = opened.fit_head(train.features, val.features, balanced=False, seed=0, device=CPU)
    assert points[-1].figures[0] == pytest.approx(whole.val[figure])
    assert points[-1].without_part.shape == (1, 20)
    assert points[0].figures.mean() < points[-1].figures[0]
    if task == "classify":  # the mean of the parts, each of three images, is the whole
        assert points[-1].without_part.mean() == pytest.approx(points[-1].figures[0])


def test_val_images_of_one_group_are_left_out_together() -> None:
    train, val = images_of(60, 1, "train"), images_of(60, 2, "val")
    grouped = HeadImages(val.features, samples_of(60, split="val", group=12))
    points = compute_curve(
        open_task(CLASSES, "classify"),
        RULES,
        train,
        grouped,
        balanced=False,
        seed=0,
        device=CPU,
        on_progress=lambda _done, _of: None,
    )
    assert points[0].without_part.shape == (5, 5)


def test_a_class_of_one_image_is_refused() -> None:
    train = images_of(120, 1, "train")
    lonely = [Sample("x.png", "emu", "train", "x"), *train.samples[1:]]
    with pytest.raises(DataError, match="class emu has one training image"):
        compute_curve(
            open_task(CLASSES, "classify"),
            RULES,
            HeadImages(train.features, lonely),
            images_of(60, 2, "val"),
            balanced=False,
            seed=0,
            device=CPU,
            on_progress=lambda _done, _of: None,
        )
