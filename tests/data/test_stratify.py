"""The cut that keeps groups whole and balances several labels."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mnft.data.folder import ImageFile
from mnft.data.stratify import carve_units
from mnft.errors import DataError
from mnft.tasks.classify.labels import RULES

FRACTIONS = {"val": 0.15, "test": 0.15}


def parse(label: str) -> tuple[str, ...]:
    return tuple(label.split(";")) if label else ()


SEVERAL = replace(RULES, exclusive=False, parse=parse)


def digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def cut(
    images: Sequence[ImageFile],
    seed: int = 0,
    known: Mapping[str, str] | None = None,
    fractions: Mapping[str, float] = FRACTIONS,
    hashes: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The split of each path."""
    contents = hashes or {image.path: digest(image.path) for image in images}
    chosen = carve_units(images, contents, fractions, seed, known or {}, SEVERAL)
    return {image.path: chosen[contents[image.path]] for image in images}


def draw(groups: int, most: int, labels: str = "abcdef") -> list[ImageFile]:
    """Groups of 1 to `most` images, whose labels are alike."""
    rng = np.random.default_rng(groups)
    images = []
    for group in range(groups):
        likely = rng.random(len(labels)) ** 3
        for number in range(rng.integers(1, most + 1)):
            chosen = [name for name, p in zip(labels, likely, strict=True) if rng.random() < p]
            images.append(ImageFile(f"{group}/{number}", ";".join(chosen), None, f"g{group}"))
    return images


def test_groups_stay_whole_and_labels_come_near_to_the_fractions() -> None:
    images = draw(200, 12)
    splits = cut(images)
    by_group = defaultdict(set)
    for image in images:
        by_group[image.group].add(splits[image.path])
    assert all(len(found) == 1 for found in by_group.values())
    sizes = Counter(splits.values())
    assert sizes["val"] / len(images) == pytest.approx(0.15, abs=0.01)
    for name in "abcdef":
        having = [splits[image.path] for image in images if name in parse(image.label)]
        for split, fraction in FRACTIONS.items():
            assert having.count(split) / len(having) == pytest.approx(fraction, abs=0.02)


def test_one_large_group_goes_to_train() -> None:
    """A sender of a sixth of the images would fill val, whatever its rarest label wants."""
    rng = np.random.default_rng(0)
    images = [ImageFile(f"large/{i}", "abc"[i % 3], None, "large") for i in range(170)]
    for i in range(830):
        label = "abc"[rng.choice(3, p=[0.9, 0.08, 0.02])]
        images.append(ImageFile(f"{i // 4}/{i}", label, None, f"g{i // 4}"))
    splits = cut(images)
    assert splits["large/0"] == "train"
    assert Counter(splits.values())["val"] == pytest.approx(150, abs=10)


def test_several_labels_without_groups() -> None:
    images = [replace(image, group=None) for image in draw(120, 5)]
    splits = cut(images)
    assert "" in {image.label for image in images}  # such images are dealt out too
    for name in ("", *"abcdef"):
        having = [splits[image.path] for image in images if name in (parse(image.label) or ("",))]
        assert abs(having.count("val") - 0.15 * len(having)) <= 2


def test_it_follows_from_seed_and_contents_alone() -> None:
    images = draw(60, 6)
    splits = cut(images)
    assert cut(images[::-1]) == splits
    renamed = [replace(image, path=f"x{image.path}", group=f"of {image.group}") for image in images]
    hashes = {new.path: digest(old.path) for new, old in zip(renamed, images, strict=True)}
    again = cut(renamed, hashes=hashes)
    assert {f"x{path}": split for path, split in splits.items()} == again
    assert cut(images, seed=1) != splits


def test_groups_that_share_a_content_are_one() -> None:
    images = draw(40, 3)
    first, other = images[0], next(i for i in images if i.group != images[0].group)
    hashes = {image.path: digest(image.path) for image in images}
    for seed in range(5):
        splits = cut(images, seed=seed, hashes=hashes | {other.path: hashes[first.path]})
        both = {splits[i.path] for i in images if i.group in {first.group, other.group}}
        assert len(both) == 1


def test_a_known_content_takes_its_group_along() -> None:
    images = draw(40, 6)
    large = max({i.group for i in images}, key=[i.group for i in images].count)
    member = next(i for i in images if i.group == large)
    splits = cut(images, known={digest(member.path): "test"})
    assert {splits[i.path] for i in images if i.group == large} == {"test"}
    # Also into a split that this cut does not fill.
    alone = cut(images, known={digest(member.path): "test"}, fractions={"val": 0.2})
    assert {splits[i.path] for i in images if i.group == large} == {"test"}
    assert {path for path, split in alone.items() if split == "test"} == {
        i.path for i in images if i.group == large
    }


@pytest.mark.parametrize("groups", [1, 2])
def test_too_few_groups(groups: int) -> None:
    images = [ImageFile(f"{i}", "ab"[i % 2], None, f"g{i % groups}") for i in range(20)]
    with pytest.raises(DataError, match=f"found {groups} groups, too few to split into train, val"):
        cut(images)


def test_three_groups_make_three_splits() -> None:
    images = [ImageFile(f"{i}", "ab"[i % 2], None, f"g{i % 3}") for i in range(30)]
    assert set(cut(images).values()) == {"train", "val", "test"}
