"""The order of training images: passes, and the parts of several processes."""

from __future__ import annotations

import pytest

from mnft.data.batches.samplers import EpochSampler


def positions(sampler: EpochSampler) -> list[list[int]]:
    return [[key.position for key in batch] for batch in sampler]


def test_each_pass_takes_every_image_once() -> None:
    sampler = EpochSampler(10, 4, seed=1, passes=3)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [4] * 7 + [2]
    assert len(sampler) == 8
    drawn = [key.position for batch in batches for key in batch]
    assert all(sorted(drawn[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert drawn[:10] != drawn[10:20]
    assert len({key.seed for batch in batches for key in batch}) == 30


def test_one_pass_is_the_epoch_that_it_always_was() -> None:
    assert positions(EpochSampler(6, 6, seed=3)) == [[0, 1, 3, 2, 4, 5]]


@pytest.mark.parametrize("weights", [None, [1.0] * 9 + [100.0]])
def test_processes_share_the_batches_of_all_passes(weights: list[float] | None) -> None:
    whole = positions(EpochSampler(10, 4, seed=1, passes=2, weights=weights))
    parts = [
        positions(EpochSampler(10, 4, seed=1, passes=2, rank=rank, world_size=2, weights=weights))
        for rank in (0, 1)
    ]
    assert [[*one, *two] for one, two in zip(*parts, strict=True)] == whole
    assert sum(map(len, whole)) == 20


def test_an_epoch_goes_on_after_some_of_its_batches() -> None:
    sampler = EpochSampler(10, 4, seed=1, passes=2)
    whole = positions(sampler)
    sampler.set_epoch(0, done=3)
    assert positions(sampler) == whole[3:]
