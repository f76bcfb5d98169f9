"""The mistakes of a classifier as pictures, and the confusion matrix whose cells lead to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from mnft.tasks.classify.report.images import JudgedImages
from mnft.tasks.panels import (
    Block,
    Cell,
    Gallery,
    Matrix,
    Panel,
    Picture,
    Table,
    Text,
    choose_shown,
)
from mnft.text import count

# With more classes a matrix cannot be taken in, and its worst pairs are listed.
MAX_MATRIX = 40
_WORST_PAIRS = 30


def build_mistakes(images: JudgedImages, class_names: Sequence[str], limit: int) -> Panel:
    """Show the most confident mistakes, and at least one of each pair of classes.

    Args:
        images: the judged images.
        class_names: C names.
        limit: largest number of pictures.
    """
    wrong = images.wrong.tolist()
    pairs = Counter(_pair(images, position) for position in wrong)
    if not wrong:
        text = f"None of the {count(len(images.paths), 'image')} was named wrong."
        return Panel("mistakes", "Mistakes", text, [Text("There is nothing to show.", "good")])
    chosen = choose_shown(wrong, lambda position: _pair(images, position), limit)
    pictures = [
        Picture(
            path=images.paths[position],
            group=_key(_pair(images, position)),
            answer=class_names[images.predictions[position]],
            sure=float(images.confidences[position]),
            label=class_names[images.targets[position]],
            more=f"{images.own[position]:.1%}",
            output=int(images.predictions[position]),
        )
        for position in chosen
    ]
    shown = {picture.group for picture in pictures}
    groups = {
        _key(pair): (f"{class_names[pair[0]]} taken for {class_names[pair[1]]}", number)
        for pair, number in pairs.most_common()
        if _key(pair) in shown
    }
    lead = (
        f"{count(len(wrong), 'image')} of {len(images.paths):,} got another class than their own; "
        "the ones that the model was surest of come first. Look here for wrong labels, for "
        "classes that overlap, and for photographs that a person could not name either."
    )
    gallery = Gallery("Wrong answers", pictures, groups, len(wrong))
    return Panel("mistakes", "Mistakes", lead, [gallery])


def build_confusion(
    images: JudgedImages, class_names: Sequence[str], shown: Collection[str]
) -> Panel:
    """Show which classes are taken for which: all of them, or the worst pairs of many.

    Args:
        images: the judged images.
        class_names: C names.
        shown: keys of the pairs that pictures are shown of, to which cells lead.
    """
    counts = Counter(zip(images.targets.tolist(), images.predictions.tolist(), strict=True))
    support = np.bincount(images.targets, minlength=len(class_names))
    wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]]
    rows = [
        [
            class_names[true],
            class_names[said],
            _cell(class_names, (true, said), n, int(support[true]), shown),
            Cell(f"{n / support[true]:.1%}", n / support[true], bar=n / support[true]),
        ]
        for (true, said), n in wrong[:_WORST_PAIRS]
    ]
    left_out = len(wrong) - len(rows)
    title = "The most frequent confusions" + (f" ({left_out:,} more pairs)" if left_out else "")
    headings = ["true", "predicted", "images", "of the true class"]
    small = len(class_names) <= MAX_MATRIX
    pairs: list[Block] = [Table(title, headings, rows, sortable=True, folded=small)] if rows else []
    if not small:
        lead = f"With {len(class_names):,} classes the pairs say more than a matrix would."
        return Panel("confusion", "Confusion", lead, pairs or [Text("No confusions.", "good")])
    cells = [
        [
            _cell(class_names, (row, column), counts[row, column], int(support[row]), shown)
            for column in range(len(class_names))
        ]
        for row in range(len(class_names))
    ]
    lead = "Each row is a class, each column what the model said. A number leads to its images."
    matrix = Matrix("Confusion matrix", "true", "predicted", class_names, cells)
    return Panel("confusion", "Confusion", lead, [matrix, *pairs])


def _cell(
    class_names: Sequence[str],
    pair: tuple[int, int],
    n: int,
    support: int,
    shown: Collection[str],
) -> Cell:
    fraction = n / support if support else 0.0
    link = _key(pair) if _key(pair) in shown else None
    return Cell(str(n or ""), n, bar=fraction, link=link, label=_say(class_names, pair, n))


def _say(class_names: Sequence[str], pair: tuple[int, int], n: int) -> str:
    return f"{class_names[pair[0]]} taken for {class_names[pair[1]]}: {count(n, 'image')}"


def _pair(images: JudgedImages, position: int) -> tuple[int, int]:
    return int(images.targets[position]), int(images.predictions[position])


def _key(pair: tuple[int, int]) -> str:
    return f"{pair[0]}-{pair[1]}"
