"""`mnft train`: fine-tune a model on a folder of images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.config.load import load_config, save_config
from mnft.config.schema import Config
from mnft.config.source import Source, dump_yaml
from mnft.data.lineage import pack
from mnft.data.manifest import Manifest, save_manifest
from mnft.device.ranks.distributed import Ranks, broadcast
from mnft.device.ranks.group import Group, joined
from mnft.device.select import keep_freed_memory
from mnft.errors import CheckpointError, DataError, Interrupted, MnftError
from mnft.failures import explain_lost_worker
from mnft.reporter import SILENT, Reporter
from mnft.results import FitResult
from mnft.runs.begin import begin_training, check_early
from mnft.runs.folder import (
    RunFolder,
    create_run,
    has_progress,
    log_event,
    reconcile_log,
    remove_leftovers,
)
from mnft.runs.lock import Claim, claimed
from mnft.runs.parents import warn_of_seen_images
from mnft.runs.resume import check_resumable, find_run
from mnft.runs.tensorboard import open_writer
from mnft.runs.writer import RunKeeper, draw_curve
from mnft.signals import await_signal
from mnft.text import count
from mnft.training import stages
from mnft.training.fit import out_of_patience
from mnft.training.state import load_state, read_saved_progress
from mnft.training.training import Training


def run(
    config_path: Path | None,
    overrides: Sequence[str],
    resume: Path | None,
    *,
    as_json: bool,
) -> None:
    """Train, or go on with an interrupted run.

    Raises:
        MnftError: whatever keeps the training from its end.
        Interrupted: by Ctrl-C or SIGTERM; what is saved can be resumed.
    """
    started = time.monotonic()
    keep_freed_memory()
    with joined(console.REPORTER) as group:
        _run(config_path, overrides, resume, group, started, as_json=as_json)


def _run(
    config_path: Path | None,
    overrides: Sequence[str],
    resume: Path | None,
    group: Group,
    started: float,
    *,
    as_json: bool,
) -> None:
    ranks = group.ranks
    run_folder, sets = broadcast(ranks, lambda: find_run(config_path, overrides, resume))
    with ExitStack() as stack:
        claim = _claim(run_folder, ranks, stack) if run_folder else None
        path = run_folder.config if run_folder else config_path
        assert path is not None
        config, source = load_config(path, sets)
        stack.enter_context(source.locating())
        if run_folder:
            check_resumable(config, run_folder)
            config = _without_recipe(config)
        machine = check_early(config, ranks, resumed=run_folder is not None)
        manifest, training = begin_training(config, run_folder, machine, console.REPORTER)
        if run_folder and has_progress(run_folder):
            load_state(training.state, run_folder.resume)
        config = training.config
        folder = run_folder or broadcast(ranks, lambda: _start(config, path, source, manifest))
        if not run_folder:  # not `if not claim`, which the other processes never have
            claim = _claim(folder, ranks, stack)
        resumed = run_folder is not None
        result = _fit(config, folder, training, manifest, group, claim, resumed=resumed)
    if ranks.is_main:
        draw_curve(folder, training.task, training.state.results, config.eval.monitor)
        _show_result(folder, training, result, time.monotonic() - started, as_json=as_json)


def _claim(folder: RunFolder, ranks: Ranks, stack: ExitStack) -> Claim | None:
    """The main process claims the folder; what it finds there all processes hear of."""
    held: list[Claim] = []
    broadcast(ranks, lambda: held.append(stack.enter_context(claimed(folder.path))))
    return held[0] if held else None


def _without_recipe(config: Config) -> Config:
    """A run of a version that knew no stages goes on as it began."""
    old = config.train.stages is None
    return config.model_copy(update={"recipe": "plain"}) if old else config


def _start(config: Config, path: Path, source: Source, manifest: Manifest) -> RunFolder:
    def fill(run: RunFolder) -> None:
        files.write_text(run.written, dump_yaml(source.values))
        save_config(config, run.config)
        save_manifest(manifest, run.split)

    default_name = path.stem if path.name != "config.yaml" else path.resolve().parent.name
    parent = Path(config.run.dir).expanduser()
    return create_run(parent, name=config.run.name, default_name=default_name, fill=fill)


def _fit(
    config: Config,
    folder: RunFolder,
    training: Training,
    manifest: Manifest,
    group: Group,
    claim: Claim | None,
    *,
    resumed: bool,
) -> FitResult:
    if not group.ranks.is_main:
        return _run_fit(training, group, keeper=None, reporter=SILENT)
    group.describe_stop = lambda stop: _interrupted(stop, folder)
    facts = {
        "split_fingerprint": manifest.fingerprint,
        "monitor": config.eval.monitor,
        "trained_on": pack(manifest.trained_on),
    }
    writer = open_writer(folder.path, config.run)
    keeper = RunKeeper(folder, training.card, facts, writer, claim)
    try:
        _announce(config, folder, training, resumed=resumed)
        warn_of_seen_images(manifest, config, console.REPORTER)
        with keeper, console.TrainingDisplay() as display:
            result = _run_fit(training, group, keeper=keeper, reporter=display)
    except (MnftError, KeyboardInterrupt, Interrupted) as error:
        # A disk that is full, or a folder that is gone, must not hide what was the matter.
        with suppress(OSError, CheckpointError):
            if claim is not None:
                claim.check()
            log_event(folder, "stop", {"reason": type(error).__name__, "message": str(error)})
        if isinstance(error, MnftError):
            raise
        raise _interrupted(error, folder) from error
    finally:
        if writer is not None:
            writer.close()
    reason = "early stopping" if result.stopped_early else "all epochs done"
    log_event(folder, "stop", {"reason": reason})
    return result


def _run_fit(training: Training, group: Group, *, keeper: Any, reporter: Reporter) -> FitResult:
    try:
        return stages.train(training, keeper=keeper, reporter=reporter)
    except (RuntimeError, DataError, Interrupted) as error:
        if (told := group.explain(error)) is not None:
            raise told from error
        if explain_lost_worker(error.__cause__ or error):
            await_signal()
        raise


def _announce(config: Config, folder: RunFolder, training: Training, *, resumed: bool) -> None:
    facts = dict(training.facts)
    console.note(
        f"model    {config.model.name}: {facts['parameters'] / 1e6:.2f} M parameters, "
        f"{facts['learning'] / 1e6:.2f} M of them learn; {facts['weights']}"
    )
    size = " x ".join(map(str, training.card.preprocessing.input_size))
    console.note(f"input    {size}; {facts['device']}, {facts['precision']}")
    console.note(f"store    {facts['store']}")
    if facts["teacher"]:
        console.note(f"teacher  {facts['teacher']}")
    for choice in training.choices:
        value = str(choice.value).lower() if isinstance(choice.value, bool) else choice.value
        console.note(f"recipe   {choice.key}: {value}  ({choice.reason})")
    console.note(f"run      {folder.path}")
    if not resumed:
        recipe = {choice.key: choice.value for choice in training.choices}
        log_event(folder, "start", {**facts, "recipe": recipe, "config": config.model_dump()})
        return
    remove_leftovers(folder)
    save_config(config, folder.config)
    history = training.state.history
    reconcile_log(folder, training.state.results)
    rate = training.state.schedule.lr
    values = {"epochs_done": len(history), "lr": rate, "config": config.model_dump()}
    log_event(folder, "resume", {**facts, **values})
    partial = training.state.partial
    within = f" and {count(partial.updates, 'update')}" if partial else ""
    console.note(f"resumed  after epoch {len(history)}{within}, learning rate {rate:.2e}")
    if "finetune" not in training.stages:
        return
    if len(history) >= config.train.epochs:
        console.warn(
            f"the run has its {count(len(history), 'epoch')} already; "
            f"--set train.epochs={len(history) + 10} would go on"
        )
    elif out_of_patience(training.state, training.options):
        console.warn("the run stopped early; a larger --set train.early_stopping=N would go on")


def _interrupted(error: BaseException, folder: RunFolder) -> Interrupted:
    by, code = (error.by, error.exit_code) if isinstance(error, Interrupted) else ("Ctrl-C", 130)
    # What counts is the state on the disk: the signal may have come while an epoch was saved.
    done, partial = read_saved_progress(folder.resume)
    within = f" and {count(partial, 'update')} of the next" if partial else ""
    go_on = f"go on with: mnft train --resume {folder.path}"
    after = f"by {by} after {count(done, 'epoch')}{within}"
    return Interrupted(code, f"{after}; {go_on}", by=by)


def _show_result(
    folder: RunFolder, training: Training, result: FitResult, seconds: float, *, as_json: bool
) -> None:
    best = result.best
    if best is None:
        raise CheckpointError(f"{folder.path}: no epoch was trained")
    if as_json:
        console.show_json(
            {
                "run": str(folder.path),
                "best": str(folder.best),
                "epochs": len(result.epochs),
                "stopped_early": result.stopped_early,
                "best_epoch": best.epoch,
                "val_accuracy": best.figures["val_accuracy"],
                "val_macro_f1": best.figures["val_macro_f1"],
                "val_loss": best.figures["val_loss"],
                "seconds": round(seconds, 3),
            }
        )
        return
    if result.stopped_early:
        patience = training.options.early_stopping
        console.note(
            f"stopped early: no better val {training.options.monitor} for "
            f"{count(patience or 0, 'epoch')}"
        )
    size_mb = (folder.best / "model.safetensors").stat().st_size / 1e6
    console.show_table(
        ["best epoch", "val accuracy", "val macro F1", "val loss", "parameters", "size", "time"],
        [
            [
                "head" if best.stage == "head" else f"{best.epoch} of {len(result.epochs)}",
                f"{best.figures['val_accuracy']:.2%}",
                f"{best.figures['val_macro_f1']:.4f}",
                f"{best.figures['val_loss']:.4f}",
                f"{training.facts['parameters'] / 1e6:.2f} M",
                f"{size_mb:.1f} MB",
                f"{seconds:.0f} s",
            ]
        ],
        to_stderr=True,
    )
    if (remark := _compare_with_head(result, training)) is not None:
        console.note(remark)
    console.done(f"the best model is {folder.best}")
    console.note(f"next: mnft eval --ckpt {folder.path}")
    console.show_data(str(folder.best))


def _compare_with_head(result: FitResult, training: Training) -> str | None:
    """That fine-tuning has not improved on the fitted head, and what to try; None where it has."""
    head, epochs = result.best, [r for r in result.epochs if r.stage != "head"]
    if head is None or head.stage != "head" or not epochs:
        return None
    name = f"val_{training.options.monitor}"
    choose = min if name == "val_loss" else max
    epoch = choose(epochs, key=lambda result: float(result.figures[name]))
    shape = ".2%" if name == "val_accuracy" else ".4f"
    best, before = (format(result.figures[name], shape) for result in (epoch, head))
    lr = training.config.optim.lr
    return (
        f"fine-tuning did not beat the head ({name} {best} in epoch {epoch.epoch}, the head "
        f"{before}), so the best model is the head's; to try: a lower rate (--set "
        f"optim.lr={lr / 3:.1g}), more epochs (--set train.epochs={2 * len(epochs)}), more images"
    )
