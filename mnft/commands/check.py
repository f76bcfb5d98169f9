"""`mnft data check`: find what would spoil a training before it starts."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnft import console, files
from mnft.config.data import DataConfig
from mnft.config.load import load_config
from mnft.config.schema import Config
from mnft.config.source import Source
from mnft.data import readers
from mnft.data.check.findings import Finding, TrainingNeeds
from mnft.data.check.leave_out import write_list
from mnft.data.check.report import Checked, CheckReport, check_dataset
from mnft.data.decode import list_cures
from mnft.data.labels import LabelRules
from mnft.errors import ConfigError, DataError, GateError, MnftError
from mnft.tasks import load_label_rules
from mnft.text import count, printable

if TYPE_CHECKING:
    from mnft.training.probes.needs import Need, Plan

_SHOWN = 10
_SHOWN_PATHS = 5


def run(
    target: Path,
    overrides: Sequence[str],
    *,
    as_json: bool,
    checkpoint: Path | None = None,
    fix: Path | None = None,
    output: Path | None = None,
) -> None:
    """Check a folder, or the folder of a config as that config will use it.

    Args:
        target: a config or a folder.
        overrides: values of `--set`, for a config only.
        as_json: whether to print JSON.
        checkpoint: a model to find wrong labels with.
        fix: the list of files to leave out, which is written or added to.
        output: the JSON file to write, such as the run's check.json, which a report reads.

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
    labels = None
    with source.locating():
        report, needs, checked = _check(root, config)
        if checkpoint is not None:
            from mnft.evaluation import label_errors

            found = label_errors.check_labels(checked, checkpoint, console.REPORTER)
            report = report.with_findings(found.findings)
            labels = label_errors.describe(found)
    added = None if fix is None else write_list(fix, report.findings)
    values: dict[str, Any] = asdict(report) | {
        "root": str(report.root),
        "problems": report.num_problems,
        "needs": [asdict(need) | {"fits": need.fits} for need in needs],
    }
    if labels is not None:
        values["labels"] = labels
    if output is not None:
        text = json.dumps(values, indent=2, ensure_ascii=False)
        files.write_text(output, printable(text) + "\n")
    if fix is not None:
        values["fix"] = {"path": str(fix), "added": added}
    if as_json:
        console.show_json(values)
    else:
        _show_report(report, checked.rules, needs, labels)
        if fix is not None:
            is_used = config is not None and config.data.exclude is not None
            then = "" if is_used else f"; use it with data.exclude: {fix}"
            console.note(f"fix      {count(added or 0, 'more file')} to leave out in {fix}{then}")
        if output is not None:
            console.note(f"written to {output}")
    if report.num_problems:
        raise GateError(f"{root}: {count(report.num_problems, 'problem')}", hint=_advise(report))
    console.done(f"{root}: no problems")


def _load(target: Path, overrides: Sequence[str]) -> tuple[Config | None, Source]:
    """A config and where its keys stand; no config for a folder."""
    if target.suffix in {".yaml", ".yml"} and not target.is_dir():
        return load_config(target, overrides)
    if overrides:
        raise ConfigError(
            f"--set {overrides[0]}: {target} is not a config, and only a config has values to set",
            hint="name the config (.yaml) instead of the folder",
        )
    return None, Source()


