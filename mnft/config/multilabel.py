"""The config section about images with several labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mnft.config.section import NotNegative, Section, UnitIntervalOpen


class MultilabelConfig(Section):
    """What only `task: multilabel` has: its loss, and how a label's threshold is chosen."""

    loss: Literal["bce", "asymmetric"] = "bce"
    """`bce` is binary cross-entropy for each label. `asymmetric` gives less weight to labels that
    are absent and recognised as such (Ridnik et al. 2021), which can help if images have few of
    many labels; its probabilities are no longer calibrated."""
    gamma_neg: NotNegative = 4.0
    """Focusing exponent of the asymmetric loss for labels that are absent."""
    gamma_pos: NotNegative = 0.0
    """Focusing exponent of the asymmetric loss for labels that are present: 0 or 1."""
    clip: UnitIntervalOpen = 0.05
    """Probability below which an absent label costs nothing in the asymmetric loss."""
    threshold: Literal["f1", "precision"] = "f1"
    """How the probability is chosen, for each label on the val split, from which on an image has
    the label: `f1` takes the threshold with the largest F1, `precision` the lowest one that reaches
    multilabel.min_precision. They are stored with the model."""
    min_precision: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Precision that each label must have on the val split with multilabel.threshold: precision. A
    label that never reaches it gets the threshold with its highest precision."""
