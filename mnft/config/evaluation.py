"""The config section about evaluation, and which figures each task can monitor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from mnft.config.section import Section

# Figures of the val split that can choose the best epoch, by task; the first is the default. A test
# compares them with the tasks, which this package cannot import.
MONITORS: dict[str, tuple[str, ...]] = {
    "classify": ("accuracy", "macro_f1", "loss"),
    "multilabel": ("map", "macro_f1", "micro_f1", "loss"),
}


class EvalConfig(Section):
    """How models are evaluated, during training and by `mnft eval`."""

    monitor: Literal["accuracy", "macro_f1", "loss", "map", "micro_f1"] = "accuracy"
    """Metric on the val split that selects the best epoch and controls early stopping and plateau:
    `accuracy`, `macro_f1` or `loss`; with task: multilabel `map` (mean average precision, then the
    default), `macro_f1`, `micro_f1` or `loss`. Among epochs with the same value the one with the
    lowest loss is the best, then the latest. After the stage `interpolate` the lowest loss
    decides."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images per evaluation batch and process; it does not change the result. `auto` is 64, and up
    to 256 if a GPU evaluates stored images. On the CPU a batch goes through the model in parts,
    each with the pixels of 32 images of 224 x 224."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of evaluation. With fp32 the results are those of the saved model anywhere else
    (on GPUs to the precision of TF32, which torch uses for convolutions by default)."""


def choose_monitor(values: Any) -> Any:
    """Fill in the task's own `eval.monitor` where nothing is written.

    Args:
        values: the values of a config before they are validated; what is no mapping stays as it is.
    """
    if not isinstance(values, Mapping):
        return values
    monitors = MONITORS.get(str(values.get("task", "classify")), MONITORS["classify"])
    section = values.get("eval", {})
    if monitors is MONITORS["classify"]:  # the default of the section
        return values
    if isinstance(section, EvalConfig) and "monitor" not in section.model_fields_set:
        return {**values, "eval": section.model_copy(update={"monitor": monitors[0]})}
    if isinstance(section, Mapping) and "monitor" not in section:
        return {**values, "eval": {**section, "monitor": monitors[0]}}
    return values
