"""The files for devices that were made of a run, how fast they are, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from mnft.report.comparison import build_comparison
from mnft.report.sources import COMPARISON, Export, Sources
from mnft.tasks.panels import Block, Cell, Panel, Table, Text


def build_exports(sources: Sources) -> Panel:
    """Show size and parity of each exported file, and the comparison of all where there is one."""
    run = quote(str(sources.folder))
    if not sources.exports:
        text = Text(
            "No file for a device was made of this model. Run:", "missing", f"mnft export {run}"
        )
        return Panel("exports", "Exports", "", [text])
    figure, title = sources.task.figure, sources.task.title
    current = sources.opened.bundle.record.get("sha256")
    rows = [_build_row(export, figure) for export in sources.exports]
    headings = [
        "export",
        "format",
        "precision",
        "size",
        "same answers",
        f"{title}, model → file",
        "checked on",
    ]
    blocks: list[Block] = [Table("Exported files", headings, rows, in_card=True)]
    blocks += [
        Text(warning, "warning") for warning in list_export_warnings(sources.exports, current)
    ]
    if sources.comparison is None:
        command = f"mnft compare {run} --exports -o {quote(str(sources.folder / COMPARISON))}"
        missing = "Latency and memory were not measured side by side. Run:"
        blocks.append(Text(missing, "missing", command))
    else:
        blocks += build_comparison(sources.comparison, figure, title)
    lead = (
        "Each file ran in its own runtime on real images and had to answer as the trained model "
        "does, or it would not have been kept."
    )
    return Panel("exports", "Exports", lead, blocks)


def list_export_warnings(exports: Sequence[Export], sha256: str | None) -> list[str]:
    """What is not right about exported files: gates missed or never tried, another model."""
    warnings = []
    for export in exports:
        passed = export.parity.get("passed")
        if passed is False:
            warnings.append(f"{export.name} does not answer as the trained model does")
        elif passed is None:
            reason = export.parity.get("reason", "there is no parity.json")
            warnings.append(f"{export.name} was not compared with the trained model: {reason}")
        if sha256 and _find_source(export) not in {None, sha256}:
            warnings.append(f"{export.name} was made of another model than best/: export it again")
    return warnings


def _find_source(export: Export) -> Any:
    # Quantization-aware training makes weights of its own.
    return None if export.quantization else export.record.get("source", {}).get("sha256")


def _build_row(export: Export, figure: str) -> list[Cell | str]:
    parity: Mapping[str, Any] = export.parity
    size = export.record.get("size_bytes")
    before, after = parity.get(f"{figure}_before"), parity.get(f"{figure}_after")
    agreement = parity.get("agreement")
    return [
        export.name,
        str(export.record.get("format", "")),
        str(export.record.get("precision", "")),
        Cell("–", -1.0) if size is None else Cell(f"{size / 1e6:.2f} MB", size),
        Cell("–", -1.0) if agreement is None else Cell(f"{agreement:.2%}", agreement),
        Cell("not checked", -1.0)
        if before is None or after is None
        else Cell(f"{before:.2%} → {after:.2%}", after),
        f"{parity['num_images']:,} {parity['split']} images" if "num_images" in parity else "–",
    ]
