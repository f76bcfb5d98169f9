"""Checks of several labels an image: which are never or always there, rare, or always together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from mnft.data.check.findings import CheckInput, Finding
from mnft.tasks.multilabel.labels import read_label
from mnft.text import count

# With fewer images a label can hardly be learned, and its figures mean little.
_FEW = 20
# A label that fewer than this fraction of the images have is rare.
_RARE = 0.01
_LISTED = 10


def check_labels(data: CheckInput, counts: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    """Find labels that cannot be learned or evaluated, and what is unusual about the others.

    Args:
        data: the data set, and what was found in its files.
        counts: number of images that decode, by split ("all" where there are none) and label.
    """
    learned = [image for image in data.readable if image.split in (None, "train")]
    if not learned:
        return [Finding("class_set", True, "there is no train split", ())]
    names = sorted({name for of_split in counts.values() for name in of_split})
    findings = _check_splits(data, counts, names)
    # Names that were probably meant as one label, such as Hat and hat.
    alike = defaultdict(list)
    for name in names:
        alike["".join(c for c in name.casefold() if c.isalnum()) or name].append(name)
    for same in alike.values():
        if len(same) > 1:
            what = f"labels {' and '.join(same)} differ only in case, spaces or signs"
            findings.append(Finding("similar_classes", False, what, tuple(same)))
    sets = [read_label(image.label) for image in learned]
    sizes = Counter(name for present, _ in sets for name in present)
    # Images of which it is not known whether they have a label say nothing about it.
    known = {name: sum(name not in unknown for _, unknown in sets) for name in sizes}
    if always := [name for name in sizes if sizes[name] == known[name]]:
        what = f"every image to learn from has {_list(sorted(always))}: nothing shows its absence"
        findings.append(Finding("always_present", True, what, tuple(sorted(always))))
    few = sorted((size, name) for name, size in sizes.items() if size < _FEW)
    if few:
        some = _list([f"{name} {size}" for size, name in few])
        what = f"fewer than {_FEW} images to learn from: {some}"
        findings.append(Finding("few_images", False, what, tuple(name for _, name in few)))
    rare = sorted((n / known[name], name) for name, n in sizes.items() if n < _RARE * known[name])
    if rare and not data.needs.is_balanced:
        some = _list([f"{name} {fraction:.2%}" for fraction, name in rare])
        what = f"fewer than {_RARE:.0%} of the images have {some}; train.class_weights: balanced"
        what += " gives them more weight"
        findings.append(Finding("rare_label", False, what, tuple(name for _, name in rare)))
    if empty := sum(not present for present, _ in sets):
        what = f"{count(empty, 'image')} of {len(sets):,} to learn from without any label"
        findings.append(Finding("no_label", False, what, ()))
    return [*findings, *_find_inseparable(sets)]


def _check_splits(
    data: CheckInput, counts: Mapping[str, Mapping[str, int]], names: Sequence[str]
) -> list[Finding]:
    """Find labels that no image has, and those that one split has and another lacks."""
    splits = data.scan.splits
    if splits and "train" not in splits:
        return [Finding("class_set", True, "there is no train split", ())]
    train = counts["train" if splits else "all"]
    findings = [
        Finding("empty_class", True, "no usable image to learn from has the label", (name,))
        for name in names
        if not train.get(name)
    ]
    for split in splits[1:]:
        of_split = counts[split]
        if unknown := [name for name in names if of_split.get(name) and name not in train]:
            what = f"{split} has labels that train has not: {', '.join(unknown)}"
            findings.append(Finding("class_set", True, what, ()))
        if absent := [name for name in names if train.get(name) and not of_split.get(name)]:
            what = f"{split} has no images of: {', '.join(absent)}"
            findings.append(Finding("class_set", False, what, ()))
    return findings


def _find_inseparable(sets: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> list[Finding]:
    """Find labels that always stand together, so that no model can tell them apart."""
    images = defaultdict(list)
    for position, (present, _) in enumerate(sets):
        for name in present:
            images[name].append(position)
    together = defaultdict(list)
    for name, positions in sorted(images.items()):
        together[tuple(positions)].append(name)
    return [
        Finding("same_images", False, f"exactly the same images have {' and '.join(names)}", ())
        for names in together.values()
        if len(names) > 1
    ]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
