"""Several labels an image: their targets, the weights of images, and counting exact matches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mnft.data.manifest import Sample
from mnft.errors import DataError
from mnft.tasks.multilabel.labels import parse, read_label


def encode(samples: Sequence[Sample], labels: tuple[str, ...]) -> list[list[float]]:
    """Give each sample a number for each label: 1 present, 0 absent, NaN unknown.

    A label that is unknown for an image and that the model does not have says nothing, so it is
    passed over.

    Args:
        samples: the images.
        labels: K names, in the order of the outputs.

    Raises:
        DataError: an image has a label that the model does not know.
    """
    places = {name: place for place, name in enumerate(labels)}
    targets, unfit = [], set()
    for sample in samples:
        present, unknown = read_label(sample.label)
        row = [0.0] * len(labels)
        for name in unknown:
            if name in places:
                row[places[name]] = float("nan")
        for name in present:
            if name in places:
                row[places[name]] = 1.0
            else:
                unfit.add(name)
        targets.append(row)
    if unfit:
        names = sorted(unfit)
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        raise DataError(
            f"the split has labels that the model does not know: {', '.join(names[:10])}{more}",
            hint="the label names of the model, or split.json, were changed after the training: "
            "restore them from a copy",
        )
    return targets


def weigh(samples: Sequence[Sample], labels: tuple[str, ...]) -> list[float]:
    """Give each sample the weight of its rarest label, for `train.sampler: balanced`.

    The weight of a label is N / (K * its images). An image without any label weighs as little as
    one that has only the most frequent label.

    Args:
        samples: N images.
        labels: K names.
    """
    named = [parse(sample.label) for sample in samples]
    counts = Counter(name for names in named for name in names)
    most = max(counts.values(), default=1)
    rarest = [min((counts[name] for name in names), default=most) for names in named]
    return [len(samples) / (len(labels) * count) for count in rarest]


def count_exact(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """The running sums that a batch adds to, left on the device: reading them waits for it.

    Args:
        loss: scalar, summed over the images and their labels.
        logits: (B, K).
        targets: (B, K) float: 1, 0, between the two where images are mixed, or NaN.

    Returns:
        (3,) float: loss summed over images, of each the mean over labels; the number of images all
        of whose known labels are decided right at a probability of 0.5; and the number of images
        of which a label is known.
    """
    unknown = targets.isnan()
    known = ~unknown.all(1)
    right = (((logits >= 0) == (targets >= 0.5)) | unknown).all(1) & known
    mean = loss.detach() / logits.shape[1]
    return torch.stack([mean, right.sum().float(), known.sum().float()])
