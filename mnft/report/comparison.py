"""Models side by side: the blocks of a comparison, for a run's report and a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mnft.report.page.render import Page
from mnft.tasks.base import Task
from mnft.tasks.panels import Block, Cell, Chart, Panel, Point, Series, Table, Text


def build_comparison(record: Mapping[str, Any], figure: str, title: str) -> list[Block]:
    """Show what comparison.json holds as a table and a Pareto plot.

    Args:
        record: the content of comparison.json.
        figure: name of the task's main figure, as a key.
        title: the same for people.
    """
    models = record["models"]
    rows = [_build_row(model, figure) for model in models]
    headings = [
        "model",
        f"{title} (95%)",
        "params",
        "MACs",
        "file",
        "memory",
        "latency",
        "p95",
        "images/s",
        "Pareto front",
    ]
    images = record["images"]
    name = (
        f"{images['count']:,} {images['split']} images; latency of one image, "
        f"{record['threads']} threads, on {record['machine']['processor']}"
    )
    blocks: list[Block] = [Table(name, headings, rows, sortable=True, in_card=True)]
    kinds: dict[str, list[Point]] = {}
    for model in models:
        if model.get("latency_median_ms") is None or model.get(figure) is None:
            continue
        point = Point(
            model["latency_median_ms"],
            model[figure],
            model.get(f"{figure}_low"),
            model.get(f"{figure}_high"),
            model["model"],
        )
        kinds.setdefault(f"{model['runtime']} {model['precision']}", []).append(point)
    if kinds:
        times = [point.x for points in kinds.values() for point in points]
        series = [Series(kind, points, line=False, named=True) for kind, points in kinds.items()]
        front = sorted(
            (m["latency_median_ms"], m[figure]) for m in models if m.get("pareto_latency")
        )
        if len(front) > 1:
            series.append(Series("Pareto front", [Point(x, y) for x, y in front], marks=False))
        blocks.append(
            Chart(
                f"{title} against latency: better is further up and further left",
                "latency of one image in ms",
                title,
                series,
                percent=True,
                log_x=max(times) / min(times) > 6,
            )
        )
    blocks += [Text(f"{m['model']}: {m['problem']}", "warning") for m in models if m.get("problem")]
    blocks += [Text(warning, "warning") for warning in record.get("warnings", ())]
    return blocks


def _build_row(model: Mapping[str, Any], figure: str) -> list[Cell | str]:
    value = model.get(figure)
    rate = Cell("–", -1.0)
    if value is not None:
        low, high = model[f"{figure}_low"], model[f"{figure}_high"]
        text = f"{value:.2%} ({100 * low:.1f} to {100 * high:.1f})"
        rate = Cell(text, value, bar=value, low=low, high=high)
    fronts = [name for name in ("latency", "size") if model.get(f"pareto_{name}")]
    return [
        model["model"],
        rate,
        _scaled(model.get("params"), 1e6, ".2f", " M"),
        _scaled(model.get("macs"), 1e6, ".1f", " M"),
        _scaled(model.get("size_bytes"), 1e6, ".2f", " MB"),
        _scaled(model.get("peak_memory_mb"), 1, ".0f", " MB"),
        _scaled(model.get("latency_median_ms"), 1, ".2f", " ms"),
        _scaled(model.get("latency_p95_ms"), 1, ".2f", " ms"),
        _scaled(model.get("images_per_s"), 1, ",.0f", ""),
        "failed" if model.get("problem") else ", ".join(fronts) or "–",
    ]


def _scaled(value: float | None, unit: float, form: str, suffix: str) -> Cell:
    return Cell("–", -1.0) if value is None else Cell(f"{value / unit:{form}}{suffix}", value)


def build_page(
    record: Mapping[str, Any], task: Task, explanation: Sequence[str], agreement: Panel
) -> Page:
    """Build the page of a comparison.

    Args:
        record: the content of comparison.json.
        task: the task of the models.
        explanation: what the columns say.
        agreement: how often the models agree.
    """
    images, machine = record["images"], record["machine"]
    lead = "All models judged the same images on one machine, and were timed in turns."
    blocks = [*build_comparison(record, task.figure, task.title), *map(Text, explanation)]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    facts = [
        ["measured at", record["measured_at"]],
        ["processor", f"{machine['processor']}, {machine['cores']} cores"],
        ["system", f"{machine['system']}, Python {machine['python']}"],
        ["packages", versions],
        ["timing", f"{record['rounds']} rounds of {record['calls_per_round']} calls of each model"],
        ["folders", ", ".join(model["folder"] for model in record["models"])],
    ]
    measured = Table("Facts", ["what", "value"], facts)
    return Page(
        title=f"Comparison of {len(record['models'])} models",
        subtitle=f"{images['count']:,} images of {images['data']}, split {images['split']}",
        verdict=None,
        panels=[
            Panel("models", "Models", lead, blocks),
            agreement,
            Panel("measured", "How it was measured", "", [measured]),
        ],
        written=datetime.now(UTC),
    )


def build_agreement(names: Sequence[str], shares: Sequence[Sequence[float]]) -> Panel:
    """Show how often each two models give the same answer.

    Args:
        names: names of M models.
        shares: M rows of M fractions of the images.
    """
    rows: list[list[Cell | str]] = [
        [name, *(Cell(f"{share:.1%}", share, bar=share) for share in row)]
        for name, row in zip(names, shares, strict=True)
    ]
    lead = (
        "How often two models give the same answer. Models of one figure that seldom agree make "
        "different mistakes: look at where they differ before you choose one."
    )
    table = Table("Fraction of the images with the same answer", ["model", *names], rows)
    return Panel("agreement", "Agreement", lead, [table])
