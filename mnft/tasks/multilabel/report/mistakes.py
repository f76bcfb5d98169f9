"""The wrong decisions of a multi-label classifier as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mnft.tasks.multilabel.report.images import Decisions
from mnft.tasks.panels import Gallery, Panel, Picture, Text, choose_shown

MISSED, SURPLUS = "missed", "surplus"


def build_mistakes(decisions: Decisions, labels: Sequence[str], limit: int) -> Panel:
    """Show the most confident wrong decisions, and at least one of each label and kind.

    Args:
        decisions: the decisions.
        labels: K names.
        limit: largest number of pictures.
    """
    wrong: list[tuple[float, int, int, str]] = []
    for kind, where in ((MISSED, decisions.missed), (SURPLUS, decisions.surplus)):
        for image, label in np.argwhere(where).tolist():
            p = float(decisions.probabilities[image, label])
            wrong.append((1 - p if kind == MISSED else p, image, label, kind))
    wrong.sort(key=lambda entry: (-entry[0], *entry[1:]))
    if not wrong:
        lead = f"All labels of all {len(decisions.paths):,} images were decided right."
        return Panel("mistakes", "Mistakes", lead, [Text("There is nothing to show.", "good")])
    numbers = Counter(entry[2:] for entry in wrong)
    chosen = choose_shown(wrong, lambda entry: entry[2:], limit)
    pictures = [
        Picture(
            path=decisions.paths[image],
            group=build_key(label, kind),
            answer=f"no {labels[label]}" if kind == MISSED else labels[label],
            sure=sure,
            label=_join(decisions, labels, image),
            output=label,
        )
        for sure, image, label, kind in chosen
    ]
    shown = {picture.group for picture in pictures}
    groups = {
        build_key(label, kind): (
            f"{labels[label]} {'missed' if kind == MISSED else 'seen where it is not'}",
            number,
        )
        for (label, kind), number in numbers.most_common()
        if build_key(label, kind) in shown
    }
    images = len({image for _, image, _, _ in wrong})
    lead = (
        f"{len(wrong):,} wrong decisions on {images:,} of {len(decisions.paths):,} images; the "
        "ones that the model was surest of come first. Look here for labels that are wrong or "
        "forgotten."
    )
    gallery = Gallery("Wrong decisions", pictures, groups, len(wrong))
    return Panel("mistakes", "Mistakes", lead, [gallery])


def build_key(label: int, kind: str) -> str:
    """The key of the pictures of one label that was missed, or seen where it is not."""
    return f"{label}-{kind}"


def _join(decisions: Decisions, labels: Sequence[str], image: int) -> str:
    present = [labels[k] for k in np.flatnonzero(decisions.present[image]).tolist()]
    return ", ".join(present) or "no label"
