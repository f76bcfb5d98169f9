"""What evaluation sees in each crop mode: timm's pixels, from files, the store and training's."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import draw
from timm.data import create_transform

from mnft.config.schema import Config
from mnft.data.batches.resample import DeviceImages
from mnft.data.batches.stored import StoredBatches
from mnft.data.decode import decode
from mnft.data.manifest import Manifest, Sample
from mnft.data.prepare import prepare_manifest
from mnft.data.store.geometry import EvalGeometry
from mnft.data.store.store import Store
from mnft.data.transforms import build_eval_transform, normalize
from mnft.device.machine import Machine
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.labels import RULES
from mnft.training.inputs import Inputs, Loaders, open_inputs

MODES = ("center", "squash", "border")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
# Not ImageNet's, which timm's border has if it is not told otherwise.
MEAN, STD = (0.2, 0.5, 0.9), (0.3, 0.2, 0.25)
# Landscape, portrait, square, as large as the input, smaller, and a strip.
SHAPES = ((75, 41), (43, 90), (60, 60), (40, 40), (7, 3), (1, 1), (300, 9))
MACHINE = Machine(torch.device("cpu"))


def spec(
    mode: str,
    size: tuple[int, int] = (40, 40),
    *,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    channels: int = 3,
) -> Preprocessing:
    shape = (channels, *size)
    return Preprocessing(shape, MEAN[:channels], STD[:channels], interpolation, crop_pct, mode)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def timm_sees(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """What plain timm makes of an image, given what a model folder says."""
    transform = create_transform(**preprocessing.as_pretrained_cfg(), is_training=False)
    return transform(image.convert("L") if preprocessing.input_size[0] == 1 else image)


# From image files


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(40, 40), (24, 48), (48, 24)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_pixels_equal_those_of_timm(
    mode: str, interpolation: str, size: tuple[int, int], channels: int
) -> None:
    for crop_pct, shape in itertools.product((1.0, 0.875, 0.7, 1.15), SHAPES):
        image = noise(*shape)
        preprocessing = spec(
            mode, size, interpolation=interpolation, crop_pct=crop_pct, channels=channels
        )
        found = build_eval_transform(preprocessing)(image)
        assert (found.dtype, found.shape) == (torch.uint8, (channels, *size))
        expected = timm_sees(image, preprocessing)
        assert torch.equal(normalize(found[None], preprocessing)[0], expected), (crop_pct, shape)


def test_what_each_mode_shows_of_a_wide_image() -> None:
    """Red at the left end, blue at the right end, grey between."""
    image = Image.new("RGB", (120, 40), (128, 128, 128))
    image.paste((255, 0, 0), (0, 0, 30, 40))
    image.paste((0, 0, 255), (90, 0, 120, 40))
    middle, squashed, bordered = (build_eval_transform(spec(mode))(image) for mode in MODES)
    assert (middle == 128).all()
    for whole in (squashed, bordered[:, 14:26]):
        height = whole.shape[1]
        assert (whole[:, :, 0] == torch.tensor([255, 0, 0])[:, None].expand(3, height)).all()
        assert (whole[:, :, -1] == torch.tensor([0, 0, 255])[:, None].expand(3, height)).all()
    fill = torch.tensor([51, 128, 230])[:, None, None]  # the mean
    assert (bordered[:, :13] == fill).all()
    assert (bordered[:, 27:] == fill).all()
    assert (bordered[:, 14:26] != fill).any(dim=0).all()


@pytest.mark.parametrize("upright", [False, True])
def test_a_strip_thinner_than_a_pixel_keeps_both_ends_within_a_border(upright: bool) -> None:
    """timm's own transform fails here, as it rounds the shorter side to 0 pixels."""
    strip = Image.new("RGB", (3000, 2), (255, 0, 0))
    strip.paste((0, 0, 255), (1500, 0, 3000, 2))
    if upright:
        strip = strip.transpose(Image.Transpose.TRANSPOSE)
    with pytest.raises(ValueError, match="> 0"):
        timm_sees(strip, spec("border"))
    found = build_eval_transform(spec("border"))(strip)
    rows = found.transpose(1, 2) if upright else found
    fill = torch.tensor([51, 128, 230])
    is_strip = [y for y in range(40) if not (fill == rows[:, y].T).all()]
    assert is_strip == [19]
    assert (torch.tensor([255, 0, 0]) == rows[:, 19, :19].T).all()
    assert (torch.tensor([0, 0, 255]) == rows[:, 19, 21:].T).all()


