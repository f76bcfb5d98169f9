"""What a model keeps of its decision, and in which form; light, as LiteRT's environment imports it.

Model folders and exports keep it as JSON under the key `decision` of the task's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mnft.errors import ModelError

KEY = "decision"
UNKNOWN = "unknown"  # the answer where no class is named


@dataclass(frozen=True, slots=True)
class Decision:
    """When a class is named, and what an image's probabilities are.

    Attributes:
        temperature: what the logits of the trained weights are divided by; 1 leaves them.
        threshold: least probability of the most probable class with which it is named; None where
            a class is always named.
        target_accuracy: the accuracy that the threshold was chosen for, or could not reach.
        other: the output for images of none of the classes, which is never named; None without one.
        val: how the val split was answered when this was fitted; JSON values.
    """

    temperature: float = 1.0
    threshold: float | None = None
    target_accuracy: float | None = None
    other: int | None = None
    val: Mapping[str, Any] = field(default_factory=dict)


def as_settings(decision: Decision) -> dict[str, Any]:
    """The decision as model folders and exports keep it; empty where nothing was fitted."""
    if not decision.val:
        return {}
    return {
        KEY: {
            "score": "probability",
            "temperature": decision.temperature,
            "threshold": decision.threshold,
            "target_accuracy": decision.target_accuracy,
            "other_index": decision.other,
            "val": dict(decision.val),
        }
    }


def read_settings(settings: Mapping[str, Any]) -> Decision:
    """The decision of a model; a model without settings names a class always.

    Raises:
        ModelError: the settings are damaged.
    """
    found = settings.get(KEY, {})
    try:
        temperature, threshold = float(found.get("temperature", 1.0)), found.get("threshold")
        target, val = found.get("target_accuracy"), dict(found.get("val", {}))
        decision = Decision(
            temperature,
            None if threshold is None else float(threshold),
            None if target is None else float(target),
            found.get("other_index"),
            val,
        )
    except (AttributeError, TypeError, ValueError):
        decision = Decision(temperature=0.0)
    if not 0 < decision.temperature < float("inf") or not 0 <= (decision.threshold or 0) <= 1:
        raise ModelError(
            f"the {KEY} of the model is not a temperature above 0 and a threshold from 0 to 1",
            hint="config.json or model.json was changed: restore it from a copy, or export again",
        )
    return decision
