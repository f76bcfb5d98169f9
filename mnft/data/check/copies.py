"""The same image more than once: in one class, in two classes, in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mnft.data.check.findings import CheckInput, Finding
from mnft.data.check.perceptual import MAX_PAIRS, Pairs, Thumbnail, list_alike
from mnft.data.folder import ImageFile

_RANKS = {"train": 0, "val": 1, "test": 2}
# Fraction of the images that may look like another one before looking alike says nothing: digits,
# forms and X-rays look alike by nature. Below the count it is never too many.
_ALIKE_FRACTION = 0.1
_ALIKE_COUNT = 20


@dataclass(frozen=True, slots=True)
class _Group:
    """Contents that look alike: the files of each, and pairs with whether they are one image."""

    contents: Mapping[str, Sequence[ImageFile]]
    pairs: Sequence[tuple[str, str, bool]]

    @property
    def images(self) -> list[ImageFile]:
        return sorted((i for c in self.contents.values() for i in c), key=lambda i: i.path)


def list_copies(data: CheckInput) -> list[Finding]:
    """Files with the same bytes."""
    findings = []
    for images in _by_content(data).values():
        if len(images) < 2:
            continue
        paths = tuple(image.path for image in images)
        splits = {image.split for image in images}
        classes = {data.name_labels(image) for image in images}
        # Only a person knows which of two classes is right, so neither is learned.
        surplus = paths if len(classes) > 1 else _all_but_one(data, images)
        if len(splits) > 1:
            what = f"the same image in {' and '.join(sorted(map(str, splits)))}"
            findings.append(Finding("leak", True, what, paths, surplus))
        if len(classes) > 1:
            what = f"the same image in {data.rules.plural} {' and '.join(sorted(classes))}"
            findings.append(Finding("label_conflict", True, what, paths, surplus))
        if len(splits) == len(classes) == 1:
            what = "the same image more than once"
            findings.append(Finding("duplicate", False, what, paths, surplus))
    return findings


def list_near_copies(data: CheckInput) -> list[Finding]:
    """Files of other bytes that show the same: saved again, resized, cropped a little."""
    by_content = {
        sha256: images
        for sha256, images in _by_content(data).items()
        if get_thumbnail(data, images[0]) is not None
    }
    contents = list(by_content)
    thumbnails = [t for c in contents if (t := get_thumbnail(data, by_content[c][0]))]
    pairs = list_alike(thumbnails)
    findings = []
    if not pairs.is_complete:
        what = f"over {MAX_PAIRS:,} pairs of images look alike; not all of them were compared"
        findings.append(Finding("many_alike", False, what, ()))
    alike = len(np.unique(pairs.places[~pairs.is_tight]))
    if alike > max(_ALIKE_COUNT, _ALIKE_FRACTION * len(contents)):
        tight = pairs.is_tight
        pairs = Pairs(pairs.places[tight], pairs.is_tight[tight], pairs.is_complete)
        what = (
            f"{alike:,} of {len(contents):,} images look like another one, as digits or forms "
            "do; only those that are one image, saved again, are named"
        )
        findings.append(Finding("many_alike", False, what, ()))
    labels = _connect(pairs.places, len(contents))
    edges: dict[int, list[tuple[str, str, bool]]] = defaultdict(list)
    for (first, second), tight in zip(pairs.places.tolist(), pairs.is_tight.tolist(), strict=True):
        edges[labels[first]].append((contents[first], contents[second], tight))
    for pairs_of_group in edges.values():
        members = dict.fromkeys(content for pair in pairs_of_group for content in pair[:2])
        group = _Group({content: by_content[content] for content in members}, pairs_of_group)
        findings += _describe_group(data, group)
    return findings


def get_thumbnail(data: CheckInput, image: ImageFile) -> Thumbnail | None:
    """What an image is compared by; None where it is too small or too plain to be compared."""
    stats = data.files[image.path].stats
    return stats.thumbnail if stats else None


def _by_content(data: CheckInput) -> dict[str, list[ImageFile]]:
    by_content: dict[str, list[ImageFile]] = defaultdict(list)
    for image in data.readable:
        by_content[data.inspection(image).sha256].append(image)
    return by_content


def _connect(places: Any, count: int) -> list[int]:
    """The component of each of `count` places."""
    ones = np.ones(len(places), dtype=np.int8)
    graph = coo_array((ones, (places[:, 0], places[:, 1])), shape=(count, count))
    labels: list[int] = connected_components(graph, directed=False)[1].tolist()
    return labels


def _describe_group(data: CheckInput, group: _Group) -> Iterator[Finding]:
    images = group.images
    paths = tuple(image.path for image in images)
    splits = {s for i in images if (s := data.splits.get(i.path))}
    classes = {data.name_labels(image) for image in images}
    surplus = _surplus(data, group)
    doubtful = tuple(p for p in _all_but_one(data, images) if p not in surplus)
    if len(splits) > 1:
        tight = _is_tight_across(group, lambda image: data.splits.get(image.path))
        where = " and ".join(sorted(splits))
        given = {i.split for i in images} >= splits
        there = f"in {where}" if given else f"which the split would put into {where}"
        what = f"{_likeness(tight=tight)} {there}"
        yield Finding("near_leak", tight, what, paths, surplus, doubtful)
    if len(classes) > 1:
        tight = _is_tight_across(group, data.name_labels)
        what = f"{_likeness(tight=tight)} in {data.rules.plural} {' and '.join(sorted(classes))}"
        yield Finding("near_conflict", tight, what, paths, surplus, doubtful)
    if len(splits) < 2 and len(classes) < 2:
        tight = any(tight for *_, tight in group.pairs)
        what = _likeness(tight=tight) + (" more than once" if tight else "")
        yield Finding("near_duplicate", False, what, paths, surplus, doubtful)


def _likeness(*, tight: bool) -> str:
    return "the same image, saved again," if tight else "images that look alike"


def _is_tight_across(group: _Group, key: Any) -> bool:
    """Whether copies of one image differ in what `key` gives."""
    return any(
        tight and len({key(image) for c in (first, second) for image in group.contents[c]}) > 1
        for first, second, tight in group.pairs
    )


def _surplus(data: CheckInput, group: _Group) -> tuple[str, ...]:
    """All files except one of each set of copies; all files where a set has two classes."""
    contents = list(group.contents)
    place = {content: number for number, content in enumerate(contents)}
    tight = [(place[first], place[second]) for first, second, tight in group.pairs if tight]
    if not tight:
        return ()
    labels = _connect(np.array(tight), len(contents))
    sets: dict[int, list[ImageFile]] = defaultdict(list)
    for content, number in zip(contents, labels, strict=True):
        sets[number] += group.contents[content]
    left: list[str] = []
    for images in sets.values():
        if len({data.name_labels(image) for image in images}) > 1:
            left += [image.path for image in images]
        elif len({data.inspection(image).sha256 for image in images}) > 1:
            left += _all_but_one(data, images)
    return tuple(sorted(left))


def _all_but_one(data: CheckInput, images: Iterable[ImageFile]) -> tuple[str, ...]:
    """All except the one that is kept: one of the test split, else of val, else the first."""

    def order(image: ImageFile) -> tuple[int, str]:
        split = data.splits.get(image.path) or image.split or "train"
        return -_RANKS[split], image.path

    return tuple(sorted(image.path for image in sorted(images, key=order)[1:]))
