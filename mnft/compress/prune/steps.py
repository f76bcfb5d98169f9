"""Prune in steps, fine-tune after each, and leave a run folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mnft import files
from mnft.compress.prune.channels import add_gradients, estimate_statistics, plan_targets, prune
from mnft.config.load import save_config
from mnft.config.schema import Config
from mnft.data.lineage import pack
from mnft.data.manifest import Manifest, save_manifest
from mnft.device.machine import Machine
from mnft.errors import ModelError
from mnft.model.bundle import WEIGHTS, Bundle, load_bundle, save_bundle
from mnft.model.profile import compute_macs
from mnft.reporter import Reporter
from mnft.runs.folder import RunFolder, log_event
from mnft.runs.tensorboard import open_writer
from mnft.runs.writer import RunWriter, draw_curve
from mnft.training import stages
from mnft.training.build import build_training
from mnft.training.fit import evaluate
from mnft.training.training import Training

START = "start"
TABLE = "pruning.csv"
RECORD = "pruning.json"


@dataclass(frozen=True, slots=True)
class PruneRow:
    """One row of the table of accuracy against MACs.

    Attributes:
        name: `trained`, then `pruned` and `fine-tuned` for each step.
        step: the number of the step; 0 for the model that was given.
        folder: the model's folder within the run; empty where it is not kept.
        macs: the multiply-accumulates of one image.
        macs_share: these as a fraction of the given model's.
        parameters: the number of parameters.
        size_mb: the size of the weights' file in 10^6 bytes.
        figures: the figures on the val images, by their names.
    """

    name: str
    step: int
    folder: str
    macs: int
    macs_share: float
    parameters: int
    size_mb: float
    figures: Mapping[str, float]

    @property
    def label(self) -> str:
        """The name with the number of the step."""
        return f"{self.name} {self.step}" if self.step else self.name

    def as_record(self) -> dict[str, Any]:
        """The row as pruning.json and pruning.csv hold it, with the figures side by side."""
        record = asdict(self)
        figures = record.pop("figures")
        return record | {f"val_{name}": value for name, value in figures.items()}


@dataclass(frozen=True, slots=True)
class PruneJob:
    """What to prune, and with what.

    Attributes:
        source: the trained model's folder.
        base: a training that was built on that model, for its batches and device.
        config: the config of the fine-tunings, with every key resolved except the model's name.
        manifest: the images; the new run has the same split.
        folder: an empty folder, in which the new run is made.
        home: the path that this folder gets when it is complete.
    """

    source: Path
    base: Training
    config: Config
    manifest: Manifest
    folder: Path
    home: Path


def prune_in_steps(job: PruneJob, reporter: Reporter) -> list[PruneRow]:
    """Prune and fine-tune until the target is met; the last fine-tuning makes the run folder.

    `start/` is the last pruned model before its fine-tuning, from which config.yaml trains;
    `step-N/` are the fine-tuned models of the steps before. Only the val split judges.

    Raises:
        MnftError: a model that cannot be pruned, a target that cannot be reached, or a training
            that fails.
    """
    bundle, settings = load_bundle(job.source), job.config.prune
    full_macs = compute_macs(bundle.model, bundle.preprocessing.input_size)
    rows: list[PruneRow] = []

    def add_row(name: str, step: int, bundle: Bundle, folder: str = "") -> None:
        row = _build_row(name, step, bundle, folder, job, full_macs)
        rows.append(row)
        main, value = next(iter(job.base.task.format_figures(row.figures).items()))
        reporter.note(
            f"{row.label:<13} {row.macs_share:.1%} of the MACs, {row.parameters / 1e6:.2f} M "
            f"parameters, val {main} {value}"
        )

    add_row("trained", 0, bundle)
    targets = plan_targets(settings.macs, settings.steps)
    for step, target in enumerate(targets, start=1):
        last = step == len(targets)
        bundle = _prune_once(bundle, job, math.floor(target * full_macs), step)
        add_row("pruned", step, bundle, START if last else "")
        run = RunFolder(job.folder if last else job.folder / f".step-{step}")
        _fine_tune(job, run, reporter)
        best = run.best
        if not last:  # of the runs of earlier steps only the best model is kept
            best = best.rename(job.folder / f"step-{step}")
            shutil.rmtree(run.path)
        bundle = load_bundle(best)
        add_row("fine-tuned", step, bundle, best.name)

    table = [row.as_record() for row in rows]
    facts = {"source": str(job.source), "prune": settings.model_dump()}
    files.write_json(job.folder / RECORD, {**facts, "stages": table})
    files.write_csv(job.folder / TABLE, [list(table[0]), *(row.values() for row in table)])
    return rows


def _prune_once(bundle: Bundle, job: PruneJob, max_macs: int, step: int) -> Bundle:
    """Prune a model to `max_macs`, save it and open what was saved, so that it is known to open."""
    settings, base, model = job.config.prune, job.base, bundle.model
    model.to(base.machine.device)
    # Epoch 0, which no training has: images in an order of their own.
    base.train.sampler.set_epoch(0)
    if settings.importance == "taylor":
        add_gradients(model, base.train, settings.images)
    pruned = prune(
        model,
        bundle.preprocessing.input_size,
        max_macs=max_macs,
        round_to=settings.round_to,
        importance=settings.importance,
    )
    estimate_statistics(pruned, base.train, settings.images)
    folder = job.folder / START
    # What the task fitted to the outputs of the whole model does not fit those of the pruned one.
    _, fitted = evaluate(pruned, base.val, base.options.loop)
    card = replace(base.card, pruned=True, settings=fitted)
    save_bundle(folder, pruned.state_dict(), card, _facts(job) | {"step": step})

    saved = load_bundle(folder)
    size = saved.preprocessing.input_size
    image = torch.linspace(-1, 1, math.prod(size)).view(1, *size)
    # On the CPU: with TF32, and cuDNN's choice of algorithms, a GPU differs by more than 1e-4.
    pruned, rebuilt = pruned.cpu(), saved.model.cpu()
    with torch.inference_mode():
        before, after = pruned(image), rebuilt(image)
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"a pruned {saved.architecture} cannot be rebuilt from its tensors",
            hint="MobileNets, EfficientNets, ResNets and ConvNeXts can",
        )
    return saved


def _build_row(
    name: str, step: int, bundle: Bundle, folder: str, job: PruneJob, full_macs: int
) -> PruneRow:
    """The costs of a model, and its accuracy on the val images."""
    macs = compute_macs(bundle.model, bundle.preprocessing.input_size)
    model = bundle.model.to(job.base.machine.device)
    figures, _ = evaluate(model, job.base.val, job.base.options.loop)
    return PruneRow(
        name=name,
        step=step,
        folder=folder,
        macs=macs,
        macs_share=macs / full_macs,
        parameters=sum(parameter.numel() for parameter in bundle.model.parameters()),
        size_mb=(bundle.folder / WEIGHTS).stat().st_size / 1e6,
        figures={name: figures[name] for name in job.base.task.monitors},
    )


def _fine_tune(job: PruneJob, run: RunFolder, reporter: Reporter) -> None:
    """Train the pruned model as any other, with all files of a run."""
    config = _starting_from(job.config, job.folder / START)
    machine = Machine(job.base.machine.device)
    training = build_training(config, job.manifest, machine, reporter=reporter)
    run.path.mkdir(exist_ok=True)
    # The folder gets another name when it is complete; config and log must name that one.
    saved = _starting_from(training.config, job.home / START)
    weights = str(training.facts["weights"]).replace(str(job.folder), str(job.home))
    save_config(saved, run.config)
    save_manifest(job.manifest, run.split)
    log_event(run, "start", {**training.facts, "weights": weights, "config": saved.model_dump()})
    facts = {**_facts(job), "monitor": training.config.eval.monitor}
    writer = open_writer(run.path, training.config.run)
    checkpointer = RunWriter(run, training.card, facts, writer)
    try:
        with checkpointer:
            result = stages.train(training, checkpointer=checkpointer, reporter=reporter)
    finally:
        if writer is not None:
            writer.close()
    if run.path == job.folder:
        draw_curve(run, training.task, training.state.results, training.config.eval.monitor)
    log_event(
        run, "stop", {"reason": "early stopping" if result.stopped_early else "all epochs done"}
    )


def _facts(job: PruneJob) -> dict[str, Any]:
    """Where a pruned model comes from, for the record of its folder."""
    return {
        "split_fingerprint": job.manifest.fingerprint,
        "pruned_from": str(job.source),
        "trained_on": pack(job.manifest.trained_on),
    }


def _starting_from(config: Config, folder: Path) -> Config:
    model = config.model.model_copy(update={"name": f"local-dir:{folder}"})
    return config.model_copy(update={"model": model})