@pytest.mark.parametrize("mode", ["squash", "border"])
@pytest.mark.parametrize("upright", [False, True])
def test_no_strip_takes_gigabytes_or_loses_an_end(
    mode: str, upright: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    resize = Image.Image.resize

    def record(self: Image.Image, size: tuple[int, int], *args: object) -> Image.Image:
        passes.append(size[0] * self.height)  # Pillow resizes the rows first
        return resize(self, size, *args)

    monkeypatch.setattr(Image.Image, "resize", record)
    strip = Image.new("RGB", (1, 3_000_000), (255, 0, 0))
    strip.paste((0, 0, 255), (0, 1_500_000, 1, 3_000_000))
    if not upright:
        strip = strip.transpose(Image.Transpose.TRANSPOSE)
    found = build_eval_transform(spec(mode, (64, 64)))(strip)
    assert len(passes) == 1
    assert max(passes) < 100_000_000
    columns = (found if upright else found.transpose(1, 2))[:, :, 31]
    assert (torch.tensor([255, 0, 0]) == columns[:, :31].T).all()
    assert (torch.tensor([0, 0, 255]) == columns[:, 33:].T).all()


# From the store, and as training sees them


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[Path, list[Sample]]:
    """Twelve pictures, no two of the same shape."""
    root = tmp_path / "images"
    root.mkdir()
    samples = []
    for number in range(12):
        path = root / f"{number:02d}.png"
        draw(number, (30 + 11 * number, 120 - 7 * number)).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        samples.append(Sample(path.name, "a", "val", sha256))
    return root, samples


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_the_store_holds_the_pixels_of_timm(
    photographs: tuple[Path, list[Sample]], tmp_path: Path, mode: str, channels: int
) -> None:
    root, samples = photographs
    for crop_pct, size in ((1.0, (40, 40)), (0.8, (24, 48))):
        preprocessing = spec(mode, size, crop_pct=crop_pct, channels=channels)
        store = Store(tmp_path / "cache", root, EvalGeometry(preprocessing), channels)
        store.build(root, samples, 10**9, lambda _done, _total: None)
        stored = store.open(samples)
        for position, sample in enumerate(samples):
            pixels = torch.from_numpy(stored[position].copy()).permute(2, 0, 1)[None]
            expected = timm_sees(decode(root / sample.path), preprocessing)
            assert torch.equal(normalize(pixels, preprocessing)[0], expected)


def test_modes_share_no_stored_pixels_and_only_borders_depend_on_the_mean() -> None:
    assert len({EvalGeometry(spec(mode)).key for mode in MODES}) == 3
    for mode in MODES:
        other = Preprocessing((3, 40, 40), (0.5, 0.5, 0.5), STD, "bicubic", 1.0, mode)
        is_same = EvalGeometry(spec(mode)).key == EvalGeometry(other).key
        assert is_same == (mode != "border")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with train and val; of the store's size or smaller, so that it keeps them."""
    number = 0
    for split, label in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / "images" / split / label).mkdir(parents=True)
        for _ in range(4):
            size = (60, 20 + number) if number % 2 else (22 + number, 61)
            draw(number, size).save(tmp_path / "images" / split / label / f"{number:02d}.png")
            number += 1
    return tmp_path / "images"


def open_folder(
    folder: Path, preprocessing: Preprocessing, store: str
) -> tuple[Config, Manifest, Inputs]:
    data = {"root": str(folder), "store": store, "workers": 0}
    config = Config.model_validate({"data": data})
    manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None)
    return config, manifest, open_inputs(config, manifest, preprocessing, MACHINE)


def view(
    config: Config, manifest: Manifest, preprocessing: Preprocessing, inputs: Inputs, split: str
) -> torch.Tensor:
    loaders = Loaders(config, manifest, preprocessing, inputs, MACHINE, open_task(manifest.labels))
    return torch.cat([batch.images for batch in loaders.view(split)])  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("mode", "crop_pct"), [*((m, 1.0) for m in MODES), ("border", 0.8)])
