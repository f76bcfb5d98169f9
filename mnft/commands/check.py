"""`mnft data check`: find what would spoil a training before it starts."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnft import console
from mnft.config.load import load_config
from mnft.config.schema import Config, DataConfig
from mnft.config.source import Source
from mnft.data.check.findings import Finding, TrainingNeeds
from mnft.data.check.leave_out import write_list
from mnft.data.check.report import Checked, CheckReport, check_dataset
from mnft.data.decode import list_cures
from mnft.data.readers import class_folders
from mnft.errors import ConfigError, DataError, GateError, MnftError
from mnft.tasks.classify.checks import find_class_faults
from mnft.text import count

if TYPE_CHECKING:
    from mnft.training.probes.needs import Need, Plan

_SHOWN = 10
_SHOWN_PATHS = 5


@dataclass(frozen=True, slots=True)
class _Result:
    """All that is shown."""

    report: CheckReport
    needs: Sequence[Need]
    labels: Mapping[str, int] | None


def run(
    target: Path,
    overrides: Sequence[str],
    *,
    as_json: bool,
    checkpoint: Path | None = None,
    fix: Path | None = None,
) -> None:
    """Check the folder, or the folder of a config as that config will use it.

    Args:
        target: a config or a folder.
        overrides: of the config.
        as_json: print JSON.
        checkpoint: a model to find wrong labels with.
        fix: list of files to leave out, which is written or added to.

    Raises:
        ConfigError: `overrides` for a plain folder, or a config that is wrong.
        GateError: there are problems.
        MnftError: the folder cannot be used at all.
    """
    config, source = _load(target, overrides)
    root = Path(config.data.root).expanduser() if config else target
    if config and config.data.fetch and not root.exists():
        raise DataError(
            f"{root}: no such folder",
            hint=f"bring it: mnft data fetch {config.data.fetch} --to {shlex.quote(str(root))}",
        )
    with source.locating():
        result = _check(root, config, checkpoint)
    added = None if fix is None else write_list(fix, result.report.findings)
    report = result.report
    if as_json:
        _show_json(result, fix, added)
    else:
        _show(result)
        if fix is not None:
            console.note(_tell_of_list(fix, added or 0, config))
    if report.num_problems:
        raise GateError(f"{root}: {count(report.num_problems, 'problem')}", hint=_hint(report))
    console.done(f"{root}: no problems")


def _load(target: Path, overrides: Sequence[str]) -> tuple[Config | None, Source]:
    """A config and where its keys stand; no config for a folder."""
    if target.suffix in {".yaml", ".yml"} and not target.is_dir():
        return load_config(target, overrides)
    if overrides:
        raise ConfigError(
            f"--set {overrides[0]}: {target} is not a config, whose values alone can be set",
            hint="name the config (.yaml) instead of the folder",
        )
    return None, Source()


def _check(root: Path, config: Config | None, checkpoint: Path | None) -> _Result:
    plan, trouble = _build_plan(config, root) if config else (None, [])
    with console.progress("checking images") as on_progress:
        data = config.data if config else DataConfig(root=str(root))
        checked = check_dataset(
            root, on_progress, data, _expect(config, plan), check_labels=find_class_faults
        )
    report = checked.report.with_findings(trouble)
    needs: list[Need] = []
    if config and plan and checked.manifest:
        needs, found = _estimate(config, plan, checked)
        report = report.with_findings(found)
    if checkpoint is None:
        return _Result(report, needs, None)
    from mnft.evaluation import label_errors as label_check

    labels = label_check.check_labels(root, checked, checkpoint, console.REPORTER)
    return _Result(report.with_findings(labels.findings), needs, label_check.describe(labels))


def _expect(config: Config | None, plan: Plan | None) -> TrainingNeeds:
    if config is None:
        return TrainingNeeds()
    balanced = config.train.sampler == "balanced" or config.train.class_weights == "balanced"
    side = max(plan.preprocessing.input_size[1:]) if plan else config.data.img_size or 224
    return TrainingNeeds(side, is_balanced=balanced, is_grey=config.model.in_chans == 1)


def _build_plan(config: Config, root: Path) -> tuple[Plan | None, list[Finding]]:
    """The model's size; a finding where it cannot be told here."""
    from mnft.training.probes.needs import build_plan

    num_classes = max(2, len(class_folders.read(root).class_names()))
    try:
        return build_plan(config, num_classes), []
    except MnftError as error:
        what = f"{error.message}: what a run will need is not estimated"
        return None, [Finding("no_estimate", False, what, ())]


