"""What `mnft eval` measures only on request: unknown images and robustness.

This is the one place where the files of these evaluations are read.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from mnft.report.sources import Sources, read_json
from mnft.tasks.outputs import METRICS
from mnft.tasks.panels import Block, Cell, Panel, Table, Text

ROBUSTNESS = "robustness.json"  # in the folder of an evaluation


def build_unknowns(sources: Sources) -> Panel:
    """Say how many images of none of the labels are accepted."""
    # Each folder of such images has an evaluation of its own, beside that of the split alone.
    files = sorted(sources.folder.glob(f"eval*/{METRICS}"))
    known = [metrics for file in files if (metrics := read_json(file)) is not None]
    rows: list[list[Cell | str]] = [
        [
            Path(metrics["unknown_images"]).name,
            Cell(f"{found['num_images']:,}", found["num_images"]),
            Cell(f"{found['accepted']:.1%}", found["accepted"], bar=found["accepted"]),
            f"{found['accepted_interval']['low']:.1%} to {found['accepted_interval']['high']:.1%}",
            Cell(f"{found['accepted_at_95']:.1%}", found["accepted_at_95"]),
            Cell(f"{found['auroc']:.3f}", found["auroc"]),
        ]
        for metrics in known
        if metrics.get("split") == sources.split and (found := metrics.get("unknown"))
    ]
    if rows:
        lead = (
            "How many images that show none of this get a label all the same; also where the "
            "threshold is such that 95% of the known images are answered. An AUROC of 0.5 means "
            "that their confidence does not tell them apart."
        )
        headings = ["folder", "images", "get a label", "95% interval", "at 95% known", "AUROC"]
        table = Table("Images of none of the labels", headings, rows, sortable=True, in_card=True)
        return Panel("unknowns", "Unknown images", lead, [table])
    run = quote(str(sources.folder))
    text = (
        "Not measured: what the model does with images that show none of this. A model that was "
        "never shown any names them with confidence. Collect some that may turn up, and run:"
    )
    command = f"mnft eval {run} --unknown FOLDER"
    return Panel("unknowns", "Unknown images", "", [Text(text, "missing", command)])


def build_robustness(sources: Sources) -> Panel:
    """Show what blur, noise, light and other faults of cameras cost, where that was measured."""
    evaluation = sources.evaluation
    found = None if evaluation is None else read_json(evaluation.folder / ROBUSTNESS)
    if found is None:
        run = quote(str(sources.folder))
        text = (
            "Not measured: what blur, noise, bad light and strong compression cost. These figures "
            "are of images as clean as the ones here. Run:"
        )
        command = f"mnft eval {run} --robustness"
        return Panel("robustness", "Robustness", "", [Text(text, "missing", command)])
    title, clean = sources.task.title, found["clean"]["value"]
    rows = [
        [
            corruption["name"],
            Cell(f"{corruption['mean']:.1%}", corruption["mean"], bar=corruption["mean"]),
            Cell(f"{100 * (corruption['mean'] - clean):+.1f}", corruption["mean"] - clean),
            *(
                Cell(f"{level['value']:.1%} ({level['amount']:g})", level["value"])
                for level in corruption["levels"]
            ),
        ]
        for corruption in sorted(found["corruptions"], key=lambda entry: entry["mean"])
    ]
    strengths = max((len(c["levels"]) for c in found["corruptions"]), default=0)
    levels = [f"level {number}" for number in range(1, strengths + 1)]
    headings = ["fault", f"mean {title}", "points from clean", *levels]
    name = f"{title} under each fault, the worst first; in brackets how strong it is"
    blocks: list[Block] = [Table(name, headings, rows, sortable=True, in_card=True)]
    if found.get("advice"):
        blocks.append(Text(found["advice"]))
    lead = (
        f"Clean images {clean:.1%}, the mean over all faults {found['mean']:.1%}: "
        f"{100 * found['drop']:.1f} points less (95% interval "
        f"{100 * found['drop_interval']['low']:.1f} to {100 * found['drop_interval']['high']:.1f})."
    )
    return Panel("robustness", "Robustness", lead, blocks)
