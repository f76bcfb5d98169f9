"""Checks of groups: in two splits, and what keeping them whole does to the fractions."""

from __future__ import annotations

from collections import Counter, defaultdict

from mnft.data.check.findings import CheckInput, Finding
from mnft.data.labels import LabelRules
from mnft.data.manifest import Manifest
from mnft.data.splits import choose_fractions
from mnft.text import count


def check_groups(data: CheckInput, rules: LabelRules, manifest: Manifest | None) -> list[Finding]:
    """Find groups that stand in two splits, and splits that groups make uneven.

    Args:
        data: the data set, and what was found in its files.
        rules: what the labels are.
        manifest: how a training would split it; None where it would refuse to.
    """
    groups = defaultdict(list)
    for image in data.readable:
        if image.group is not None:
            groups[image.group].append(image)
    findings = []
    for name, images in sorted(groups.items()):
        splits = sorted({image.split for image in images if image.split})
        if len(splits) > 1:
            what = f"group {name} stands in {' and '.join(splits)}"
            paths = tuple(image.path for image in images)
            findings.append(Finding("group_leak", True, what, paths))
    config = data.config
    fractions = choose_fractions(
        data.scan.splits, val_fraction=config.val_fraction, test_fraction=config.test_fraction
    )
    if groups and fractions and manifest:
        findings.append(_describe_shares(manifest, rules, fractions, len(groups)))
    return findings


def _describe_shares(
    manifest: Manifest, rules: LabelRules, fractions: dict[str, float], num_groups: int
) -> Finding:
    """What the splits hold, and the label whose fraction is farthest from what was asked."""
    samples = [s for s in manifest.samples if s.split in {"train", *fractions}]
    sizes = Counter(sample.split for sample in samples)
    labels = {split: Counter[str]() for split in ("train", *fractions)}
    for sample in samples:
        labels[sample.split].update(rules.parse(sample.label))
    totals = sum(labels.values(), Counter[str]())
    parts = [
        f"{split} {sizes[split] / len(samples):.1%} of the images (asked: {asked:.1%})"
        for split, asked in fractions.items()
    ]
    _, split, name = max(
        (abs(labels[split][name] / total - asked), split, name)
        for split, asked in fractions.items()
        for name, total in totals.items()
    )
    fraction = labels[split][name] / totals[name]
    alone = sum(sample.group is None for sample in samples)
    loose = f" ({count(alone, 'image')} in no group)" if alone else ""
    what = (
        f"{count(num_groups, 'group')}{loose}, each in one split: {', '.join(parts)}; farthest off "
        f"is {rules.noun} {name}: {fraction:.1%} of its images are in {split}"
    )
    return Finding("group_shares", False, what, ())
