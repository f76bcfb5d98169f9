"""`mnft train`: fine-tune a model on a folder of images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from mnft import console
from mnft.device.ranks.group import joined
from mnft.device.select import keep_freed_memory
from mnft.errors import CheckpointError, DataError, Interrupted
from mnft.failures import explain_lost_worker
from mnft.reporter import SILENT
from mnft.results import EpochResult, FitResult
from mnft.runs.begin import Run, opened_run
from mnft.runs.parents import warn_of_seen_images
from mnft.runs.resume import describe_stop
from mnft.runs.writer import draw_curve, recorded
from mnft.signals import stop_request
from mnft.text import count
from mnft.training import stages
from mnft.training.fit import out_of_patience


def run(
    config_path: Path | None,
    overrides: Sequence[str],
    resume: Path | None,
    *,
    as_json: bool,
) -> None:
    """Train, or resume an interrupted run.

    Raises:
        MnftError: something ended the training too early.
        Interrupted: by Ctrl-C or SIGTERM; what is saved can be resumed.
    """
    started = time.monotonic()
    # Before anything is allocated: without it the kernel clears new pages for every large tensor.
    keep_freed_memory()
    with joined(console.REPORTER) as group:
        is_main = group.ranks.is_main
        with (
            opened_run(config_path, overrides, resume, group.ranks, console.REPORTER) as run,
            # Only the main process writes; the others have no checkpointer.
            recorded(run) if is_main else nullcontext() as checkpointer,
            console.TrainingDisplay() as display,
        ):
            # Only now is it known which run to resume after a signal.
            group.describe_stop = lambda stop: describe_stop(stop, run.folder)
            if is_main:
                _announce(run)
                warn_of_seen_images(run.manifest, run.training.config, console.REPORTER)
            try:
                result = stages.train(
                    run.training,
                    checkpointer=checkpointer,
                    reporter=display if is_main else SILENT,
                )
            except (RuntimeError, DataError, Interrupted) as error:
                # If another process has failed, that is the reason to give: what fails here is only
                # the exchange with it.
                if (told := group.explain(error)) is not None:
                    raise told from error
                # The signal that ended a loading process may be on its way to this one too, and is
                # then the reason.
                if explain_lost_worker(error.__cause__ or error):
                    stop_request.wait_for_signal()
                raise
        if is_main:
            training = run.training
            draw_curve(
                run.folder, training.task, training.state.results, training.config.eval.monitor
            )
            _show_result(run, result, time.monotonic() - started, as_json=as_json)


def _name_epoch(best: EpochResult, epochs: int) -> str:
    if best.share is not None:
        return f"{best.share:.0%} fine-tuned"
    return "head" if best.stage == "head" else f"{best.epoch} of {epochs}"


def _announce(run: Run) -> None:
    training = run.training
    config, facts, state = training.config, training.facts, training.state
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
        console.note(f"recipe   {choice.key}: {value}", detail=f"({choice.reason})")
    console.note(f"run      {run.folder.path}")
    if not run.resumed:
        return
    done = len(state.history)
    within = f" and {count(state.partial.updates, 'update')}" if state.partial else ""
    console.note(f"resumed  after epoch {done}{within}, learning rate {state.schedule.lr:.2e}")
    if "finetune" not in training.stages:
        return
    if done >= config.train.epochs:
        console.warn(
            f"the run has its {count(done, 'epoch')} already; "
            f"--set train.epochs={done + 10} would continue it"
        )
    elif out_of_patience(state, training.options):
        console.warn(
            "the run stopped early; a larger --set train.early_stopping=N would continue it"
        )


def _show_result(run: Run, result: FitResult, seconds: float, *, as_json: bool) -> None:
    folder, training, best = run.folder, run.training, result.best
    if best is None:
        raise CheckpointError(f"{folder.path}: no epoch was trained")
    figures = {name: best.figures[f"val_{name}"] for name in training.task.monitors}
    if as_json:
        console.show_json(
            {
                "run": str(folder.path),
                "best": str(folder.best),
                "epochs": len(result.epochs),
                "stopped_early": result.stopped_early,
                "best_epoch": best.epoch,
                **{f"val_{name}": value for name, value in figures.items()},
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
    shown = training.task.format_figures(figures)
    console.show_table(
        ["best epoch", *(f"val {name}" for name in shown), "parameters", "size", "time"],
        [
            [
                _name_epoch(best, len(result.epochs)),
                *shown.values(),
                f"{training.facts['parameters'] / 1e6:.2f} M",
                f"{size_mb:.1f} MB",
                f"{seconds:.0f} s",
            ]
        ],
        to_stderr=True,
    )
    for said in training.task.describe_settings(best.settings):
        say = console.warn if said.is_warning else console.note
        say(said.text)
        if said.hint is not None:
            console.note(f"hint: {said.hint}")
    if (remark := stages.compare_with_head(result, training)) is not None:
        console.note(remark)
    console.done(f"the best model is {folder.best}")
    console.note(f"next: mnft eval --ckpt {folder.path}")
    console.show_data(str(folder.best))
