"""The images of a run: how many of what in which split, and what the check found."""

from __future__ import annotations

from collections import Counter
from shlex import quote

from mnft.report.sources import CHECK, Sources
from mnft.tasks import load_label_rules
from mnft.tasks.panels import Block, Cell, Panel, Table, Text
from mnft.text import count

_SHOWN_PATHS = 3
_MAX_FINDINGS = 200


def build_data(sources: Sources) -> Panel:
    """Show the numbers of images, and the findings of `mnft data check` where it was run."""
    manifest = sources.opened.manifest
    assert manifest is not None
    rules = load_label_rules(sources.task.name)
    counts = {split: Counter[str]() for split in manifest.splits}
    totals = Counter(sample.split for sample in manifest.samples)
    for sample in manifest.samples:
        counts[sample.split].update(rules.parse(sample.label))
    most = max((n for of_split in counts.values() for n in of_split.values()), default=1)
    rows: list[list[Cell | str]] = [
        [
            name,
            *(
                Cell(f"{c[name]:,}", c[name], bar=c[name] / most if split == "train" else None)
                for split, c in counts.items()
            ),
        ]
        for name in manifest.labels
    ]
    sums = [Cell(f"{totals[split]:,}", totals[split]) for split in counts]
    title = f"Images of each {rules.noun}"
    facts = Table("Images of each split", ["", *counts], [["all images", *sums]], in_card=True)
    blocks: list[Block] = [
        facts,
        Table(title, [rules.noun, *counts], rows, sortable=True, folded=len(rows) > 40),
    ]
    if "test" not in counts:
        blocks.append(
            Text(
                "There is no test split, so nothing was measured on images that played no part in "
                "the training. Keep some back:",
                "missing",
                "data.test_fraction: 0.15",
            )
        )
    if manifest.left_out:
        found = [[left.path, left.reason] for left in manifest.left_out[:_MAX_FINDINGS]]
        title = f"{count(len(manifest.left_out), 'file')} left out of the training"
        blocks.append(Table(title, ["file", "why"], found, folded=True))
    blocks += _build_findings(sources)
    lead = (
        f"{count(len(manifest.samples), 'image')} of {manifest.root}; the same images always give "
        "the same splits, and copies of one image never lie in two."
    )
    return Panel("data", "Data", lead, blocks)


def _build_findings(sources: Sources) -> list[Block]:
    if sources.check is None:
        run = sources.folder
        command = f"mnft data check {quote(str(run / 'config.yaml'))} -o {quote(str(run / CHECK))}"
        text = "The images were not checked for near copies, leaks and damage. Run:"
        return [Text(text, "missing", command)]
    findings = sources.check["findings"]
    if not findings:
        return [Text("mnft data check found nothing wrong with the images.", "good")]
    rows = []
    for finding in findings[:_MAX_FINDINGS]:
        paths = finding["paths"]
        more = f" and {len(paths) - _SHOWN_PATHS:,} more" if len(paths) > _SHOWN_PATHS else ""
        rows.append(
            [
                "problem" if finding["is_problem"] else "note",
                finding["message"],
                ", ".join(paths[:_SHOWN_PATHS]) + more,
            ]
        )
    left = len(findings) - len(rows)
    title = f"{count(len(findings), 'finding')} of mnft data check"
    title += f", the first {_MAX_FINDINGS}" if left else ""
    return [Table(title, ["kind", "what", "files"], rows, folded=len(rows) > 10)]
