"""Each corruption by its definition; the same pixels whatever runs beside it; more is worse."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from support.images import draw

from mnft.data.corruptions import CORRUPTIONS, LEVELS, corrupt, vary_as_device

NAMES = [corruption.name for corruption in CORRUPTIONS]


def picture(seed: int = 0, size: tuple[int, int] = (341, 256)) -> np.ndarray:
    """Soft areas with fine texture on them, so that blur and JPEG have something to take."""
    texture = np.random.default_rng(seed).normal(0, 12, (size[1], size[0], 1))
    return np.clip(np.asarray(draw(seed, size)) * 0.7 + 40 + texture, 0, 255).astype(np.uint8)


def flower(seed: int) -> np.ndarray:
    """A coloured thing off the middle of a darker ground, as in most photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:256, :341]
    (down, right), width = rng.uniform(100, 150, 2), rng.uniform(40, 80)
    thing = np.exp(-(((y - down) ** 2 + (x - right - 40) ** 2) / width**2))[:, :, None]
    colour = rng.uniform(60, 200, 3)
    return np.clip(40 + thing * colour + rng.normal(0, 6, (256, 341, 1)), 0, 255).astype(np.uint8)


def point(size: int = 256) -> np.ndarray:
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[size // 2, size // 2] = 255
    return pixels


def plain(value: int = 100, size: int = 256) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def apply(name: str, pixels: np.ndarray, amount: float, seed: int = 5) -> np.ndarray:
    out = corrupt(pixels, NAMES.index(name), amount, seed)
    assert out.shape == pixels.shape
    assert out.dtype == np.uint8
    return out


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("number", range(len(CORRUPTIONS)), ids=NAMES)
def test_levels_get_worse_and_none_is_nothing(number):
    corruption = CORRUPTIONS[number]
    images = [flower(seed) for seed in range(4)]
    away = [
        np.mean([distance(corrupt(p, number, amount, seed), p) for seed, p in enumerate(images)])
        for amount in (corruption.none, *corruption.levels)
    ]
    assert len(corruption.levels) == len(LEVELS) == 3
    assert away[0] <= 0.7 * away[1]  # JPEG of quality 100 and 224 lines are not quite nothing
    assert away == sorted(away)
    assert away[1] < away[3]


@pytest.mark.parametrize("number", range(len(CORRUPTIONS)), ids=NAMES)
def test_the_same_image_gives_the_same_pixels_beside_other_work(number):
    images = [picture(seed, (120, 90)) for seed in range(6)]
    amount = CORRUPTIONS[number].levels[1]
    alone = [corrupt(pixels, number, amount, seed) for seed, pixels in enumerate(images)]
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(corrupt, images[s], number, amount, s) for s in reversed(range(6))]
        together = [job.result() for job in reversed(jobs)]
    for ours, theirs in zip(alone, together, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["noise", "motion", "covered"])
def test_images_have_noise_directions_and_places_of_their_own(name):
    amount = CORRUPTIONS[NAMES.index(name)].levels[1]
    shown = [apply(name, picture(), amount, seed) for seed in range(3)]
    assert not np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[1], shown[2])


@pytest.mark.parametrize("number", range(len(CORRUPTIONS)), ids=NAMES)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (300, 2)], ids=str)
def test_tiny_images_and_strips_keep_their_size(number, size):
    pixels = picture(1, size)
    for amount in CORRUPTIONS[number].levels:
        assert corrupt(pixels, number, amount, 3).shape == pixels.shape


def test_brightness_is_multiplied():
    for name, factor in (("dark", 0.4), ("bright", 1.6)):
        assert (apply(name, plain(100), factor) == round(100 * factor)).all()
    assert (apply("bright", plain(200), 2.2) == 255).all()


def test_warm_light_gains_red_and_cold_light_blue():
    assert apply("warm light", plain(100), 0.2)[0, 0].tolist() == [120, 100, 80]
    assert apply("cold light", plain(100), -0.2)[0, 0].tolist() == [80, 100, 120]


def test_contrast_is_the_spread_about_the_mean():
    pixels = picture()
    out = apply("low contrast", pixels, 0.4)
    assert out.mean() == pytest.approx(pixels.mean(), abs=0.5)
    assert out.std() == pytest.approx(0.4 * pixels.std(), abs=0.5)


def test_grey_has_three_equal_channels():
    out = apply("grey", picture(), 0.0)
    assert (out == out[:, :, :1]).all()
    half = apply("grey", picture(), 0.5)
    spread = np.ptp(picture().astype(int), axis=2).mean()
    assert np.ptp(half.astype(int), axis=2).mean() == pytest.approx(spread / 2, rel=0.05)


def test_noise_has_its_deviation_and_is_white():
    noise = apply("noise", plain(127), 25).astype(float) - 127
    assert noise.mean() == pytest.approx(0, abs=0.3)
    assert noise.std() == pytest.approx(25, rel=0.02)
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.02


def test_noise_of_larger_images_is_the_same_once_they_are_reduced():
    large = apply("noise", plain(127, 512), 20)
    reduced = np.asarray(Image.fromarray(large).resize((256, 256), Image.Resampling.BOX))
    assert reduced.astype(float).std() == pytest.approx(20, rel=0.03)


def test_a_point_out_of_focus_is_a_disk():
    for radius in (1.5, 3, 5):
        spot = apply("out of focus", point(), radius)[:, :, 0].astype(float)
        y, x = np.nonzero(spot)
        far = np.hypot(y - 128, x - 128)
        assert far.max() <= radius + 0.71
        assert far.max() > radius - 1
        assert (y.mean(), x.mean()) == pytest.approx((128, 128))


