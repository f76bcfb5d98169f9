"""`mnft data check`: find what would spoil a training before it starts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mnft import console
from mnft.config.load import load_config
from mnft.config.schema import DataConfig
from mnft.data.check import CheckReport, check_folder
from mnft.errors import ConfigError, DataError, GateError

_SHOWN = 50
_SHOWN_PATHS = 10


def run(target: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Check the folder, or the folder of a config as that config will use it.

    Raises:
        ConfigError: `overrides` for a plain folder, or a config that is wrong.
        GateError: there are problems.
        MnftError: the folder cannot be used at all.
    """
    config = _data_section(target, overrides)
    root = Path(config.root).expanduser() if config else target
    if config and config.fetch and not root.exists():
        raise DataError(
            f"{root}: no such folder",
            hint=f"bring it: mnft data fetch {config.fetch} --to {shlex.quote(str(root))}",
        )
    with console.progress("checking images") as on_progress:
        report = check_folder(root, on_progress, config)
    if as_json:
        values = asdict(report) | {"root": str(root), "problems": report.num_problems}
        console.show_json(values)
    else:
        _show(report)
    if report.num_problems:
        raise GateError(
            f"{root}: {report.num_problems} problem{'s' if report.num_problems > 1 else ''}",
            hint=_hint(report),
        )
    console.done(f"{root}: no problems")


def _data_section(target: Path, overrides: Sequence[str]) -> DataConfig | None:
    """The data section of a config; None for a folder."""
    if target.suffix in {".yaml", ".yml"} and not target.is_dir():
        return load_config(target, overrides)[0].data
    if overrides:
        raise ConfigError(
            f"--set {overrides[0]}: {target} is not a config, whose values alone can be set",
            hint="name the config (.yaml) instead of the folder",
        )
    return None


def _hint(report: CheckReport) -> str:
    if any(f.kind == "unreadable" and f.is_problem for f in report.findings):
        return "mend them; `data.on_bad_image: skip` trains without unreadable files"
    return "mend them"


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
