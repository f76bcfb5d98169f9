"""The config section about what a classifier says, and when it is silent."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mnft.config.section import Section


class DecisionConfig(Section):
    """How sure a classifier must be; both keys are fitted to the val split after each epoch."""

    calibrate: bool = True
    """Fit a temperature to the val split, so that a probability of 0.9 is right 9 times in 10. It
    is kept only if it lowers the loss on val images that it was not fitted to. It never changes
    which class is the most probable."""
    target_accuracy: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Accuracy that the answers shall have. The val split decides from which probability on a class
    is named; below it the answer is `unknown`. Empty: a class is always named. `mnft decide` sets
    it after a training."""
