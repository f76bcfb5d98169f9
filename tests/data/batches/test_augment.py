"""Random choices as arrays: the distributions of torchvision, and each image's from its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig
from mnft.data.batches.augment import _Uniforms, choose_params, sample_params
from mnft.preprocessing import Preprocessing

COUNT = 4000
SQUARE = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875)
SEEDS = list(np.random.default_rng(0).integers(0, 2**62, COUNT))


def sizes_of(height: int, width: int, count: int = COUNT) -> np.ndarray:
    return np.tile(np.array([[height, width]], dtype=np.int64), (count, 1))


def torchvision_boxes(height: int, width: int, augment: AugmentConfig) -> np.ndarray:
    transform = v2.RandomResizedCrop(8, scale=tuple(augment.scale), ratio=tuple(augment.ratio))
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    names = ("top", "left", "height", "width")
    drawn = [transform.make_params([image]) for _ in range(COUNT)]
    return np.array([[params[name] for name in names] for params in drawn])


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(240, 320, [0.35, 1.0]), (320, 240, [0.08, 1.0]), (100, 500, [0.9, 1.0]), (7, 9, [0.5, 0.6])],
)
def test_crops_are_distributed_as_those_of_torchvision(height, width, scale):
    augment = AugmentConfig(scale=scale)
    ours = sample_params(SEEDS, sizes_of(height, width), augment).boxes.numpy()
    theirs = torchvision_boxes(height, width, augment)
    for column in range(4):
        p_value = stats.ks_2samp(ours[:, column], theirs[:, column], method="asymp").pvalue
        assert p_value > 1e-4
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_the_comparison_of_crops_can_fail():
    ours = sample_params(SEEDS, sizes_of(240, 320), AugmentConfig(scale=[0.3, 1.0])).boxes.numpy()
    theirs = torchvision_boxes(240, 320, AugmentConfig(scale=[0.35, 1.0]))
    assert stats.ks_2samp(ours[:, 2], theirs[:, 2], method="asymp").pvalue < 1e-4


def test_a_strip_gets_the_largest_box_in_the_middle():
    augment = AugmentConfig(scale=[1.0, 1.0])
    ours = sample_params(SEEDS[:50], sizes_of(50, 1000, 50), augment).boxes.numpy()
    theirs = torchvision_boxes(50, 1000, augment)
    assert (ours == theirs[0]).all()


def test_shares_of_flips_and_ranges_of_colours():
    augment = AugmentConfig(hflip=0.3, vflip=0.1, color_jitter=0.4, random_erasing=0.25)
    params = sample_params(SEEDS, sizes_of(100, 100), augment)
    for flags, share in ((params.hflip, 0.3), (params.vflip, 0.1), (params.erase[:, 2] > 0, 0.25)):
        assert stats.binomtest(int(flags.sum()), COUNT, share).pvalue > 1e-4
    for column in params.jitter.T:
        assert stats.kstest(column, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(params.hflip, params.vflip)[0, 1]) < 0.06


def test_nothing_is_drawn_where_nothing_is_asked_for():
    params = sample_params(
        SEEDS[:100], sizes_of(64, 64, 100), AugmentConfig(hflip=0.0, color_jitter=0.0)
    )
    assert not params.hflip.any()
    assert not params.vflip.any()
    assert not params.erase.any()
    assert (params.jitter == 1.0).all()


def test_erased_rectangles_are_distributed_as_those_of_torchvision():
    params = sample_params(SEEDS, sizes_of(224, 224), AugmentConfig(random_erasing=1.0))
    transform = v2.RandomErasing(p=1.0)
    torch.manual_seed(0)
    image = torch.empty(3, 224, 224)
    drawn = [transform.make_params([image]) for _ in range(COUNT)]
    for column, name in enumerate(("i", "j", "h", "w")):
        theirs = np.array([params[name] for params in drawn])
        assert (
            stats.ks_2samp((params.erase[:, column] * 224).round(), theirs, method="asymp").pvalue
            > 1e-4
        )


def test_the_choices_of_an_image_do_not_depend_on_its_batch():
    augment = AugmentConfig(vflip=0.5, color_jitter=0.4, random_erasing=0.5)
    sizes = np.random.default_rng(1).integers(20, 300, (64, 2))
    whole = sample_params(SEEDS[:64], sizes, augment)
    part = sample_params(SEEDS[40:50], sizes[40:50], augment)
    for ours, theirs in zip(whole[40:50].parts, part.parts, strict=True):
        assert torch.equal(ours, theirs)


def test_seeds_that_are_neighbours_give_unrelated_numbers():
    numbers = _Uniforms(np.arange(COUNT)).take(20)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-4
    correlations = np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())
    assert abs(correlations[0, 1]) < 0.02
    assert len(np.unique(numbers)) == numbers.size


def test_later_numbers_continue_the_stream():
    one = _Uniforms(np.array([5, 6]))
    two = _Uniforms(np.array([5, 6]))
    assert np.array_equal(np.hstack([one.take(3), one.take(4)]), two.take(7))


@pytest.mark.parametrize(
    ("size", "box"), [((100, 200), (6, 56, 88, 88)), ((70, 70), (4, 4, 61, 61))]
)
def test_the_centre_is_that_of_evaluation(size, box):
    params = choose_params("centre", [0], np.array([size]), SQUARE)
    assert (params.boxes[0] - torch.tensor(box)).abs().max() <= 1
    assert not params.hflip[0]
