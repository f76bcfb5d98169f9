"""`mnft data check`: find what would spoil a training before it starts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mnft import console
from mnft.config.load import load_config
from mnft.data.check import CheckReport, check_folder
from mnft.errors import GateError

_SHOWN = 50
_SHOWN_PATHS = 10


def run(target: Path, *, as_json: bool) -> None:
    """Check the folder, or the folder of a config.

    Raises:
        GateError: there are problems.
        MnftError: the folder cannot be used at all.
    """
    root = target
    if target.suffix in {".yaml", ".yml"} and not target.is_dir():
        root = Path(load_config(target)[0].data.root).expanduser()
    with console.progress("checking images") as on_progress:
        report = check_folder(root, on_progress)
    if as_json:
        values = asdict(report) | {"root": str(root), "problems": report.num_problems}
        console.show_json(values)
    else:
        _show(report)
    if report.num_problems:
        raise GateError(
            f"{root}: {report.num_problems} problem{'s' if report.num_problems > 1 else ''}",
            hint="mend them; `data.on_bad_image: skip` trains without unreadable files",
        )
    console.done(f"{root}: no problems")


def _show(report: CheckReport) -> None:
    names = sorted({name for counts in report.counts.values() for name in counts})
    rows = [[n, *(c.get(n, 0) for c in report.counts.values())] for n in names]
    rows.append(["in all", *(sum(c.values()) for c in report.counts.values())])
    console.show_table(["class", *report.counts], rows)
    if report.ignored:
        some = ", ".join(report.ignored[:5]) + (", ..." if len(report.ignored) > 5 else "")
        console.note(f"not taken as images: {len(report.ignored)} files ({some})")
    for finding in report.findings[:_SHOWN]:
        paths = ", ".join(finding.paths[:_SHOWN_PATHS])
        if (more := len(finding.paths) - _SHOWN_PATHS) > 0:
            paths += f" and {more} more"
        line = f"{paths}: {finding.message}" if paths else finding.message
        (console.warn if finding.is_problem else console.note)(f"{finding.kind}: {line}")
    if len(report.findings) > _SHOWN:
        console.note(f"and {len(report.findings) - _SHOWN} more; --json lists all")
