"""The course of a training, from log.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mnft.report.sources import Sources
from mnft.tasks.panels import Block, Cell, Chart, Panel, Point, Series, Table, Text

_CAPTIONS = {"train": "on training images, while it learned", "val": "on val"}


def list_epochs(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The epochs of a log, each once, although a resumed run repeats some; the head is epoch 0."""
    epochs = {entry["epoch"]: entry for entry in log if entry.get("event") == "epoch"}
    return [epochs[number] for number in sorted(epochs)]


def build_curves(sources: Sources) -> Panel:
    """Draw the loss and the figures of each epoch."""
    epochs = list_epochs(sources.log)
    if len(epochs) < 2:
        text = Text("The run has fewer than two epochs, so there is no curve to draw.")
        return Panel("curves", "Learning curves", "", [text])
    best = next((entry for entry in reversed(epochs) if entry.get("is_best")), epochs[-1])
    names = [key.removeprefix("val_") for key in epochs[-1] if key.startswith("val_")]
    blocks: list[Block] = []
    for name in sorted(names, key=lambda name: (name != "loss", name != sources.task.figure)):
        series = []
        for part, caption in _CAPTIONS.items():
            found = [
                Point(float(entry["epoch"]), float(entry[f"{part}_{name}"]))
                for entry in epochs
                if entry.get(f"{part}_{name}") is not None
            ]
            if found:
                series.append(Series(caption, found))
        mark = float(best["epoch"]), "best epoch"
        title = _name(name, sources)
        percent = name != "loss"
        blocks.append(
            Chart(f"{title} of each epoch", "epoch", title, series, percent=percent, mark=mark)
        )
    rows: list[list[Cell | str]] = [
        [
            str(entry["epoch"]),
            str(entry.get("stage", "")),
            *(_number(entry.get(f"val_{name}")) for name in names),
            _number(entry.get("lr")),
            Cell(f"{entry['seconds']:.1f} s", entry["seconds"]),
        ]
        for entry in epochs
    ]
    headings = ["epoch", "stage", *(f"val {_name(n, sources)}" for n in names), "rate", "time"]
    blocks.append(Table("All epochs", headings, rows, folded=True))
    head = " Epoch 0 is the head that was fitted first." if epochs[0]["epoch"] == 0 else ""
    lead = (
        f"Epoch {best['epoch']} was the best on val and is the model.{head} Training and val drawn "
        "apart by more and more say that the model learns images by heart; both still improving "
        "at the end say that more epochs may help. With strong augmentation the training line lies "
        "below the val line, and nothing is wrong."
    )
    return Panel("curves", "Learning curves", lead, blocks)


def _name(figure: str, sources: Sources) -> str:
    if figure == sources.task.figure:
        return sources.task.title
    return figure.replace("_", " ").replace("f1", "F1")


def _number(value: Any) -> Cell:
    return Cell("–", -1.0) if value is None else Cell(f"{value:.4g}", float(value))
