"""The stage after fine-tuning: weights between those of the fitted head and the fine-tuned ones.

Fine-tuning on few images may lose more than it finds. On the straight line between the weights that
it began with and those that it ended with there are models that are better than both (Wortsman et
al. 2022, "Robust fine-tuning of zero-shot models"). Fixed BatchNorm statistics make them valid.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from mnft.results import EpochResult
from mnft.training.fit import Judged, join_figures, judge
from mnft.training.training import Training

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the fine-tuned weights


def interpolate(training: Training) -> tuple[EpochResult, Mapping[str, Tensor]]:
    """Evaluate models between the fitted head and the last epoch; the best has the least val loss.

    The loss is that of the calibrated models (`Score.fitted_loss`): accuracy on a few hundred
    images is too coarse, and fine-tuned models with label smoothing are too modest.

    Args:
        training: the training after its last epoch; it is not changed.

    Returns:
        The result of the best model, and its weights.
    """
    state, options = training.state, training.options
    started = time.perf_counter()
    begin, end = state.head_weights, state.evaluated_model.state_dict()
    assert begin is not None
    model = copy.deepcopy(state.evaluated_model)

    def try_out(share: float) -> Judged:
        model.load_state_dict(mix(begin, end, share))
        return judge(model, training.val, options.loop)

    tried = {share: try_out(share) for share in _SHARES}
    share = min(tried, key=lambda share: tried[share].fitted_loss)
    seconds = time.perf_counter() - started
    result = EpochResult(
        epoch=len(state.history),
        epochs=options.epochs,
        figures=join_figures({}, tried[share].figures),
        lr=0.0,
        images_per_s=len(_SHARES) * len(training.contents["val"]) / max(seconds, 1e-9),
        seconds=seconds,
        is_best=True,
        stage="interpolate",
        settings=tried[share].settings,
        share=share,
    )
    return result, mix(begin, end, share)


def mix(begin: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Interpolate linearly; counters, which have no values between, are those of `end`."""
    return {
        name: torch.lerp(begin[name].to(value.device), value, share)
        if value.is_floating_point()
        else value
        for name, value in end.items()
    }