def _estimate(config: Config, plan: Plan, checked: Checked) -> tuple[list[Need], list[Finding]]:
    from mnft.training.probes.needs import estimate

    assert checked.manifest is not None
    try:
        return estimate(config, plan, checked.manifest, checked.inspections)
    except MnftError as error:
        what = f"{error.message}: what a run will need is not estimated"
        return [], [Finding("no_estimate", False, what, ())]


def _hint(report: CheckReport) -> str:
    if any(f.leave_out for f in report.findings if f.is_problem):
        skip = ""
        if any(f.kind == "unreadable" and f.is_problem for f in report.findings):
            skip = "; `data.on_bad_image: skip` trains without unreadable files"
        cures = list_cures(f.message for f in report.findings if f.kind == "unreadable")
        cure = "".join(f"{command}; else " for command in cures)
        leave = f"leave files out: --fix FILE writes a list for data.exclude{skip}"
        return f"{cure}mend them, or {leave}"
    return "mend them"


def _show_json(result: _Result, fix: Path | None, added: int | None) -> None:
    values: dict[str, Any] = asdict(result.report) | {
        "root": str(result.report.root),
        "problems": result.report.num_problems,
        "needs": [asdict(need) | {"fits": need.fits} for need in result.needs],
    }
    if result.labels is not None:
        values["labels"] = result.labels
    if fix is not None:
        values["fix"] = {"path": str(fix), "added": added}
    console.show_json(values)


def _tell_of_list(path: Path, added: int, config: Config | None) -> str:
    used = config is not None and config.data.exclude is not None
    then = "" if used else f"; use it with data.exclude: {path}"
    return f"fix      {count(added, 'more file')} to leave out in {path}{then}"


def _show(result: _Result) -> None:
    report = result.report
    names = sorted({name for counts in report.counts.values() for name in counts})
    rows = [[n, *(c.get(n, 0) for c in report.counts.values())] for n in names]
    rows.append(["in all", *(sum(c.values()) for c in report.counts.values())])
    console.show_table(["class", *report.counts], rows)
    _show_facts(result)
    kinds: dict[tuple[bool, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        kinds[finding.is_problem, finding.kind].append(finding)
    for (is_problem, kind), findings in kinds.items():
        say = console.warn if is_problem else console.note
        for finding in findings[:_SHOWN]:
            say(f"{kind}: {_describe(finding)}")
        if (more := len(findings) - _SHOWN) > 0:
            say(f"{kind}: and {more:,} more; --json lists all")
    if report.findings:
        _show_summary(kinds)


def _show_facts(result: _Result) -> None:
    report = result.report
    if report.mean and report.std:
        mean, std = (", ".join(f"{v:.3f}" for v in values) for values in (report.mean, report.std))
        console.note(f"colours  mean {mean}; std {std}")
    if report.ignored:
        console.note(f"not taken as images: {_some(report.ignored)}")
    if report.excluded:
        console.note(f"left out by data.exclude: {_some(report.excluded)}")
    if report.not_compared:
        what = "too small or too plain to be compared with others"
        console.note(f"{count(report.not_compared, 'image is', 'images are')} {what}")
    for need in result.needs:
        from mnft.training.probes.needs import in_words

        free = "" if need.free is None else f", {in_words(max(0, need.free))} free"
        console.note(f"needs    {need.what}: {in_words(need.needed)} ({need.where}{free})")
    if result.labels is not None:
        console.note(
            f"labels   {count(result.labels['by_model'], 'image')} judged by the model, "
            f"{result.labels['crosswise']:,} that it may have learned from by cross-validation"
        )
        if unknown := result.labels["unknown_class"]:
            who = count(unknown, "image is", "images are")
            console.warn(f"{who} of classes that the model does not know")


def _show_summary(kinds: Mapping[tuple[bool, str], Sequence[Finding]]) -> None:
    rows = [
        [kind, "problem" if is_problem else "note", len(found), sum(len(f.paths) for f in found)]
        for (is_problem, kind), found in kinds.items()
    ]
    console.show_table(["finding", "is a", "findings", "paths"], rows, to_stderr=True)


def _describe(finding: Finding) -> str:
    paths = ", ".join(finding.paths[:_SHOWN_PATHS])
    if (more := len(finding.paths) - _SHOWN_PATHS) > 0:
        paths += f" and {more:,} more"
    return f"{paths}: {finding.message}" if paths else finding.message


def _some(paths: Iterable[str]) -> str:
    paths = list(paths)
    some = f"{', '.join(paths[:5])}{', ...' if len(paths) > 5 else ''}"
    return f"{count(len(paths), 'file')} ({some})"
