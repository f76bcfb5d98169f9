"""The files of a comparison: CSV, JSON, a page in Markdown and a plot."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mnft
from mnft import files
from mnft.compare.latency import Plan
from mnft.compare.plot import plot_comparison
from mnft.compare.rows import Comparison
from mnft.exports.formats import FORMATS
from mnft.host import count_cores, name_processor, read_versions
from mnft.tasks.base import Task
from mnft.text import count, guard_cell, printable

TABLE, RECORD, PAGE, PLOT, HTML = (
    f"comparison.{extension}" for extension in ("csv", "json", "md", "png", "html")
)
COMPARISON_FILES = frozenset({TABLE, RECORD, PAGE, PLOT, HTML})

_COSTS = (
    "params M",
    "MACs M",
    "file MB",
    "RAM MB",
    "ms",
    "p95 ms",
    "relative",
    "images/s",
    "Pareto",
)
_EXPLANATION = (
    "RAM: the most that a process held that only opened this model and ran it at batch 1, with "
    "Python and the runtime",
    "ms, p95 ms: median and 95th percentile of one image through the model, without decoding and "
    "resizing",
    "relative: latency as a multiple of the first model's, median over the rounds",
    "Pareto: no other model here is at least as accurate and as fast (latency), or as accurate and "
    "as small (size), and better in one of the two; by the figures as measured, whose intervals "
    "may overlap",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """On which images the models were compared, and how.

    Attributes:
        data: the folder of the images.
        split: name of the split, or "all".
        num_images: the number of images.
        threads: the threads of every model.
        plan: how latency was measured.
        task: the task of the models.
        warnings: the warnings that were given.
        more_columns: headings of figures that only some of the models have.
    """

    data: str
    split: str
    num_images: int
    threads: int
    plan: Plan
    task: Task
    warnings: tuple[str, ...] = ()
    more_columns: tuple[str, ...] = ()

    @property
    def figures(self) -> tuple[str, ...]:
        """Headings of the task's figures."""
        return (*self.task.columns, *self.more_columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        return ("model", *self.figures, *_COSTS)

    @property
    def explanation(self) -> tuple[str, ...]:
        """What the columns say."""
        return (self.task.explanation, *_EXPLANATION)

    def describe(self) -> str:
        """The setting in one sentence."""
        return (
            f"{self.num_images:,} images of {self.data}, split {self.split}; latency with "
            f"{count(self.threads, 'thread')}, {count(self.plan.rounds, 'round')} of "
            f"{self.plan.calls} calls of each model in turn, after warm-up; images/s at batch "
            f"{self.plan.batch_size}, or 1 where a file takes no more"
        )


def write_comparison(folder: Path, comparison: Comparison, setting: Setting) -> dict[str, Any]:
    """Write a comparison as a folder that appears whole or not at all.

    Args:
        folder: the folder to write; it takes the place of an older comparison.
        comparison: a comparison with at least one complete row.
        setting: images and way of the comparison.

    Returns:
        What comparison.json says.
    """
    models = [_describe_row(comparison, index) for index in range(len(comparison.rows))]
    packages = ("torch", *sorted({p for f in FORMATS.values() for p in f.runtime or ()}))
    record = {
        "mnft_version": mnft.__version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": name_processor(),
            "cores": count_cores(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "packages": read_versions(packages),
        },
        "images": {"data": setting.data, "split": setting.split, "count": setting.num_images},
        "threads": setting.threads,
        "rounds": setting.plan.rounds,
        "calls_per_round": setting.plan.calls,
        "warnings": list(setting.warnings),
        "models": models,
    }
    title = (
        f"{setting.task.title} with its 95% interval on {setting.num_images:,} images, and "
        f"latency with {count(setting.threads, 'thread')}"
    )
    with files.atomic_folder(folder) as new:
        files.write_json(new / RECORD, record)
        rows = [[_format_value(value) for value in model.values()] for model in models]
        files.write_csv(new / TABLE, [list(models[0]), *rows])
        files.write_text(new / PAGE, _format_page(comparison, setting, record))
        plot_comparison(comparison, new / PLOT, title=title, metric=setting.task.title)
    return record


def _describe_row(comparison: Comparison, index: int) -> dict[str, Any]:
    """All figures of a row as JSON values, also the columns of the CSV file."""
    row = comparison.rows[index]
    facts, evaluation, latency = row.facts, row.evaluation, row.latency
    figures: dict[str, float | None] = {}
    for other in comparison.rows:  # each row has the columns of all
        figures |= dict.fromkeys(other.evaluation.as_columns() if other.evaluation else {})
    figures |= evaluation.as_columns() if evaluation else {}
    return {
        "model": row.name,
        "folder": printable(str(row.variant.folder)),
        "runtime": facts and facts.runtime,
        "architecture": facts and facts.architecture,
        "precision": facts and facts.precision,
        **figures,
        "params": facts and facts.params,
        "macs": facts and facts.macs,
        "size_bytes": facts and facts.size_bytes,
        "peak_memory_mb": latency and latency.peak_memory_mb,
        "latency_median_ms": latency and latency.median_ms,
        "latency_p95_ms": latency and latency.p95_ms,
        "latency_ratio": comparison.ratios[index],
        "images_per_s": latency and latency.images_per_s,
        "batch_size": latency and latency.batch_size,
        "threads": latency and latency.threads,
        "pareto_latency": comparison.fastest[index],
        "pareto_size": comparison.smallest[index],
        "problem": row.problem and printable(row.problem),
    }


def _format_value(value: object) -> str:
    """A cell of the CSV file."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else guard_cell(str(value))


def build_table(comparison: Comparison, setting: Setting) -> list[list[str]]:
    """A row of cells for each model, under the setting's columns; what is not known is "-"."""
    table = []
    for row, ratio, index in zip(
        comparison.rows, comparison.ratios, range(len(comparison.rows)), strict=True
    ):
        known = row.evaluation.as_cells() if row.evaluation else {}
        figures = [known.get(heading, "-") for heading in setting.figures]
        costs = ["-"] * (len(_COSTS) - 1)
        if facts := row.facts:
            costs[0] = "-" if facts.params is None else f"{facts.params / 1e6:.2f}"
            costs[1] = "-" if facts.macs is None else f"{facts.macs / 1e6:.1f}"
            costs[2] = f"{facts.size_bytes / 1e6:.2f}"
        if latency := row.latency:
            memory = latency.peak_memory_mb
            costs[3] = "-" if memory is None else f"{memory:.0f}"
            costs[4:6] = f"{latency.median_ms:.2f}", f"{latency.p95_ms:.2f}"
            costs[6] = "-" if ratio is None else f"{ratio:.2f}x"
            costs[7] = f"{latency.images_per_s:.1f}"
        table.append(
            [row.name, *figures, *costs, "failed" if row.problem else comparison.fronts(index)]
        )
    return table


def _format_page(comparison: Comparison, setting: Setting, record: dict[str, Any]) -> str:
    """The page in Markdown: the table, the plot, what the columns mean, the machine."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    columns = setting.columns
    rulers = ["---", *["---:"] * (len(columns) - 2), "---"]
    rows = [columns, rulers, *build_table(comparison, setting)]
    escaped = [[_escape(cell) for cell in row] for row in rows]
    failures = [f"{row.name}: {row.problem}" for row in comparison.rows if row.problem]
    notes = [*setting.explanation, *setting.warnings, *failures]
    return "\n".join(
        [
            "# Comparison",
            "",
            _escape(setting.describe()) + ".",
            "",
            *(f"| {' | '.join(row)} |" for row in escaped),
            "",
            f"![{setting.task.title} against latency]({PLOT})",
            "",
            *(f"- {_escape(' '.join(note.split()))}" for note in notes),
            "",
            f"Measured at {record['measured_at']} on {machine['processor']}, {machine['cores']} "
            f"cores, {machine['system']}, Python {machine['python']}; {versions}.",
            "",
        ]
    )


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = printable(text)
    for character in "\\|<*_`[":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped
