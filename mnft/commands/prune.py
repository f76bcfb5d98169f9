"""`mnft prune`: a trained model with fewer channels, fine-tuned, as a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnft import console, files
from mnft.compress.prune.channels import import_torch_pruning
from mnft.compress.prune.settings import check_overrides, configure
from mnft.compress.prune.steps import PruneJob, PruneRow, prune_in_steps
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import keep_freed_memory
from mnft.errors import CheckpointError, ConfigError, Interrupted
from mnft.evaluation.checkpoint import load_settings, open_trained
from mnft.runs.begin import begin_training, check_early
from mnft.tasks.base import Task
from mnft.text import count


def run(checkpoint: Path, overrides: Sequence[str], output: Path | None, *, as_json: bool) -> None:
    """Prune a run's best model to a fraction of its MACs, fine-tune it, and show what it cost.

    Args:
        checkpoint: a run, or a model folder in one.
        overrides: `section.key=value` over the run's config.
        output: the new run folder; None takes RUN/pruned-PERCENT.
        as_json: print one JSON object instead of a table.

    Raises:
        MnftError: no run, images that have changed, a target that cannot be reached, a model that
            cannot be pruned, an output folder that exists already.
        Interrupted: by Ctrl-C or SIGTERM; nothing is written.
    """
    keep_freed_memory()
    opened = open_trained(checkpoint)
    trained = opened.bundle.folder
    if opened.manifest is None:
        raise CheckpointError(
            f"{trained} does not lie in a run, so its training images are not known",
            hint="pruning needs them: train it on your images first (mnft train, with "
            f"model.name: local-dir:{trained}), then prune that run",
        )
    written = check_overrides(overrides)
    config, source = load_settings(opened, overrides)
    home = output or opened.run.path / f"pruned-{100 * config.prune.macs:g}"
    if home.exists() or home.is_symlink():
        raise ConfigError(
            f"{home} exists already, and nothing is overwritten",
            hint="name a new folder: --output DIR, or delete it",
        )
    import_torch_pruning()
    with source.locating():
        config = configure(config, written, trained, home)
        model = config.model.model_copy(update={"name": f"local-dir:{trained}"})
        base = config.model_copy(update={"model": model})
        machine = check_early(base, Ranks(), new_run=False)
        # This training is built only for its batches, so it needs no teacher.
        no_teacher = config.distill.model_copy(update={"teacher": None, "images": None})
        base = base.model_copy(update={"distill": no_teacher})
        manifest, training = begin_training(base, opened.run, machine, console.REPORTER)
        console.note(
            f"pruning  {trained} to {config.prune.macs:.0%} of its MACs; "
            f"{count(config.train.epochs, 'epoch')} of fine-tuning"
        )
        try:
            with files.atomic_folder(home) as folder, console.TrainingDisplay() as display:
                job = PruneJob(trained, training, config, manifest, folder, home)
                rows = prune_in_steps(job, display)
        except Interrupted as error:
            raise Interrupted(error.exit_code, f"by {error.by}; nothing was written") from error
    best = home / "best"
    if as_json:
        stages = [row.as_record() for row in rows]
        console.show_json({"run": str(home), "best": str(best), "stages": stages})
        return
    _show_table(rows, training.task)
    console.done(f"the pruned model is {best}")
    console.note(f"next: mnft eval --ckpt {home}")
    console.show_data(str(best))


def _show_table(rows: Sequence[PruneRow], task: Task) -> None:
    figures = [task.format_figures(row.figures) for row in rows]
    console.show_table(
        [
            *("model", "MACs", "share", "parameters", "size"),
            *(f"val {name}" for name in figures[0]),
            "folder",
        ],
        [
            [
                row.label,
                f"{row.macs / 1e6:.1f} M",
                f"{row.macs_share:.1%}",
                f"{row.parameters / 1e6:.2f} M",
                f"{row.size_mb:.1f} MB",
                *shown.values(),
                row.folder,
            ]
            for row, shown in zip(rows, figures, strict=True)
        ],
        to_stderr=True,
    )
