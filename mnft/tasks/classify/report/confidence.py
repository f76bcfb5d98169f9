"""How far the confidence of a classifier can be trusted, and what a threshold on it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.tasks.classify.decision.calibration import compute_reliability
from mnft.tasks.classify.intervals import compute_wilson_interval
from mnft.tasks.classify.report.images import JudgedImages
from mnft.tasks.panels import Chart, Chooser, Panel, Point, Series, Text

_STEPS = 100  # of the chooser, between 0 and 1


def build_confidence(images: JudgedImages, metrics: Mapping[str, Any]) -> Panel:
    """Show the reliability diagram, and the chooser of a threshold.

    Args:
        images: the judged images.
        metrics: the content of metrics.json, which has the calibration error.
    """
    right = images.predictions == images.targets
    chart = draw_reliability(
        images.confidences,
        right,
        title="Reliability: how often answers of one confidence are right, with 95% intervals",
        x="confidence of the answers",
        what="right",
    )
    order = np.argsort(images.confidences, kind="stable")
    ascending, hits = images.confidences[order], right[order]
    # Right answers among those from each position on.
    remaining = np.append(hits[::-1].cumsum()[::-1], 0)
    steps = []
    for step in range(_STEPS):
        threshold = step / _STEPS
        first = int(np.searchsorted(ascending, threshold))
        steps.append((threshold, len(ascending) - first, int(remaining[first])))
    ece, mean = metrics["expected_calibration_error"], float(images.confidences.mean())
    accuracy = metrics["accuracy"]
    side = "higher" if mean > accuracy else "lower"
    lead = (
        f"On average the model is {mean:.1%} sure and {accuracy:.1%} right, so its confidence is "
        f"rather too {'high' if side == 'higher' else 'low'} than too "
        f"{'low' if side == 'higher' else 'high'}. The expected calibration error is {ece:.3f}; on "
        "a few hundred images much of that is noise."
    )
    note = Text(
        "The threshold was not chosen on these images but by you, looking at them: expect a little "
        "less of new ones. A confident answer to an image of none of the classes is not excluded "
        "by a threshold."
    )
    chooser = Chooser(
        "What is below the threshold goes to a person; what of the rest is right?",
        len(images.paths),
        steps,
    )
    return Panel("confidence", "Confidence", lead, [chart, chooser, note])


def draw_reliability(
    probabilities: NDArray[Any], true: NDArray[Any], *, title: str, x: str, what: str
) -> Chart:
    """Draw how often what got a probability is true, in the bins of the calibration error.

    Args:
        probabilities: (N,) float in [0, 1].
        true: (N,) bool.
        title: what the chart shows.
        x: what the probabilities are.
        what: what a true one is called, such as "right".
    """
    points = []
    for b in compute_reliability(probabilities, true):
        if b.num_images:
            low, high = compute_wilson_interval(b.num_correct, b.num_images)
            name = f"{b.num_correct} of {b.num_images} {what}"
            points.append(Point(b.confidence, b.num_correct / b.num_images, low, high, name))
    series = [Series("in groups", points, line=False)]
    return Chart(title, x, f"fraction that is {what}", series, percent=True, diagonal=True)