def _check(root: Path, config: Config | None) -> tuple[CheckReport, Sequence[Need], Checked]:
    """What is wrong with a folder, and what a run of a config will need."""
    data = config.data if config else DataConfig(root=str(root))
    rules = load_label_rules(config.task if config else readers.read(data).task)
    plan: Plan | None = None
    needs: list[Need] = []
    more: list[Finding] = []
    expected = TrainingNeeds()
    if config:
        from mnft.training.probes.needs import build_plan, estimate

        try:
            names = rules.list_names(readers.read(config.data))
            plan = build_plan(config, max(1 + rules.exclusive, len(names)))
        except MnftError as error:
            more = [_no_estimate(error)]
        balanced = config.train.sampler == "balanced" or config.train.class_weights == "balanced"
        side = max(plan.preprocessing.input_size[1:]) if plan else config.data.img_size or 224
        expected = TrainingNeeds(side, is_balanced=balanced, is_grey=config.model.in_chans == 1)
    with console.progress("checking images") as on_progress:
        checked = check_dataset(data, rules, on_progress, expected)
    if config and plan and checked.manifest:
        try:
            needs, more = estimate(config, plan, checked.manifest, checked.inspections)
        except MnftError as error:
            more = [_no_estimate(error)]
    return checked.report.with_findings(more), needs, checked


def _no_estimate(error: MnftError) -> Finding:
    what = f"{error.message}: what a run will need is not estimated"
    return Finding("no_estimate", False, what, ())


def _advise(report: CheckReport) -> str:
    """What to do about the problems."""
    problems = [finding for finding in report.findings if finding.is_problem]
    if not any(finding.leave_out for finding in problems):
        rows = any(finding.kind == "unusable_row" for finding in problems)
        return "fix them" + (", or train without the rows: data.on_bad_image: skip" if rows else "")
    cures = list_cures(f.message for f in report.findings if f.kind == "unreadable")
    cure = "".join(f"{command}; else " for command in cures)
    skip = ""
    if any(finding.kind == "unreadable" for finding in problems):
        skip = "; `data.on_bad_image: skip` trains without unreadable files"
    return f"{cure}fix them, or leave files out: --fix FILE writes a list for data.exclude{skip}"


def _show_report(
    report: CheckReport,
    rules: LabelRules,
    needs: Sequence[Need],
    labels: Mapping[str, int] | None,
) -> None:
    names = sorted({name for counts in report.counts.values() for name in counts})
    rows = [[n, *(c.get(n, 0) for c in report.counts.values())] for n in names]
    rows.append(["in all", *report.totals.values()])
    console.show_table([rules.noun, *report.counts], rows)
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
    for need in needs:
        from mnft.training.probes.needs import in_words

        free = "" if need.free is None else f", {in_words(max(0, need.free))} free"
        console.note(f"needs    {need.what}: {in_words(need.needed)} ({need.where}{free})")
    if labels is not None:
        console.note(
            f"labels   {count(labels['by_model'], 'image')} judged by the model, "
            f"{labels['crosswise']:,} that it may have learned from by cross-validation"
        )
        if unknown := labels["unknown_class"]:
            who = count(unknown, "image is", "images are")
            console.warn(f"{who} of {rules.plural} that the model does not know")
    _show_findings(report.findings)


def _show_findings(findings: Sequence[Finding]) -> None:
    """Print the first findings of each kind, and how many there are."""
    kinds: dict[tuple[bool, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.is_problem, finding.kind].append(finding)
    for (is_problem, kind), found in kinds.items():
        say = console.warn if is_problem else console.note
        for finding in found[:_SHOWN]:
            paths = ", ".join(finding.paths[:_SHOWN_PATHS])
            if (more := len(finding.paths) - _SHOWN_PATHS) > 0:
                paths += f" and {more:,} more"
            say(f"{kind}: {paths}: {finding.message}" if paths else f"{kind}: {finding.message}")
        if (more := len(found) - _SHOWN) > 0:
            say(f"{kind}: and {more:,} more; --json lists all")
    if kinds:
        console.show_table(
            ["finding", "is a", "findings", "paths"],
            [
                [
                    kind,
                    "problem" if is_problem else "note",
                    len(found),
                    sum(len(f.paths) for f in found),
                ]
                for (is_problem, kind), found in kinds.items()
            ],
            to_stderr=True,
        )


def _some(paths: Iterable[str]) -> str:
    paths = list(paths)
    some = f"{', '.join(paths[:5])}{', ...' if len(paths) > 5 else ''}"
    return f"{count(len(paths), 'file')} ({some})"