def test_training_evaluates_what_timm_sees(
    folder: Path, tmp_path: Path, mode: str, crop_pct: float, channels: int, stored: bool
) -> None:
    """Of val, and of the training images whose features the head is fitted to."""
    preprocessing = spec(mode, (64, 64), crop_pct=crop_pct, channels=channels)
    store = str(tmp_path / "cache") if stored else "off"
    config, manifest, inputs = open_folder(folder, preprocessing, store)
    assert (inputs.val is not None) == stored
    for split in ("train", "val"):
        found = view(config, manifest, preprocessing, inputs, split)
        expected = torch.stack(
            [timm_sees(decode(folder / s.path), preprocessing) for s in manifest.split(split)]
        )
        if split == "val" or mode != "center":
            assert torch.equal(found, expected)
        else:  # torch's resize instead of Pillow's, and a crop of whole pixels before it
            assert (found - expected).abs().mean() < 0.2


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_large_training_images_differ_by_the_rounding_of_one_resize(
    tmp_path: Path, mode: str
) -> None:
    for number in range(4):
        path = tmp_path / "images" / ("train" if number < 2 else "val") / "ab"[number % 2]
        path.mkdir(parents=True)
        draw(number, (500, 300)).save(path / "large.png")
    preprocessing = spec(mode, (64, 64))
    given = open_folder(tmp_path / "images", preprocessing, str(tmp_path / "cache"))
    config, manifest, inputs = given
    assert isinstance(inputs.train, type(inputs.val))
    assert int(inputs.train.sizes.min()) < 100  # the store has reduced them
    found = view(config, manifest, preprocessing, inputs, "train")
    root = tmp_path / "images"
    expected = torch.stack(
        [timm_sees(decode(root / s.path), preprocessing) for s in manifest.split("train")]
    )
    scale = 255 * torch.tensor(STD).view(3, 1, 1)
    assert ((found - expected) * scale).abs().mean() < 1.5


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_images_in_the_memory_of_a_device_are_seen_whole_too(
    folder: Path, tmp_path: Path, mode: str
) -> None:
    preprocessing = spec(mode, (64, 64))
    config, manifest, inputs = open_folder(folder, preprocessing, str(tmp_path / "cache"))
    assert not isinstance(inputs.train, DeviceImages)
    assert inputs.train is not None
    placed = Inputs(DeviceImages(inputs.train, MACHINE.device), inputs.val, "", inputs.folder)
    found, expected = (
        view(config, manifest, preprocessing, given, "train") for given in (placed, inputs)
    )
    assert torch.equal(found, expected)


def test_threads_see_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = spec("border", (64, 64))
    config, manifest, inputs = open_folder(folder, preprocessing, str(tmp_path / "cache"))
    alone = view(config, manifest, preprocessing, inputs, "train")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(view(config, manifest, preprocessing, inputs, "train"), alone)


def test_a_crop_larger_than_the_image_has_a_black_border(folder: Path, tmp_path: Path) -> None:
    """As timm's VOLO, whose crop_pct is 1.15."""
    preprocessing = spec("center", (64, 64), crop_pct=1.15)
    config, manifest, inputs = open_folder(folder, preprocessing, str(tmp_path / "cache"))
    found = view(config, manifest, preprocessing, inputs, "train")
    for image, sample in zip(found, manifest.split("train"), strict=True):
        assert torch.equal(image, timm_sees(decode(folder / sample.path), preprocessing))


@pytest.mark.parametrize("stored", [False, True])
def test_training_crops_are_those_of_every_mode(folder: Path, tmp_path: Path, stored: bool) -> None:
    store = str(tmp_path / "cache") if stored else "off"
    batches = []
    for mode in MODES:
        preprocessing = spec(mode, (64, 64))
        config, manifest, inputs = open_folder(folder, preprocessing, store)
        task = open_task(manifest.labels)
        loader = Loaders(config, manifest, preprocessing, inputs, MACHINE, task).train()
        assert isinstance(loader, StoredBatches) == stored
        batches.append(torch.cat([batch.images for batch in loader]))
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])
