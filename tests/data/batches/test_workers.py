"""Batches: order, seeds, workers, ranks, and files that go bad on the way."""

from __future__ import annotations

import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnft.config.schema import AugmentConfig
from mnft.data.batches import workers as loaders
from mnft.data.batches.batch import LoaderOptions
from mnft.data.batches.raw import DecodedImages
from mnft.data.batches.samplers import EpochSampler, EvalSampler
from mnft.data.batches.workers import LoadedBatches, choose_workers
from mnft.data.store.geometry import EvalGeometry, TrainGeometry
from mnft.data.transforms import build_eval_transform, build_train_transform, normalize
from mnft.errors import DataError
from mnft.preprocessing import Preprocessing
from mnft.tasks.classify.targets import build_mix

SPEC = Preprocessing((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bilinear", 1.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number in range(11):
        values = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(values).save(paths[-1])
    return paths


def train_batches(paths: list[Path], *, workers: int = 0, **augment: Any) -> LoadedBatches:
    config = AugmentConfig(**augment)
    whole = config.policy == "none"
    return LoadedBatches(
        DecodedImages(paths, TrainGeometry(20, 3, "bilinear")),
        [number % 3 for number in range(len(paths))],
        augment=config if whole else None,
        transform=None if whole else build_train_transform(config, SPEC),
        preprocessing=SPEC,
        sampler=EpochSampler(len(paths), 4, seed=5),
        options=LoaderOptions(CPU, workers, channels_last=False),
        mix=build_mix(config, 3),
    )


def eval_batches(paths: list[Path], *, workers: int = 0, **options: Any) -> LoadedBatches:
    return LoadedBatches(
        DecodedImages(paths, EvalGeometry(SPEC)),
        list(range(len(paths))),
        preprocessing=SPEC,
        sampler=EvalSampler(len(paths), 4),
        options=LoaderOptions(CPU, workers, channels_last=options.pop("channels_last", False)),
        **options,
    )


def epoch(batches: LoadedBatches, number: int = 0) -> list[tuple[Any, Any, list[int]]]:
    assert isinstance(batches.sampler, EpochSampler)
    batches.sampler.set_epoch(number)
    return [(b.images, b.targets, b.positions) for b in batches]


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(first, second, strict=True)
    )


# Batches


def test_eval_batches(images: list[Path]) -> None:
    batches = list(eval_batches(images))
    assert [b.positions for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert torch.cat([b.targets for b in batches]).tolist() == list(range(11))
    transform = build_eval_transform(SPEC)
    pixels = torch.stack([transform(Image.open(path)) for path in images])
    assert torch.equal(torch.cat([b.images for b in batches]), normalize(pixels, SPEC))


def test_channels_last(images: list[Path]) -> None:
    batch = next(iter(eval_batches(images, channels_last=True)))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images, next(iter(eval_batches(images))).images)


@pytest.mark.parametrize("augment", [{}, {"policy": "aug_mix", "mixup": 0.4, "cutmix": 1.0}])
def test_workers_do_not_change_the_batches(images: list[Path], augment: dict[str, Any]) -> None:
    alone, helped = (train_batches(images, workers=n, **augment) for n in (0, 2))
    torch.manual_seed(1)
    first = [epoch(alone, n) for n in range(2)]
    torch.manual_seed(2)
    second = [epoch(helped, n) for n in range(2)]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not same(first[0], first[1])


def test_an_epoch_can_be_repeated(images: list[Path]) -> None:
    """What resuming needs: epoch 3 is the same whether epochs 1 and 2 came before or not."""
    batches = train_batches(images, color_jitter=0.4, mixup=0.2)
    epoch(batches, 1), epoch(batches, 2)
    assert same(epoch(batches, 3), epoch(train_batches(images, color_jitter=0.4, mixup=0.2), 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(images: list[Path], workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    epoch(train_batches(images, workers=workers, policy="aug_mix", mixup=0.4, random_erasing=1.0))
    list(eval_batches(images, workers=workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_seeding_an_image_leaves_the_generators_of_devices_alone(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("torch.manual_seed reseeds every GPU")

    monkeypatch.setattr(torch, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    epoch(train_batches(images, mixup=0.4))


def test_mix_gives_soft_targets(images: list[Path]) -> None:
    for _, targets, _ in epoch(train_batches(images, cutmix=1.0)):
        assert targets.shape[1] == 3
        assert torch.allclose(targets.sum(dim=1), torch.ones(len(targets)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_fails_with_its_name(
    images: list[Path], tmp_path: Path, workers: int
) -> None:
    paths = []
    for image in images:
        paths.append(tmp_path / image.name)
        paths[-1].write_bytes(image.read_bytes())
    batches = train_batches(paths, workers=workers)
    paths[3].unlink()
    with pytest.raises(DataError) as caught:
        epoch(batches)
    assert caught.value.message == f"{paths[3]}: cannot be read: No such file or directory"
    assert "has the folder changed" in str(caught.value.hint)
    assert "Traceback" not in caught.value.message
    del caught  # it holds the workers in a cycle, which torch takes five seconds to collect


def test_bad_images_are_given_apart_where_that_is_allowed(
    images: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    paths = [*images[:3], bad, bad, bad, bad, bad, images[3]]
    batches = list(eval_batches(paths, allow_bad=True))
    assert [b.positions for b in batches] == [[0, 1, 2], [], [8]]
    assert [[p for p, _ in b.bad] for b in batches] == [[3], [4, 5, 6, 7], []]
    assert batches[0].bad[0][1].path == bad
    assert batches[0].bad[0][1].reason == "the file is empty"
    assert len(batches[1].images) == 0
    with pytest.raises(DataError, match="the file is empty"):
        list(eval_batches(paths))


# Order


def keys(sampler: EpochSampler, number: int = 0) -> list[list[int]]:
    sampler.set_epoch(number)
    return [[key.position for key in batch] for batch in sampler]


def test_every_image_once_an_epoch() -> None:
    sampler = EpochSampler(103, 10, seed=1)
    seen = [keys(sampler, number) for number in range(3)]
    for batches in seen:
        assert [len(batch) for batch in batches] == [10] * 10 + [3]
        assert sorted(chain.from_iterable(batches)) == list(range(103))
    assert len({tuple(chain.from_iterable(batches)) for batches in seen}) == 3
    assert keys(sampler, 1) == seen[1]
    assert keys(EpochSampler(103, 10, seed=2)) != seen[0]


def test_images_have_another_seed_each_epoch() -> None:
    sampler = EpochSampler(20, 10, seed=1)
    seeds = set()
    for number in range(4):
        sampler.set_epoch(number)
        seeds |= {key.seed for batch in sampler for key in batch}
    assert len(seeds) == 80


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("num_samples", [60, 67, 61])
def test_processes_share_each_batch(world_size: int, num_samples: int) -> None:
    whole = EpochSampler(num_samples, 12, seed=4)
    parts = [
        EpochSampler(num_samples, 12, seed=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    whole.set_epoch(7)
    for part in parts:
        part.set_epoch(7)
    together = [[key for batch in step for key in batch] for step in zip(*parts, strict=True)]
    expected = list(whole)[: len(parts[0])]
    assert together == expected
    assert all(len(batch) >= 2 for part in parts for batch in part)
    assert {len(part) for part in parts} == {len(together)}


@pytest.mark.parametrize(
    ("num_samples", "world_size", "sizes"),
    [
        (20, 1, [10, 10]),
        (21, 1, [10, 10]),
        (22, 1, [10, 10, 2]),
        (23, 2, [10, 10]),
        (24, 2, [10, 10, 4]),
        (5, 1, [5]),
        (2, 1, [2]),
    ],
)
def test_the_last_batch(num_samples: int, world_size: int, sizes: list[int]) -> None:
    sampler = EpochSampler(num_samples, 10, seed=0, world_size=world_size)
    assert len(sampler) == len(sizes)
    assert [sampler.batch_size_of(step) for step in range(len(sizes))] == sizes
    assert [len(batch) * world_size for batch in sampler] == sizes


def test_too_few_images() -> None:
    with pytest.raises(DataError, match="too few"):
        EpochSampler(1, 10, seed=0)
    with pytest.raises(DataError, match="too few for 4 processes"):
        EpochSampler(7, 10, seed=0, world_size=4)


def test_weights_draw_classes_evenly() -> None:
    labels = [0] * 900 + [1] * 90 + [2] * 10
    share = {label: 1 / number for label, number in Counter(labels).items()}
    sampler = EpochSampler(1000, 50, seed=0, weights=[share[label] for label in labels])
    counts: Counter[int] = Counter()
    for number in range(3):
        batches = keys(sampler, number)
        assert sum(map(len, batches)) == 1000
        counts.update(labels[position] for batch in batches for position in batch)
    assert all(abs(counts[label] / 3000 - 1 / 3) < 0.03 for label in range(3))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 2, 10, 11])
def test_eval_takes_every_image_once(world_size: int, num_samples: int) -> None:
    samplers = [
        EvalSampler(num_samples, 4, rank=r, world_size=world_size) for r in range(world_size)
    ]
    seen = [key for sampler in samplers for batch in sampler for key in batch]
    assert sorted(key.position for key in seen) == list(range(num_samples))
    assert {key.seed for key in seen} == {None}
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]
    assert all(len(batch) <= 4 for sampler in samplers for batch in sampler)


# Workers


def workers_with(
    monkeypatch: pytest.MonkeyPatch, *, cores: int, free: int = 2**40, **options: Any
) -> int:
    class Usage:
        pass

    usage = Usage()
    usage.free = free  # type: ignore[attr-defined]
    monkeypatch.setattr(loaders, "count_cores", lambda: cores)
    monkeypatch.setattr(loaders.shutil, "disk_usage", lambda _: usage)
    device = torch.device(options.pop("device", "cpu"))
    return choose_workers("auto", device=device, batch_bytes=2**20, **options)


def test_choose_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_workers(3, device=CPU, batch_bytes=1) == 3
    assert choose_workers(0, device=CPU, batch_bytes=1) == 0
    assert [workers_with(monkeypatch, cores=n) for n in (1, 2, 4, 64)] == [0, 1, 2, 4]
    on_gpu = [workers_with(monkeypatch, cores=n, device="cuda") for n in (1, 2, 6, 64)]
    assert on_gpu == [1, 1, 5, 8]
    assert workers_with(monkeypatch, cores=32, device="cuda", processes=8) == 3


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no shared memory folder")  # noqa: PTH112
def test_little_shared_memory_means_few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_with(monkeypatch, cores=64, free=12 * 2**20, device="cuda") == 3
    assert workers_with(monkeypatch, cores=64, free=2**20, device="cuda") == 0
