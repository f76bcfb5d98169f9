"""Results of epochs as files hold them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mnft.results import EpochResult

FIGURES = {"train_loss": 1.5, "val_loss": 2.5, "val_accuracy": 0.5, "val_macro_f1": 0.25}
RESULT = EpochResult(
    epoch=3,
    epochs=9,
    figures=FIGURES,
    lr=0.1,
    images_per_s=7.0,
    seconds=8.0,
    is_best=True,
    stage="head",
    data_wait=None,
    peak_memory_mb=64.0,
    threads=2,
    max_threads=4,
)
# As version 0.1 wrote it: without the later values, and with figures of only classification.
OLD = {
    "epoch": 1,
    "epochs": 2,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "val_loss": 1.25,
    "val_accuracy": 0.75,
    "val_macro_f1": 0.7,
    "lr": 0.1,
    "images_per_s": 9.0,
    "seconds": 1.0,
    "is_best": True,
}


def test_figures_stand_side_by_side_with_the_rest() -> None:
    record = RESULT.as_record()
    assert "figures" not in record
    assert FIGURES.items() <= record.items()
    assert record["stage"] == "head"
    assert record["data_wait"] is None
    assert list(record)[:3] == ["epoch", "epochs", "train_loss"]


def test_a_record_gives_the_result_again() -> None:
    assert EpochResult.from_record(RESULT.as_record()) == RESULT
    # Figures of another task need no other code.
    other = replace(RESULT, figures={"train_loss": 1.0, "val_iou": 0.5})
    assert EpochResult.from_record(other.as_record()) == other


def test_results_of_older_runs_can_be_read() -> None:
    old = EpochResult.from_record(OLD)
    assert (old.stage, old.data_wait, old.peak_memory_mb) == ("finetune", 0.0, 0.0)
    assert (old.threads, old.max_threads) == (0, 0)
    assert old.figures == {name: OLD[name] for name in OLD if name.startswith(("train_", "val_"))}
    assert OLD.items() <= old.as_record().items()


def test_a_record_without_a_value_that_was_always_there_is_refused() -> None:
    with pytest.raises(TypeError):
        EpochResult.from_record({name: value for name, value in OLD.items() if name != "lr"})