def test_motion_spreads_a_point_along_a_line():
    for seed in range(5):
        spot = apply("motion", point(), 15, seed)[:, :, 0].astype(float)
        y, x = np.nonzero(spot)
        length = np.hypot(np.ptp(y), np.ptp(x))
        assert 13 <= length <= 17
        places = np.stack([y, x]) - 128.0
        across = np.linalg.svd(places)[0][:, 1] @ places
        assert np.abs(across).max() <= 1  # all lie within a pixel of one line
    angles = [np.ptp(np.nonzero(apply("motion", point(64), 25, s)[:, :, 0])[1]) for s in range(20)]
    assert len(set(angles)) > 3


def test_blur_agrees_with_a_convolution():
    pixels = picture(2, (80, 64))
    ours = apply("out of focus", pixels, 12).astype(float)  # 3 pixels of 64 lines
    side = np.linspace(-3, 3, 25)
    y, x = np.meshgrid(side, side)
    weights = np.zeros((7, 7))
    inside = y**2 + x**2 <= 9
    np.add.at(weights, (np.rint(y[inside]).astype(int) + 3, np.rint(x[inside]).astype(int) + 3), 1)
    for channel in range(3):
        theirs = ndimage.convolve(
            pixels[:, :, channel].astype(float), weights / weights.sum(), mode="nearest"
        )
        assert np.abs(ours[:, :, channel] - theirs).max() < 0.51


def test_blur_means_the_same_for_large_and_small_images():
    pixels = picture(3, (512, 512))
    after = Image.fromarray(apply("out of focus", pixels, 5)).resize((256, 256))
    before = apply("out of focus", np.asarray(Image.fromarray(pixels).resize((256, 256))), 5)
    assert distance(np.asarray(after), before) < 1


def test_low_resolution_keeps_so_many_lines():
    out = apply("low resolution", picture(), 56)
    small = Image.fromarray(out).resize((75, 56), Image.Resampling.BOX)
    wanted = Image.fromarray(picture()).resize((75, 56), Image.Resampling.BOX)
    assert distance(np.asarray(small), np.asarray(wanted)) < 4
    spectrum = np.abs(np.fft.rfft(out[:, :, 0].astype(float), axis=0)).mean(axis=1)
    original = np.abs(np.fft.rfft(picture()[:, :, 0].astype(float), axis=0)).mean(axis=1)
    assert spectrum[80:].sum() < 0.25 * original[80:].sum()
    few = picture(0, (60, 50))
    assert np.array_equal(apply("low resolution", few, 56), few)


def test_far_away_is_smaller_in_the_middle():
    out = apply("far away", picture(), 0.6)
    assert np.array_equal(out[0], np.tile(out[0, 0], (341, 1)))
    expected = Image.fromarray(picture()).resize((205, 154), Image.Resampling.BICUBIC)
    assert np.array_equal(out[51:205, 68:273], np.asarray(expected))
    assert np.abs(out[0, 0] - picture().mean(axis=(0, 1))).max() <= 1


def test_turned_by_its_angle_to_both_sides():
    pixels = np.zeros((201, 201, 3), np.uint8)
    pixels[99:102, 20:181] = 255  # a level line
    found = set()
    for seed in range(8):
        y, x = np.nonzero(apply("turned", pixels, 20, seed)[:, :, 0] > 128)
        slope = stats.linregress(x, y).slope
        found.add(round(np.degrees(np.arctan(slope))))
    assert found == {-20, 20}


def test_covered_is_its_fraction_of_the_area():
    pixels = np.where(picture() == 127, 126, picture())
    for fraction in (0.1, 0.25, 0.4):
        hidden = (apply("covered", pixels, fraction) == 127).all(axis=2)
        assert hidden.mean() == pytest.approx(fraction, abs=0.005)
        y, x = np.nonzero(hidden)
        assert hidden.sum() == (np.ptp(y) + 1) * (np.ptp(x) + 1)  # one rectangle


def test_jpeg_files_get_smaller_with_the_quality():
    def size(quality: float) -> int:
        out, file = apply("JPEG", picture(), quality), io.BytesIO()
        Image.fromarray(out).save(file, "PNG")
        return len(file.getvalue())

    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "JPEG", quality=15, subsampling="4:2:0")
    assert np.array_equal(apply("JPEG", picture(), 15), np.array(Image.open(file)))
    sizes = [size(quality) for quality in (100, 30, 15, 7)]
    assert sizes == sorted(sizes, reverse=True)


# --- augment.device


def test_a_fraction_of_images_is_varied():
    pixels = picture(0, (48, 32))
    kept = sum(vary_as_device(pixels, 0.3, seed) is pixels for seed in range(600))
    assert stats.binomtest(kept, 600, 0.7).pvalue > 1e-4
    assert all(vary_as_device(pixels, 0.0, seed) is pixels for seed in range(50))


def test_variations_follow_from_the_seed_and_are_of_all_kinds():
    pixels = picture(0, (48, 32))
    shown = [vary_as_device(pixels, 1.0, seed) for seed in range(60)]
    again = [vary_as_device(pixels, 1.0, seed) for seed in reversed(range(60))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(shown, again, strict=True))
    assert len({image.tobytes() for image in shown}) > 50
    assert all(image.shape == pixels.shape for image in shown)


def test_grey_images_stay_of_one_channel():
    pixels = picture(0, (48, 32))[:, :, :1]
    shown = [vary_as_device(pixels, 1.0, seed) for seed in range(30)]
    assert {image.shape for image in shown} == {(32, 48, 1)}
    assert sum(distance(image, pixels) > 1 for image in shown) > 15
