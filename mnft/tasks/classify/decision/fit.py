"""Fit the decision of a model to the val split, and say what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnft.config.decision import DecisionConfig
from mnft.tasks.classify.decision.calibration import compute_losses, fit_temperature
from mnft.tasks.classify.decision.record import KEY, Decision
from mnft.tasks.classify.decision.threshold import MIN_KEPT, answer, choose_threshold
from mnft.tasks.classify.decision.unknown import judge_unknown
from mnft.tasks.classify.metrics import softmax
from mnft.tasks.outputs import Remark


def fit_decision(
    logits: NDArray[Any],
    targets: NDArray[Any],
    config: DecisionConfig,
    other: int | None,
) -> Decision:
    """Fit temperature and threshold.

    Args:
        logits: (N, K) float, finite, for the images of the val split.
        targets: (N,) int in [0, K).
        config: whether to calibrate, and the accuracy that the answers shall have.
        other: the output for images of none of the classes, or None. They take part in the
            temperature, but not in the accuracy.
    """
    temperature = fit_temperature(logits, targets) if config.calibrate else 1.0
    scaled = logits.astype(np.float64) / temperature
    val: dict[str, Any] = {}
    if temperature != 1:
        before, after = compute_losses(logits, targets), compute_losses(scaled, targets)
        val |= {"loss_before": float(before.mean()), "loss": float(after.mean())}
    threshold = None
    if config.target_accuracy is not None or other is not None:
        predicted, scores = answer(softmax(scaled), other)
        known = targets != other if other is not None else np.ones(len(targets), dtype=bool)
        if config.target_accuracy is not None:
            correct = (predicted == targets)[known]
            chosen, best = choose_threshold(scores[known], correct, config.target_accuracy)
            val["images"] = int(known.sum())
            if chosen is not None:
                threshold = chosen.threshold
                val |= chosen.as_record()
            elif best is not None:
                val["best"] = best.as_record()
        if known.any() and not known.all():
            unknown = judge_unknown(scores[known], scores[~known], threshold)
            val["other"] = {"images": unknown.num_images, "accepted": unknown.accepted}
    return Decision(temperature, threshold, config.target_accuracy, other, val)


def describe_decision(settings: Mapping[str, Any]) -> list[Remark]:
    """What was fitted, for people.

    Args:
        settings: the settings of a model, as `record.as_settings` makes them.
    """
    found = settings.get(KEY)
    if not found:
        return []
    val, target, remarks = found["val"], found["target_accuracy"], []
    if "loss_before" in val:
        remarks.append(
            Remark(
                f"calibrated: temperature {found['temperature']:.3g}, which lowers the loss on val "
                f"from {val['loss_before']:.4f} to {val['loss']:.4f}"
            )
        )
    if found["threshold"] is not None:
        low, high = val["interval"]
        named = "a class is always named"
        if found["threshold"] > 0:
            named = f"a class is named from a probability of {found['threshold']:g} on"
        remarks.append(
            Remark(
                f"decision: {named}; on val these are {val['kept']:.1%} of {val['images']:,} "
                f"images, {val['accuracy']:.1%} of them right (95% interval {low:.1%} to "
                f"{high:.1%})"
            )
        )
    elif target is not None and "best" in val:
        best = val["best"]
        low, high = best["interval"]
        remarks.append(
            Remark(
                f"decision: no threshold gives an accuracy of {target:.4g} on val, so a class is "
                f"always named; the best is {best['accuracy']:.4f} (95% interval {low:.4f} to "
                f"{high:.4f}) of the {best['kept']:.1%} of {best['images']:,} images from a "
                f"probability of {best['threshold']:g} on",
                hint="a lower target: mnft decide RUN --target-accuracy X; or more images, a "
                "larger model, a check of the labels (mnft data check --ckpt RUN)",
                is_warning=True,
            )
        )
    elif target is not None:
        remarks.append(
            Remark(
                f"decision: of {val['images']} val images too few have a class, so no threshold "
                f"was looked for; at least {MIN_KEPT} answers are needed to judge one",
                hint="a larger val split, then mnft decide RUN --target-accuracy X",
                is_warning=True,
            )
        )
    if "other" in val:
        remarks.append(
            Remark(
                f"other: {val['other']['accepted']:.1%} of {val['other']['images']:,} val images "
                "of none of the classes are taken for a class"
            )
        )
    return remarks
