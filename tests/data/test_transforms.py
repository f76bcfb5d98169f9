"""Pixels: evaluation equals torchvision exactly; augmentation does what it says, by seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from mnft.config.schema import AugmentConfig
from mnft.data.transforms import Transform, build_eval_transform, build_train_transform
from mnft.data.transforms import normalize as normalize_batch
from mnft.preprocessing import Preprocessing
from mnft.tasks.classify.targets import build_mix

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICIES = ("none", "rand_augment", "trivial_augment", "aug_mix")
MODES = {"bilinear": v1.InterpolationMode.BILINEAR, "bicubic": v1.InterpolationMode.BICUBIC}


def spec(
    size: int = 224,
    *,
    interpolation: str = "bilinear",
    crop_pct: float = 0.875,
    channels: int = 3,
    mean: tuple[float, ...] = MEAN,
) -> Preprocessing:
    shape = (channels, size, size)
    return Preprocessing(shape, mean[:channels], STD[:channels], interpolation, crop_pct)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def apply(transform: Transform, image: Image.Image, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(image)


# Evaluation

SHAPES = [(500, 375), (375, 500), (256, 256), (224, 224), (1, 1), (7, 3), (100, 31), (2000, 3)]


@pytest.mark.parametrize(("width", "height"), [*SHAPES, (3, 701), (641, 479)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_pixels_equal_torchvision(width: int, height: int, interpolation: str) -> None:
    image = noise(width, height)
    preprocessing = spec(interpolation=interpolation)
    reference = v1.Compose(
        [
            v1.Resize(256, interpolation=MODES[interpolation]),
            v1.CenterCrop(224),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )
    found = build_eval_transform(preprocessing)(image)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 224, 224))
    assert torch.equal(normalize_batch(found[None], preprocessing)[0], reference(image))


@pytest.mark.parametrize(
    ("size", "crop_pct", "resized"), [(224, 1.0, 224), (32, 0.875, 36), (160, 0.95, 168)]
)
def test_eval_resize_follows_crop_pct(size: int, crop_pct: float, resized: int) -> None:
    image = noise(301, 200)
    reference = v1.Compose([v1.Resize(resized), v1.CenterCrop(size), v1.PILToTensor()])
    found = build_eval_transform(spec(size, crop_pct=crop_pct))(image)
    assert torch.equal(found, reference(image))


def test_eval_is_not_random() -> None:
    transform = build_eval_transform(spec(64))
    image = noise(90, 80)
    assert torch.equal(apply(transform, image, 1), apply(transform, image, 2))


def test_eval_of_one_channel_is_pillows_grey() -> None:
    image = noise(90, 80)
    found = build_eval_transform(spec(64, channels=1))(image)
    reference = v1.Compose([v1.Resize(73), v1.CenterCrop(64), v1.PILToTensor()])
    assert torch.equal(found, reference(image.convert("L")))
    assert found.shape == (1, 64, 64)


def test_a_strip_beyond_all_memory_gives_its_middle() -> None:
    strip = Image.new("RGB", (1, 400_001), (255, 0, 0))
    strip.paste((0, 0, 255), (0, 200_000, 1, 400_001))
    found = build_eval_transform(spec(32))(strip)
    # The line between red and blue lies half a source pixel above the centre.
    assert found.shape == (3, 32, 32)
    assert found[0].float().mean() < 128
    short = strip.crop((0, 199_900, 1, 200_101))
    assert torch.equal(found, build_eval_transform(spec(32))(short))


def test_no_resize_takes_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def record(self: Image.Image, size: tuple[int, int], *args: object) -> Image.Image:
        sizes.append(size)
        return resize(self, (1024, 1024))

    monkeypatch.setattr(Image.Image, "resize", record)
    build_eval_transform(spec(1024, crop_pct=1.0))(noise(9000, 3))
    build_eval_transform(spec(32))(noise(1, 500_000))
    assert len(sizes) == 2
    assert max(width * height for width, height in sizes) < 100_000_000


def test_large_inputs_take_long_images() -> None:
    found = build_eval_transform(spec(1024, crop_pct=1.0))(noise(3000, 3))
    assert found.shape == (3, 1024, 1024)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_equals_torchvision(channels: int) -> None:
    images = torch.randint(256, (4, channels, 9, 7), dtype=torch.uint8)
    before = images.clone()
    found = normalize_batch(images, spec(channels=channels))
    for image, row in zip(images, found, strict=True):
        plain = image.to(torch.float32).div(255)
        assert torch.equal(row, v1.Normalize(MEAN[:channels], STD[:channels])(plain))
    assert torch.equal(images, before)


# Training


def everything(policy: str) -> AugmentConfig:
    return AugmentConfig(
        scale=[0.1, 1.0],
        hflip=0.5,
        vflip=0.5,
        color_jitter=0.4,
        policy=policy,
        random_erasing=1.0,
        mixup=0.2,
        cutmix=1.0,
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_everything_at_once(policy: str, channels: int, interpolation: str) -> None:
    preprocessing = spec(32, channels=channels, interpolation=interpolation)
    transform = build_train_transform(everything(policy), preprocessing)
    for seed, (width, height) in enumerate([(40, 30), (1, 1), (300, 2), (2, 300), (33, 200)]):
        image = noise(width, height)
        found = apply(transform, image, seed)
        assert (found.dtype, found.shape) == (torch.uint8, (channels, 32, 32))
        assert torch.equal(found, apply(transform, image, seed))


@pytest.mark.parametrize("policy", POLICIES)
def test_seeds_differ(policy: str) -> None:
    transform = build_train_transform(everything(policy), spec(32))
    image = noise(60, 50)
    seen = {apply(transform, image, seed).numpy().tobytes() for seed in range(10)}
    assert len(seen) == 10


def test_nothing_random_is_left_where_all_is_off() -> None:
    off = AugmentConfig(scale=[1.0, 1.0], ratio=[1.0, 1.0], hflip=0.0)
    transform = build_train_transform(off, spec(32))
    image = noise(50, 50)
    assert torch.equal(apply(transform, image, 1), apply(transform, image, 2))
    assert torch.equal(apply(transform, image, 1), v1.PILToTensor()(v1.Resize(32)(image)))


@pytest.mark.parametrize(("name", "dim"), [("hflip", 2), ("vflip", 1)])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_flips(name: str, dim: int, share: float) -> None:
    options = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0, name: share}
    transform = build_train_transform(AugmentConfig(**options), spec(8))
    image = noise(8, 8)
    plain = v1.PILToTensor()(image)
    torch.manual_seed(0)
    flips = [torch.equal(transform(image), plain.flip(dim)) for _ in range(400)]
    assert abs(np.mean(flips) - share) < 0.07 * (0 < share < 1) + 1e-9


def test_area_and_ratio_of_crops() -> None:
    """A picture of coordinates tells which part of it a crop is."""
    columns, rows = np.meshgrid(np.arange(250), np.arange(250))
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], 2).astype(np.uint8))
    augment = AugmentConfig(scale=[0.35, 0.6], ratio=[0.75, 1.25], hflip=0.0)
    transform = build_train_transform(augment, spec(64, interpolation="nearest"))
    torch.manual_seed(0)
    areas, ratios = [], []
    for _ in range(300):
        x, y, _ = transform(image).int()
        width, height = (int(v.max() - v.min()) + 4 for v in (x, y))
        areas.append(width * height / 250**2)
        ratios.append(width / height)
    assert 0.32 < min(areas) < 0.38
    assert 0.57 < max(areas) < 0.65
    assert abs(np.mean(areas) - 0.475) < 0.02
    assert min(ratios) > 0.70
    assert max(ratios) < 1.32


def test_scale_from_zero_works() -> None:
    transform = build_train_transform(AugmentConfig(scale=[0.0, 1.0]), spec(16))
    for seed in range(50):
        assert apply(transform, noise(20, 20), seed).shape == (3, 16, 16)


def test_color_jitter_changes_colours_only_when_asked() -> None:
    image = Image.new("RGB", (20, 20), (90, 120, 150))
    plain = build_train_transform(AugmentConfig(), spec(16))
    jitter = build_train_transform(AugmentConfig(color_jitter=0.4), spec(16))
    assert {tuple(apply(plain, image, s)[:, 3, 3].tolist()) for s in range(9)} == {(90, 120, 150)}
    seen = {tuple(apply(jitter, image, s)[:, 3, 3].tolist()) for s in range(9)}
    assert len(seen) == 9


def test_random_erasing_fills_the_mean_colour() -> None:
    mean = (0.2, 0.4, 0.6)
    augment = AugmentConfig(random_erasing=1.0)
    transform = build_train_transform(augment, spec(32, mean=mean))
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    shares = []
    for seed in range(30):
        found = apply(transform, image, seed)
        erased = (found != 255).any(dim=0)
        shares.append(float(erased.float().mean()))
        assert (torch.tensor([51, 102, 153]) == found[:, erased].T).all()
    assert min(shares) > 0
    assert max(shares) < 0.4
    never = build_train_transform(AugmentConfig(), spec(32, mean=mean))
    assert (apply(never, image, 0) == 255).all()


def test_magnitude_matters() -> None:
    image = noise(32, 32)

    def change(magnitude: int) -> float:
        augment = AugmentConfig(
            scale=[1.0, 1.0],
            ratio=[1.0, 1.0],
            hflip=0.0,
            policy="rand_augment",
            magnitude=magnitude,
        )
        transform = build_train_transform(augment, spec(32))
        plain = v1.PILToTensor()(image).float()
        differences = [(apply(transform, image, s).float() - plain).abs().mean() for s in range(40)]
        return float(torch.stack(differences).mean())

    assert change(30) > change(1)


# Mixup and cutmix


def test_no_mix_by_default() -> None:
    assert build_mix(AugmentConfig(), 5) is None


@pytest.mark.parametrize(
    "options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]
)
def test_mixed_targets_sum_to_one(options: dict[str, float]) -> None:
    mix = build_mix(AugmentConfig(**options), 5)
    assert mix is not None
    torch.manual_seed(0)
    images = torch.randn(6, 3, 8, 8)
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    before = images.clone()
    kinds = set()
    for _ in range(20):
        mixed, soft = mix(images, targets)
        assert (soft.shape, soft.dtype) == ((6, 5), torch.float32)
        assert torch.allclose(soft.sum(dim=1), torch.ones(6))
        assert (soft >= 0).all()
        assert mixed.shape == images.shape
        pasted = (mixed == images) | (mixed == images.roll(1, 0))
        kinds.add("cutmix" if pasted.all() else "mixup")
    assert kinds == set(options)
    assert torch.equal(images, before)


def test_mixup_blends_images_as_targets() -> None:
    mix = build_mix(AugmentConfig(mixup=1.0), 3)
    assert mix is not None
    images = torch.randn(3, 1, 4, 4)
    mixed, soft = mix(images, torch.tensor([0, 1, 2]))
    share = soft[0, 0]
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
