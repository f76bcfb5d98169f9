"""The files of a comparison: CSV, JSON, Markdown and a picture."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mnft
from mnft import files
from mnft.compare.latency import Plan
from mnft.compare.plot import plot_comparison
from mnft.compare.rows import Comparison, Row
from mnft.exports.formats import FORMATS
from mnft.files import write_csv
from mnft.host import count_cores, name_processor, read_versions
from mnft.text import guard_cell, printable

TABLE, RECORD, PAGE, PICTURE = (f"comparison.{end}" for end in ("csv", "json", "md", "png"))
COMPARISON_FILES = frozenset({TABLE, RECORD, PAGE, PICTURE})

COLUMNS = (
    "model",
    "accuracy (95%)",
    "macro-F1",
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
EXPLANATION = (
    "accuracy: with its 95% Wilson interval",
    "RAM: the most that a process held which opened this model alone and ran it at batch 1, with "
    "Python and the runtime",
    "ms, p95 ms: median and 95th percentile of one image through the model, without decoding and "
    "resizing",
    "relative: latency as a multiple of the first model's, median over the rounds",
    "Pareto: no other model here is at least as accurate and as fast (latency), or as accurate and "
    "as small (size), and better in one of the two; by the accuracies as measured, whose "
    "intervals may overlap",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What was compared on, and how.

    Attributes:
        data: folder of the images.
        split: its name, or "all".
        num_images: that were judged.
        threads: of every model.
        plan: of the measurement.
        warnings: that were given.
    """

    data: str
    split: str
    num_images: int
    threads: int
    plan: Plan
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """In one sentence."""
        return (
            f"{self.num_images:,} images of {self.data}, split {self.split}; latency with "
            f"{self.threads} thread{'s' * (self.threads != 1)}, "
            f"{self.plan.rounds} round{'s' * (self.plan.rounds != 1)} of "
            f"{self.plan.calls} calls of each model in turn, after warm-up; images/s at batch "
            f"{self.plan.batch_size}, or 1 where a file takes no more"
        )


def write_comparison(folder: Path, comparison: Comparison, setting: Setting) -> dict[str, Any]:
    """Write a comparison as a folder that appears whole or not at all.

    Args:
        folder: takes the place of an older one.
        comparison: with one complete row at least.
        setting: of the measurement.

    Returns:
        What comparison.json says.
    """
    record = describe_comparison(comparison, setting)
    with files.atomic_folder(folder) as new:
        files.write_json(new / RECORD, record)
        write_csv(new / TABLE, _csv_rows(record["models"]))
        files.write_text(new / PAGE, _build_page(comparison, setting, record))
        plot_comparison(comparison, new / PICTURE, title=_title(setting))
    return record


def describe_comparison(comparison: Comparison, setting: Setting) -> dict[str, Any]:
    """All figures, as JSON values."""
    packages = ("torch", *sorted({p for f in FORMATS.values() for p in f.runtime or ()}))
    return {
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
        "models": [_describe_row(comparison, index) for index in range(len(comparison.rows))],
    }


def build_table(comparison: Comparison) -> list[list[str]]:
    """A row of cells a model, under `COLUMNS`; what is not known is "-"."""
    return [_cells(row, comparison, index) for index, row in enumerate(comparison.rows)]


def _cells(row: Row, comparison: Comparison, index: int) -> list[str]:
    cells = [row.name, *["-"] * (len(COLUMNS) - 2), comparison.mark(index)]
    if facts := row.facts:
        cells[3] = "-" if facts.params is None else f"{facts.params / 1e6:.2f}"
        cells[4] = "-" if facts.macs is None else f"{facts.macs / 1e6:.1f}"
        cells[5] = f"{facts.size_bytes / 1e6:.2f}"
    if evaluation := row.evaluation:
        low, high = evaluation.accuracy_interval
        cells[1] = f"{evaluation.accuracy:.2%} ({100 * low:.1f} to {100 * high:.1f})"
        cells[2] = f"{evaluation.macro.f1:.4f}"
    if latency := row.latency:
        ratio = comparison.ratios[index]
        memory = latency.peak_memory_mb
        cells[6] = "-" if memory is None else f"{memory:.0f}"
        cells[7:9] = f"{latency.median_ms:.2f}", f"{latency.p95_ms:.2f}"
        cells[9] = "-" if ratio is None else f"{ratio:.2f}x"
        cells[10] = f"{latency.images_per_s:.1f}"
    if row.problem:
        cells[-1] = "failed"
    return cells


def _describe_row(comparison: Comparison, index: int) -> dict[str, Any]:
    row = comparison.rows[index]
    facts, evaluation, latency = row.facts, row.evaluation, row.latency
    low, high = evaluation.accuracy_interval if evaluation else (None, None)
    return {
        "model": row.name,
        "folder": printable(str(row.folder)),
        "runtime": facts and facts.runtime,
        "architecture": facts and facts.architecture,
        "precision": facts and facts.precision,
        "accuracy": evaluation and evaluation.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": evaluation and evaluation.macro.f1,
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


def _csv_rows(models: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [list(models[0]), *([_csv_cell(value) for value in model.values()] for model in models)]


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else guard_cell(str(value))


def _build_page(comparison: Comparison, setting: Setting, record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    rows = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 2), "---"], *build_table(comparison)]
    escaped = [[_escape(cell) for cell in row] for row in rows]
    failures = [f"{row.name}: {row.problem}" for row in comparison.rows if row.problem]
    notes = [*EXPLANATION, *setting.warnings, *failures]
    return "\n".join(
        [
            "# Comparison",
            "",
            _escape(setting.describe()) + ".",
            "",
            *(f"| {' | '.join(row)} |" for row in escaped),
            "",
            f"![accuracy against latency]({PICTURE})",
            "",
            *(f"- {_escape(' '.join(note.split()))}" for note in notes),
            "",
            f"Measured at {record['measured_at']} on {machine['processor']}, {machine['cores']} "
            f"cores, {machine['system']}, Python {machine['python']}; {versions}.",
            "",
        ]
    )


def _escape(text: str) -> str:
    shown = printable(text)
    for character in "\\|<*_`[":
        shown = shown.replace(character, f"\\{character}")
    return shown


def _title(setting: Setting) -> str:
    return (
        f"accuracy with its 95% interval on {setting.num_images:,} images, and latency with "
        f"{setting.threads} thread{'s' * (setting.threads != 1)}"
    )
