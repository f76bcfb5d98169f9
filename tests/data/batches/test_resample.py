"""Crops, flips and colours of whole batches: on the CPU, and as a device computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from mnft.config.schema import AugmentConfig
from mnft.data.batches import resample
from mnft.data.batches.augment import AugmentParams, sample_params
from mnft.data.batches.resample import DeviceImages, adjust, resample_on_cpu, resample_on_device
from mnft.data.store.store import StoredImages

CPU = torch.device("cpu")
JITTER, ERASE = AugmentConfig(color_jitter=0.4), AugmentConfig(random_erasing=1.0)
MODES = ["bilinear", "bicubic", "nearest"]


def smooth_image(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image if channels == 3 else image.convert("L"))
    return np.ascontiguousarray(pixels.reshape(height, width, channels))


@pytest.fixture(params=[1, 3])
def stored(request, tmp_path) -> StoredImages:
    """Ten images of different sizes in one file."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 90, (10, 2))
    images = [smooth_image(i, h, w, request.param) for i, (h, w) in enumerate(sizes.tolist())]
    starts = np.cumsum([0, *(image.size for image in images)])[:-1]
    path = tmp_path / "pixels.bin"
    path.write_bytes(b"".join(image.tobytes() for image in images))
    return StoredImages(path, starts, sizes, request.param)


def draws_for(stored: StoredImages, **augment) -> AugmentParams:
    seeds = list(range(100, 100 + len(stored)))
    return sample_params(seeds, stored.sizes, AugmentConfig(hflip=0.5, vflip=0.3, **augment))


def on_device(
    images: DeviceImages, positions: list[int], params: AugmentParams, size, interpolation, **how
):
    height, width = params.boxes[:, 2:].amax(0).tolist()
    return resample_on_device(
        images,
        torch.tensor(positions),
        params,
        size,
        interpolation,
        longest=(height, width),
        **how,
    )


def pillow(
    pixels: np.ndarray, params: AugmentParams, number: int, size, interpolation: str
) -> np.ndarray:
    top, left, height, width = params.boxes[number].tolist()
    image = Image.fromarray(pixels.squeeze())
    crop = image.crop((left, top, left + width, top + height))
    out = np.asarray(crop.resize(size[::-1], Image.Resampling[interpolation.upper()]))
    out = out.reshape(*size, -1)
    out = out[:, ::-1] if params.hflip[number] else out
    return out[::-1] if params.vflip[number] else out


def assert_close(ours: np.ndarray, expected: np.ndarray, interpolation: str) -> None:
    """Equal but for rounding: torch and Pillow weigh with integers of different precision."""
    difference = np.abs(ours.astype(int) - expected.astype(int))
    if interpolation == "nearest":  # at a tie either neighbour is right
        assert (difference > 0).mean() < 0.25
    else:
        assert difference.max() <= 3
        assert difference.mean() < 0.2


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_on_the_cpu_as_pillow_does(stored, interpolation, size):
    params = draws_for(stored)
    assert params.hflip.any()
    assert params.vflip.any()
    images = [stored[i] for i in range(len(stored))]
    out = resample_on_cpu(images, params, size, interpolation)
    assert out.dtype == torch.uint8
    for number in range(len(stored)):
        expected = pillow(images[number], params, number, size, interpolation)
        ours = out[number].permute(1, 2, 0).numpy()
        assert_close(ours, expected, interpolation)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_a_device_computes_what_the_cpu_does(stored, interpolation, size):
    params = draws_for(stored)
    positions = [3, 1, 4, 1, 5, 9, 2, 6, 0, 8]
    chosen = params[positions]
    expected = resample_on_cpu([stored[p] for p in positions], chosen, size, interpolation)
    device = DeviceImages(stored, CPU)
    out = on_device(device, positions, chosen, size, interpolation)
    assert out.shape == expected.shape
    assert torch.equal(out, out.round())
    assert_close(out.numpy(), expected.numpy(), interpolation)


def test_half_precision_as_on_a_gpu_changes_a_level_at_most(stored):
    """On a GPU the matrix products take fp16 numbers."""
    params = draws_for(stored)
    positions = list(range(len(stored)))
    images = DeviceImages(stored, CPU)
    exact = on_device(images, positions, params, (32, 32), "bilinear")
    half = on_device(images, positions, params, (32, 32), "bilinear", dtype=torch.float16)
    assert (exact - half).abs().max() <= 1


def test_images_on_the_device_are_those_of_the_store(stored):
    device = DeviceImages(stored, CPU)
    for position, (height, width) in enumerate(stored.sizes.tolist()):
        box = torch.tensor([[0, 0, height, width]])
        taken = device.take(torch.tensor([position]), box, height, width)
        assert np.array_equal(taken[0].numpy(), stored[position])


