"""Batches from the store: the same images for any number of processes, exact in evaluation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.images import COLOURS
from torchvision.transforms import v2

from mnft.config.schema import AugmentConfig, Config
from mnft.data.batches.augment import sample_params
from mnft.data.batches.batch import FULL_SIZE, ProgressiveResize
from mnft.data.batches.resample import DeviceImages, adjust
from mnft.data.batches.samplers import EpochSampler, EvalSampler
from mnft.data.batches.stored import StoredBatches, fits_on_device
from mnft.data.prepare import prepare_manifest
from mnft.device.machine import Machine
from mnft.device.ranks.distributed import Ranks
from mnft.errors import DataError
from mnft.preprocessing import Preprocessing
from mnft.tasks import open_task
from mnft.tasks.classify.labels import RULES
from mnft.tasks.classify.targets import build_mix
from mnft.training.eval_batches import EvalOptions, open_eval_batches
from mnft.training.inputs import Loaders, open_inputs

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), "bilinear", 0.875)


def train_batches(config, manifest, preprocessing, inputs, *, ranks=Ranks()):  # noqa: B008
    task = open_task(manifest.labels)
    return Loaders(config, manifest, preprocessing, inputs, Machine(CPU, ranks), task).train()


def view_of(config, manifest, preprocessing, inputs, split, *, device=CPU):
    task = open_task(manifest.labels)
    return Loaders(config, manifest, preprocessing, inputs, Machine(device), task).view(split)


def decoded_of(manifest, preprocessing, split):
    samples = manifest.split(split)
    targets = open_task(manifest.labels).encode(samples)
    options = EvalOptions(batch_size=64, workers=0)
    return open_eval_batches(
        manifest.root, samples, targets, preprocessing, Machine(CPU), options=options
    )


@pytest.fixture
def parts(make_folder, tmp_path):
    """A function (changes of sections) that gives config, manifest, preprocessing and inputs."""
    root = make_folder(per_class=10)

    def make(**sections):
        data = {"root": str(root), "store": str(tmp_path / "cache"), "workers": 0}
        data |= sections.pop("data", {})
        config = Config.model_validate({"data": data, **sections})
        manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None)
        inputs = open_inputs(config, manifest, PREPROCESSING, Machine(CPU))
        return config, manifest, PREPROCESSING, inputs

    return make


def test_evaluation_batches_equal_those_that_are_decoded(parts):
    stored = view_of(*parts(), "val")
    _, manifest, preprocessing, _ = parts()
    decoded = decoded_of(manifest, preprocessing, "val")
    assert isinstance(stored, StoredBatches)
    pairs = list(zip(stored, decoded, strict=True))
    assert pairs
    for ours, theirs in pairs:
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.positions == theirs.positions


def test_a_gpu_evaluates_more_stored_images_at_once(parts, make_folder):
    root = {"root": str(make_folder("more", splits=("train", "val"), per_class=24))}
    given = parts(data=root)
    sizes = []
    for device in (CPU, torch.device("cuda")):
        view = view_of(*given, "train", device=device)
        sizes.append(len(view))
    assert sizes == [2, 1]
    given = parts(data=root, eval={"batch_size": 16})
    view = view_of(*given, "train", device=torch.device("cuda"))
    assert len(view) == 5


def test_the_view_of_training_images_is_close_to_that_of_evaluation(parts):
    ours = next(iter(view_of(*parts(), "train")))
    _, manifest, preprocessing, _ = parts()
    decoded = decoded_of(manifest, preprocessing, "train")
    theirs = next(iter(decoded))
    assert ours.positions == theirs.positions
    assert torch.equal(ours.targets, theirs.targets)
    assert (ours.images - theirs.images).abs().mean() < 0.2  # noise is in the images


def epoch_of(batches, epoch: int):
    batches.sampler.set_epoch(epoch)
    return list(batches)


def test_epochs_differ_and_repeat(parts):
    batches = train_batches(*parts())
    one, two, again = epoch_of(batches, 1), epoch_of(batches, 2), epoch_of(batches, 1)
    assert torch.equal(one[0].images, again[0].images)
    assert not torch.equal(one[0].images, two[0].images)


def test_two_processes_see_what_one_sees(parts):
    augment = {"color_jitter": 0.4, "random_erasing": 0.5, "vflip": 0.5}
    made = parts(augment=augment, train={"batch_size": 8})
    one = epoch_of(train_batches(*made), 3)
    two = [epoch_of(train_batches(*made, ranks=Ranks(rank, 2, rank)), 3) for rank in range(2)]
    assert len(two[0]) == len(two[1]) >= 2
    for batch, first, second in zip(one, *two, strict=False):
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)


def test_threads_change_nothing(parts, monkeypatch):
    made = parts()
    alone = epoch_of(train_batches(*made), 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = epoch_of(train_batches(*made), 1)
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, shared, strict=True))


def test_images_on_the_device_give_the_same_batches_but_for_rounding(parts):
    """What a GPU does, with its arithmetic on the CPU."""
    config, manifest, preprocessing, inputs = parts()
    labels = [list(COLOURS).index(s.label) for s in manifest.split("train")]

    def batches(images):
        return StoredBatches(
            images,
            labels,
            preprocessing=preprocessing,
            sampler=EpochSampler(len(labels), 8, seed=0),
            device=CPU,
            channels_last=True,
            augment=config.augment,
            mix=build_mix(AugmentConfig(mixup=0.2), 3),
        )

    assert inputs.train is not None
    on_cpu = epoch_of(batches(inputs.train), 1)
    on_device = epoch_of(batches(DeviceImages(inputs.train, CPU)), 1)
    for ours, theirs in zip(on_device, on_cpu, strict=True):
        assert (ours.images - theirs.images).abs().max() < 2.5 / 255 / 0.2
        assert torch.equal(ours.targets, theirs.targets)


def test_evaluation_on_the_device_is_exact(parts):
    _, manifest, preprocessing, inputs = parts()
    labels = [0] * len(manifest.split("val"))
    ours, theirs = (
        next(
            iter(
                StoredBatches(
                    images,
                    labels,
                    preprocessing=preprocessing,
                    sampler=EvalSampler(len(labels), 64),
                    device=CPU,
                    channels_last=True,
                )
            )
        )
        for images in (DeviceImages(inputs.val, CPU), inputs.val)
    )
    assert torch.equal(ours.images, theirs.images)


def test_only_a_gpu_takes_the_images(parts):
    *_, inputs = parts()
    assert not fits_on_device([inputs.train, inputs.val], CPU)


def test_a_gpu_with_room_takes_the_images_and_one_without_does_not(parts, monkeypatch):
    """Only what is decided: there is no GPU to hold them here."""
    *_, inputs = parts()
    gpu = torch.device("cuda")
    needed = inputs.train.sizes.prod(axis=1).sum() * 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(needed * 10), 0))
    assert fits_on_device([inputs.train], gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(needed * 2), 0))
    assert not fits_on_device([inputs.train], gpu)


def test_policies_work_on_stored_images_of_bicubic_models_too(parts):
    """torchvision rotates no tensor bicubically, which is the interpolation of most MobileNets."""
    preprocessing = replace(PREPROCESSING, interpolation="bicubic")
    for policy in ("rand_augment", "trivial_augment", "aug_mix"):
        config, manifest, _, inputs = parts(augment={"policy": policy})
        made = (config, manifest, preprocessing, inputs)
        batches = train_batches(*made)
        assert not isinstance(batches, StoredBatches)
        first, *_ = [epoch_of(batches, epoch)[0] for epoch in (1, 2, 3)]
        assert first.images.shape[1:] == (3, 32, 32)
        again = epoch_of(train_batches(*made), 1)[0]
        assert torch.equal(first.images, again.images)


# --- progressive resizing


def test_sides_grow_and_end_whole():
    resize = ProgressiveResize(0.5, 9)
    sides = [resize.side(224, epoch) for epoch in range(1, 10)]
    assert sides == sorted(sides)
    assert sides[0] == 128  # 112, to a multiple of 32
    assert sides[6:] == [224, 224, 224]
    assert all(side % 32 == 0 for side in sides)
    assert {FULL_SIZE.side(100, epoch) for epoch in range(1, 10)} == {100}
    assert ProgressiveResize(0.5, 1).side(224, 1) <= 224


@pytest.mark.parametrize("store", ["auto", "off"])
def test_batches_grow_with_the_epochs(parts, store, tmp_path):
    data = {"store": store if store == "off" else str(tmp_path / "cache")}
    config, manifest, _, _ = parts(data=data)
    preprocessing = Preprocessing((3, 96, 96), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    config = Config.model_validate(
        {"data": config.data.model_dump(), "train": {"start_size": 0.5, "epochs": 6}}
    )
    inputs = open_inputs(config, manifest, preprocessing, Machine(CPU))
    batches = train_batches(config, manifest, preprocessing, inputs)
    sides = [epoch_of(batches, epoch)[0].images.shape[-1] for epoch in (1, 3, 5, 6)]
    assert sides == [64, 64, 96, 96]
    val = next(iter(view_of(config, manifest, preprocessing, inputs, "val")))
    assert val.images.shape[-1] == 96


# --- without a store


@pytest.fixture
def photographs(tmp_path):
    """JPEGs and PNGs larger and smaller than what the store keeps, a strip among them."""
    root, rng = tmp_path / "photographs", np.random.default_rng(0)
    sizes = [(640, 480), (30, 41), (90, 333), (20, 400), (500, 500), (41, 30)]
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number, size in enumerate(sizes * 2):
            coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image.save(root / name / f"{number}.{'jpg' if number % 2 else 'png'}")
    return root


AUGMENTS = {
    "plain": {},
    "everything": {
        "vflip": 0.5,
        "color_jitter": 0.4,
        "random_erasing": 0.5,
        "mixup": 0.4,
        "cutmix": 1.0,
    },
    "policy": {"policy": "trivial_augment", "random_erasing": 0.5},
}


@pytest.mark.parametrize(("workers", "channels"), [(0, 3), (0, 1), (2, 3)])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_batches_are_the_same_with_and_without_a_store(
    parts, photographs, augment, workers, channels
):
    """Bit for bit, while the size of the images grows: pixels, crops, colours, mixing, order."""
    shared = {
        "augment": AUGMENTS[augment],
        "model": {"in_chans": channels},
        "train": {"batch_size": 8, "start_size": 0.5, "epochs": 4},
    }
    preprocessing = Preprocessing(
        (channels, 64, 64), (0.4,) * channels, (0.2,) * channels, "bicubic", 0.875
    )
    found = []
    for store in ({}, {"store": "off"}):
        data = {"root": str(photographs), "workers": workers, **store}
        config, manifest, _, _ = parts(data=data, **shared)
        inputs = open_inputs(config, manifest, preprocessing, Machine(CPU))
        assert (inputs.train is None) == bool(store)
        made = (config, manifest, preprocessing, inputs)
        train = train_batches(*made)
        views = [view_of(*made, split) for split in ("train", "val")]
        epochs = [batch for epoch in (1, 4) for batch in epoch_of(train, epoch)]
        found.append([*epochs, *(batch for view in views for batch in view)])
    stored, decoded = found
    assert {batch.images.shape[-1] for batch in stored} == {32, 64}
    for ours, theirs in zip(stored, decoded, strict=True):
        assert ours.positions == theirs.positions
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets, theirs.targets)


def test_colours_do_not_depend_on_the_number_of_threads():
    """Loading processes have one thread, the main process has several."""
    images = torch.randint(0, 256, (6, 3, 96, 96), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    augment = AugmentConfig(color_jitter=0.5)
    params = sample_params(list(range(6)), np.full((6, 2), 96), augment)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(adjust(images, params, augment, (0.5, 0.5, 0.5)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_run_without_a_store_trains_the_same_model(make_folder, run_cli, tmp_path):
    """Head on frozen features, then fine-tuning."""
    root = make_folder(per_class=10)
    assert train(run_cli, root, "run.name=first").exit_code == 0
    start = ["model.name=local-dir:runs/first/best", "model.pretrained=true", "recipe=auto"]
    start += ["train.stages=[head, finetune]", "data.img_size=32", "augment.color_jitter=0.3"]
    for name, store in (("stored", "auto"), ("decoded", "off")):
        result = train(run_cli, root, *start, f"run.name={name}", f"data.store={store}")
        assert result.exit_code == 0, result.stderr
    stored, decoded = (
        load_file(tmp_path / "runs" / name / "last/model.safetensors")
        for name in ("stored", "decoded")
    )
    assert all(torch.equal(stored[name], decoded[name]) for name in stored)


def test_off_decodes(parts, tmp_path):
    *_, inputs = parts(data={"store": "off"})
    assert inputs.train is None
    assert "every epoch decodes" in inputs.note


def test_a_store_without_room_warns_and_decodes(parts, caplog):
    made = parts(data={"store_limit_gb": 1e-6})
    assert made[-1].train is None
    assert "every epoch decodes all images" in caplog.text
    assert "store_limit_gb" in caplog.text
    batch = epoch_of(train_batches(*made), 1)[0]
    assert batch.images.shape[1:] == (3, 32, 32)


def test_a_changed_image_between_manifest_and_store_is_an_error(make_folder, tmp_path):
    root = make_folder(per_class=10)
    config = Config.model_validate({"data": {"root": str(root), "store": str(tmp_path / "c")}})
    manifest = prepare_manifest(config.data, RULES, lambda _done, _total: None)
    path = root / manifest.split("train")[0].path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="changed"):
        open_inputs(config, manifest, PREPROCESSING, Machine(CPU))


def test_decoding_is_not_repeated_by_the_next_run(parts, monkeypatch):
    parts()
    from mnft.data import decode as decoding

    real, decoded = decoding.decode_whole, []
    monkeypatch.setattr(
        decoding, "decode_whole", lambda *a, **o: decoded.append(a) or real(*a, **o)
    )
    _, manifest, _, inputs = parts(train={"seed": 5})
    assert "decoded before" in inputs.note
    assert len(decoded) == len(manifest.split("test"))  # which training does not store


@pytest.fixture
def decodes(monkeypatch):
    """Counts how often each content is decoded."""
    from collections import Counter

    from mnft.data import decode as decoding

    counts: Counter[bytes] = Counter()
    real = decoding.decode_whole

    def counting(content, *args, **options):
        counts[content] += 1
        return real(content, *args, **options)

    monkeypatch.setattr(decoding, "decode_whole", counting)
    return counts


TINY = ["model.name=lenet5", "model.pretrained=false", "train.epochs=1", "train.batch_size=8"]


def train(run_cli, root, *more):
    sets = [part for value in (*TINY, *more) for part in ("--set", value)]
    (root.parent / "tiny.yaml").write_text(f"data: {{root: {root}, workers: 0}}\n")
    return run_cli("train", str(root.parent / "tiny.yaml"), *sets)


def test_a_first_run_decodes_each_image_once(make_folder, run_cli, decodes):
    root = make_folder(per_class=10)
    assert train(run_cli, root).exit_code == 0
    assert set(decodes.values()) == {1}
    assert len(decodes) == 30
    assert train(run_cli, root, "train.seed=1").exit_code == 0
    assert sum(decodes.values()) == 30 + 6  # the test split again, which is not stored


def test_bad_images_are_all_named_though_the_store_stops_at_the_first(make_folder, run_cli):
    root = make_folder(per_class=10)
    for name in ("red/000.png", "blue/003.png", "green/007.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-40])
    result = train(run_cli, root)
    assert result.exit_code == 1
    assert "3 of 30 files cannot be decoded" in result.stderr
    for name in ("red/000.png", "blue/003.png", "green/007.png"):
        assert name in result.stderr
    result = train(run_cli, root, "data.on_bad_image=skip")
    assert result.exit_code == 0, result.stderr
    assert "21 train, 3 val, 3 test" in result.stderr
    split = json.loads((root.parent / "runs" / "tiny" / "split.json").read_text())
    assert len(split["left_out"]) == 3
    assert len(split["samples"]) == 27


def test_without_room_images_are_checked_before_training(make_folder, run_cli):
    root = make_folder(per_class=10)
    (root / "red/000.png").write_bytes((root / "red/000.png").read_bytes()[:-40])
    result = train(run_cli, root, "data.store_limit_gb=1e-6")
    assert result.exit_code == 1
    assert "1 of 30 files cannot be decoded" in result.stderr
    result = train(run_cli, root, "data.store_limit_gb=1e-6", "data.on_bad_image=skip")
    assert result.exit_code == 0, result.stderr
    assert "store    none: it needs" in result.stderr


def test_normalised_pixels_are_what_the_statistics_say(parts):
    config, manifest, preprocessing, inputs = parts()
    batch = next(iter(view_of(config, manifest, preprocessing, inputs, "val")))
    pixels = torch.from_numpy(np.stack([inputs.val[i] for i in batch.positions])).permute(
        0, 3, 1, 2
    )
    expected = v2.Normalize(preprocessing.mean, preprocessing.std)(pixels.float() / 255)
    assert torch.allclose(batch.images, expected, atol=1e-6)
    assert len({hashlib.sha256(p.numpy().tobytes()).hexdigest() for p in pixels}) == len(pixels)
