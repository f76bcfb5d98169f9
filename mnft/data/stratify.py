"""A cut that keeps groups of images whole, and balances images that have several labels."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mnft.data.folder import ImageFile
from mnft.data.labels import LabelRules
from mnft.errors import DataError

# Both steps are greedy, so the order of equal groups matters: so many orders are tried, and fewer
# of many groups, which no order leaves uneven.
_ORDERS, _MAX_DEALT = 8, 20_000
_MAX_SWEEPS = 20
# Two labels more: images without a label, and all images, so that the sizes of the splits count.
# Names of labels are stripped, so none begins with a space.
_NONE, _ANY = " none", " any"


@dataclass(frozen=True, slots=True)
class _Unit:
    """Contents that must stay together, with the number of them that have each label."""

    contents: tuple[str, ...]
    labels: Mapping[str, int]


def carve_units(
    images: Sequence[ImageFile],
    hashes: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
    known: Mapping[str, str],
    rules: LabelRules,
) -> dict[str, str]:
    """Choose the splits of contents by iterative stratification of whole groups.

    The rarest label is dealt out first, the largest group of it first, each to the split that lacks
    that label most (Sechidis, Tsoumakas, Vlahavas 2011, "On the Stratification of Multi-Label
    Data", ECML PKDD, algorithm 1). Then groups are moved as long as that brings the labels nearer
    to the fractions. The best of several orders, which follow from seed and contents, is taken.

    Args:
        images: the images to split.
        hashes: content of each image, by path.
        fractions: fractions of the splits that are taken from train.
        seed: seed of the cut.
        known: the split of contents that is decided already; their groups follow them.
        rules: what the labels are.

    Returns:
        The split of each content.

    Raises:
        DataError: there are too few groups.
    """
    units = _join(images, hashes, rules)
    wanted = {"train": 1 - sum(fractions.values()), **fractions}
    if len(units) < len(wanted):
        what = "groups" if any(image.group for image in images) else "different images"
        raise DataError(
            f"found {len(units)} {what}, too few to split into {', '.join(wanted)}",
            hint="make the splits yourself, or set data.test_fraction: 0",
        )
    totals = Counter[str]()
    for unit in units:
        totals.update(unit.labels)
    distance, chosen = math.inf, dict[str, str]()
    for number in range(max(1, min(_ORDERS, _MAX_DEALT // len(units)))):
        dealt = _deal(units, totals, wanted, f"{seed}:{number}", known)
        improved = dealt | _improve(units, totals, wanted, dealt, known)
        if (found := _measure(units, totals, wanted, improved)) < distance:
            distance, chosen = found, improved
    if missing := [name for name in wanted if name not in chosen.values()]:
        raise DataError(
            f"no group is small enough for the {' and '.join(missing)} split",
            hint="the groups are too few or too large; make the splits yourself",
        )
    return chosen


def _join(images: Sequence[ImageFile], hashes: Mapping[str, str], rules: LabelRules) -> list[_Unit]:
    """Contents of one group, and groups that share a content, as one unit; in a fixed order."""
    parents: dict[str, str] = {}

    def find(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    names: dict[str, tuple[str, ...]] = {}
    for image in images:
        content = hashes[image.path]
        # A content that stands there twice counts once, with the labels of the first.
        names.setdefault(content, (*(rules.parse(image.label) or (_NONE,)), _ANY))
        if image.group is not None:
            first, second = sorted((find(content), find(f"group {image.group}")))
            parents[second] = first
    members: dict[str, list[str]] = defaultdict(list)
    for content in names:
        members[find(content)].append(content)
    return [
        _Unit(tuple(contents), Counter(name for c in contents for name in names[c]))
        for contents in sorted(map(sorted, members.values()))
    ]


def _deal(
    units: Sequence[_Unit],
    totals: Mapping[str, int],
    wanted: Mapping[str, float],
    seed: str,
    known: Mapping[str, str],
) -> dict[str, str]:
    """Deal the units out, the rarest label first."""
    lacks = {
        split: {label: fraction * total for label, total in totals.items()}
        for split, fraction in wanted.items()
    }
    room = {split: sum(of_split.values()) for split, of_split in lacks.items()}
    chosen: dict[str, str] = {}

    def give(unit: _Unit, split: str) -> None:
        chosen.update(dict.fromkeys(unit.contents, split))
        if split in lacks:  # else a split of another run that this one does not fill
            room[split] -= sum(unit.labels.values())
            for label, number in unit.labels.items():
                lacks[split][label] -= number

    left: dict[str, list[tuple[bytes, _Unit]]] = defaultdict(list)
    remaining = Counter[str]()
    for unit in units:
        if decided := Counter(known[content] for content in unit.contents if content in known):
            give(unit, max(sorted(decided), key=decided.__getitem__))
            chosen.update({c: known[c] for c in unit.contents if c in known})
            continue
        key = hashlib.sha256(f"{seed}:{unit.contents[0]}".encode()).digest()
        remaining.update(unit.labels)
        for label in unit.labels:
            left[label].append((key, unit))
    while remaining:
        rarest = min(remaining, key=lambda label: (remaining[label], label))
        for _, unit in sorted(left[rarest], key=lambda pair: (-pair[1].labels[rarest], pair[0])):
            if unit.contents[0] in chosen:
                continue
            give(unit, max(lacks, key=lambda split: (lacks[split][rarest], room[split])))
            remaining.subtract(unit.labels)
        remaining = +remaining  # without the labels that are dealt out
    for split in wanted:
        sizes = Counter(chosen[unit.contents[0]] for unit in units)
        movable = [unit for _, unit in left[_ANY] if sizes[chosen[unit.contents[0]]] > 1]
        if not sizes[split] and movable:
            give(min(movable, key=lambda unit: (len(unit.contents), unit.contents)), split)
    return chosen


def _improve(
    units: Sequence[_Unit],
    totals: Mapping[str, int],
    wanted: Mapping[str, float],
    chosen: Mapping[str, str],
    known: Mapping[str, str],
) -> dict[str, str]:
    """Move units, one at a time, while the distance of `_measure` falls."""
    free = [unit for unit in units if known.keys().isdisjoint(unit.contents)]
    places = [chosen[unit.contents[0]] for unit in free]
    counts = _count(units, chosen)
    sizes = Counter(chosen[unit.contents[0]] for unit in units)

    def gain(split: str, unit: _Unit, sign: int) -> float:
        """What the split comes nearer by, if it takes (1) or gives away (-1) the unit."""
        return sum(
            (counts[split][label] / totals[label] - wanted[split]) ** 2
            - ((counts[split][label] + sign * number) / totals[label] - wanted[split]) ** 2
            for label, number in unit.labels.items()
        )

    for _ in range(_MAX_SWEEPS):
        moved = False
        for place, unit in enumerate(free):
            old = places[place]
            if old not in wanted or sizes[old] == 1:
                continue
            gains = {new: gain(new, unit, 1) for new in wanted if new != old}
            new = max(gains, key=gains.__getitem__)
            if gains[new] + gain(old, unit, -1) > 1e-9:
                counts[old].subtract(unit.labels)
                counts[new].update(unit.labels)
                sizes[old] -= 1
                sizes[new] += 1
                places[place], moved = new, True
        if not moved:
            break
    pairs = zip(free, places, strict=True)
    return {content: split for unit, split in pairs for content in unit.contents}


def _measure(
    units: Sequence[_Unit],
    totals: Mapping[str, int],
    wanted: Mapping[str, float],
    chosen: Mapping[str, str],
) -> float:
    """How far the labels are from the fractions: a sum of squares, so one far off counts most."""
    counts = _count(units, chosen)
    return sum(
        (counts[split][label] / total - fraction) ** 2
        for label, total in totals.items()
        for split, fraction in wanted.items()
    )


def _count(units: Sequence[_Unit], chosen: Mapping[str, str]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for unit in units:
        counts[chosen[unit.contents[0]]].update(unit.labels)
    return counts