def test_images_go_to_the_device_in_copies_of_many(stored, monkeypatch):
    """A buffer that holds two or three of the images, and one that is smaller than any of them."""
    whole = DeviceImages(stored, CPU)._flat
    for size in (20_000, 10):
        monkeypatch.setattr(resample, "_STAGING_BYTES", size)
        assert torch.equal(DeviceImages(stored, CPU)._flat, whole)


def test_a_large_batch_is_gathered_in_parts(stored, monkeypatch):
    params = draws_for(stored)
    images, positions = DeviceImages(stored, CPU), list(range(len(stored)))
    whole = on_device(images, positions, params, (32, 32), "bilinear")
    monkeypatch.setattr(resample, "_IMAGES_A_GATHER", 3)
    largest = 0
    real = torch.index_select

    def record(pixels, dim, index, **options):
        nonlocal largest
        largest = max(largest, index.numel())
        return real(pixels, dim, index, **options)

    monkeypatch.setattr(torch, "index_select", record)
    assert torch.equal(on_device(images, positions, params, (32, 32), "bilinear"), whole)
    height, width = params.boxes[:, 2:].amax(0).tolist()
    assert largest == 3 * height * width


def jitter_draws(factors: list[tuple[float, float, float]]) -> AugmentParams:
    count = len(factors)
    none = torch.zeros(count, dtype=torch.bool)
    boxes = torch.zeros(count, 4, dtype=torch.int64)
    factors = torch.tensor(factors, dtype=torch.float64)
    return AugmentParams(boxes, none, none, factors, torch.zeros(count, 4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_colours_change_as_torchvision_changes_them(dtype):
    images = torch.stack(
        [torch.from_numpy(smooth_image(i, 24, 24).copy()).permute(2, 0, 1) for i in range(4)]
    )
    factors = [(0.7, 1.0, 1.0), (1.3, 0.6, 1.0), (1.0, 1.4, 0.2), (0.9, 1.2, 1.4)]
    out = adjust(images.to(dtype), jitter_draws(factors), JITTER, (0.5,) * 3)
    assert out.dtype == dtype
    for number, (brightness, contrast, saturation) in enumerate(factors):
        expected = tv.adjust_brightness(images[number], brightness)
        expected = tv.adjust_contrast(expected, contrast)
        expected = tv.adjust_saturation(expected, saturation)
        assert (out[number].float() - expected.float()).abs().max() <= 3


def test_grey_images_have_no_saturation():
    images = torch.full((1, 1, 8, 8), 100.0)
    out = adjust(images, jitter_draws([(1.2, 1.0, 0.0)]), JITTER, (0.5,))
    assert torch.allclose(out, torch.full((1, 1, 8, 8), 120.0))


def test_erased_rectangles_take_the_mean_colour():
    params = jitter_draws([(1.0, 1.0, 1.0)] * 2)
    params.erase[1] = torch.tensor((0.25, 0.5, 0.5, 0.25))
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    out = adjust(images, params, ERASE, (0.2, 0.4, 0.6))
    assert not out[0].any()
    assert out[1, :, 4:12, 8:12].float().mean(dim=(1, 2)).tolist() == [51, 102, 153]
    assert out[1].count_nonzero() == 3 * 8 * 4


def test_nothing_to_adjust_gives_the_same_pixels():
    images = torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8)
    params = jitter_draws([(1.0, 1.0, 1.0)])
    assert adjust(images, params, AugmentConfig(), (0.5,) * 3) is images
    assert adjust(images, params, ERASE, (0.5,) * 3).equal(images)


def test_the_pixels_of_batches_are_distributed_as_those_of_the_pipeline_of_single_images(stored):
    """Means and spreads over many params: whole batches, device and CPU, against torchvision."""
    if stored.channels == 1:
        pytest.skip("one colour space is enough")
    augment = AugmentConfig(scale=[0.35, 1.0], hflip=0.5)
    count = 1200
    position = 4
    pixels = stored[position]
    sizes = np.tile(stored.sizes[position], (count, 1))
    params = sample_params(list(range(count)), sizes, augment)
    on_cpu = resample_on_cpu([pixels] * count, params, (16, 16), "bilinear").float()
    device = DeviceImages(stored, CPU)
    resampled = on_device(device, [position] * count, params, (16, 16), "bilinear")
    single = v2.Compose([v2.RandomResizedCrop(16, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    reference = torch.stack([single(image) for _ in range(count)]).float()
    for batch in (on_cpu, resampled):
        error = reference.std(0) * (2 / count) ** 0.5
        deviations = (batch.mean(0) - reference.mean(0)).abs() / error.clamp(min=0.2)
        assert deviations.max() < 5
        assert (batch.std(0) - reference.std(0)).abs().max() < 0.2 * reference.std(0).mean()
