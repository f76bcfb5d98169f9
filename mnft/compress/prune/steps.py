"""Pruning in steps with a training after each, and the run folder that comes of it."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnft import files
from mnft.compress.prune.channels import add_gradients, estimate_statistics, plan_targets, prune
from mnft.config.load import save_config
from mnft.config.schema import Config
from mnft.data.batches.samplers import EpochSampler
from mnft.data.lineage import pack
from mnft.data.manifest import Manifest, save_manifest
from mnft.device.ranks.distributed import Ranks
from mnft.errors import ModelError
from mnft.model.bundle import WEIGHTS, Bundle, load_bundle, save_bundle
from mnft.model.profile import compute_macs
from mnft.reporter import Reporter
from mnft.runs.folder import RunFolder, log_event
from mnft.runs.tensorboard import open_writer
from mnft.runs.training_plot import draw_training
from mnft.runs.writer import RunWriter
from mnft.tasks.classify.metrics import compute_epoch_metrics
from mnft.training import stages
from mnft.training.build import build_training
from mnft.training.inference import compute_outputs
from mnft.training.training import Training

START = "start"
TABLE = "pruning.csv"
RECORD = "pruning.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the table of accuracy against MACs.

    Attributes:
        name: `trained`, then `pruned` and `fine-tuned` for each step.
        step: 0 for the model that was given.
        folder: of the model, within the run; empty where it is not kept.
        macs: multiply-accumulates of one image.
        macs_share: of those of the given model.
        parameters: their number.
        size_mb: of the weights' file, 10^6 bytes.
        val_accuracy: share of the val images.
        val_macro_f1: in [0, 1].
        val_loss: mean cross-entropy in nats.
    """

    name: str
    step: int
    folder: str
    macs: int
    macs_share: float
    parameters: int
    size_mb: float
    val_accuracy: float
    val_macro_f1: float
    val_loss: float


@dataclass(frozen=True, slots=True)
class Job:
    """What to prune, and with what.

    Attributes:
        source: the trained model's folder.
        base: a training that was built on it, for its batches and device.
        config: of the fine-tunings, with every key resolved but the model's name.
        manifest: the images; theirs is the split of the new run too.
        folder: an empty one for the new run.
        home: where that folder will be in the end.
    """

    source: Path
    base: Training
    config: Config
    manifest: Manifest
    folder: Path
    home: Path


def prune_in_steps(job: Job, reporter: Reporter) -> list[Stage]:
    """Prune and fine-tune until the target is met; the last fine-tuning makes the run folder.

    `start/` is the last pruned model before its fine-tuning, from which config.yaml trains;
    `step-N/` are the fine-tuned models of the steps before. The val split alone judges.

    Raises:
        MnftError: a model that cannot be pruned, a target that cannot be reached, or what keeps a
            training from its end.
    """
    bundle, settings = load_bundle(job.source), job.config.prune
    full = compute_macs(bundle.model, bundle.preprocessing.input_size)
    table = [_judge(bundle, job, "trained", 0, full)]
    reporter.note(_describe_stage(table[0]))
    targets = plan_targets(settings.macs, settings.steps)
    for step, target in enumerate(targets, start=1):
        last = step == len(targets)
        bundle = _prune(bundle, job, math.floor(target * full), step)
        table.append(_judge(bundle, job, "pruned", step, full, START if last else ""))
        reporter.note(_describe_stage(table[-1]))
        run = RunFolder(job.folder if last else job.folder / f".step-{step}")
        _fine_tune(job, run, reporter)
        best = run.best
        if not last:
            best = best.rename(job.folder / f"step-{step}")
            shutil.rmtree(run.path)
        bundle = load_bundle(best)
        table.append(_judge(bundle, job, "fine-tuned", step, full, bundle.folder.name))
        reporter.note(_describe_stage(table[-1]))
    write_table(job.folder, table, {"source": str(job.source), "prune": settings.model_dump()})
    return table


def write_table(folder: Path, table: Sequence[Stage], facts: dict[str, Any]) -> None:
    """Write pruning.json and pruning.csv."""
    rows = [asdict(stage) for stage in table]
    files.write_json(folder / RECORD, {**facts, "stages": rows})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder / TABLE, text.getvalue())


def _prune(bundle: Bundle, job: Job, max_macs: int, step: int) -> Bundle:
    """A pruned model folder, opened: what is in it is what was pruned."""
    settings, base = job.config.prune, job.base
    device = base.options.loop.device
    model = bundle.model.to(device)
    # The order of the training images is that of an epoch that no training has.
    assert isinstance(base.train.sampler, EpochSampler)
    base.train.sampler.set_epoch(0)
    if settings.importance == "taylor":
        add_gradients(model, base.train, settings.images)
    input_size = bundle.preprocessing.input_size
    pruned = prune(
        model,
        input_size,
        max_macs=max_macs,
        round_to=settings.round_to,
        importance=settings.importance,
    ).model
    estimate_statistics(pruned, base.train, settings.images)
    folder = job.folder / START
    card = replace(base.card, pruned=True)
    save_bundle(folder, pruned.state_dict(), card, _facts(job) | {"step": step})
    opened = load_bundle(folder)
    _check_same(pruned, opened)
    return opened


def _check_same(pruned: nn.Module, opened: Bundle) -> None:
    """Refuse a model that its shapes do not tell everything about.

    On the CPU: TF32, and cuDNN's choice of algorithms, make a larger difference on a GPU than 1e-4.
    """
    size = opened.preprocessing.input_size
    image = torch.linspace(-1, 1, math.prod(size)).view(1, *size)
    pruned, rebuilt = pruned.cpu(), opened.model.cpu()
    with torch.inference_mode():
        before, after = pruned(image), rebuilt(image)
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"a pruned {opened.architecture} cannot be rebuilt from its tensors",
            hint="MobileNets, EfficientNets, ResNets and ConvNeXts can",
        )


def _facts(job: Job) -> dict[str, Any]:
    return {
        "split_fingerprint": job.manifest.fingerprint,
        "pruned_from": str(job.source),
        "trained_on": pack(job.manifest.trained_on),
    }


def _judge(bundle: Bundle, job: Job, name: str, step: int, full: int, folder: str = "") -> Stage:
    options = job.base.options
    macs = compute_macs(bundle.model, bundle.preprocessing.input_size)
    outputs = compute_outputs(
        bundle.model.to(options.loop.device),
        job.base.val,
        num_classes=options.num_classes,
        device=options.loop.device,
        dtype=options.eval_dtype,
    )
    metrics = compute_epoch_metrics(outputs.logits, outputs.targets)
    return Stage(
        name=name,
        step=step,
        folder=folder,
        macs=macs,
        macs_share=macs / full,
        parameters=sum(parameter.numel() for parameter in bundle.model.parameters()),
        size_mb=(bundle.folder / WEIGHTS).stat().st_size / 1e6,
        val_accuracy=metrics.accuracy,
        val_macro_f1=metrics.macro_f1,
        val_loss=metrics.loss,
    )


def _describe_stage(stage: Stage) -> str:
    name = f"{stage.name} {stage.step}" if stage.step else stage.name
    return (
        f"{name:<13} {stage.macs_share:.1%} of the MACs, {stage.parameters / 1e6:.2f} M "
        f"parameters, val accuracy {stage.val_accuracy:.2%}"
    )


def _fine_tune(job: Job, run: RunFolder, reporter: Reporter) -> None:
    """An ordinary training of the pruned model, with all that it leaves."""
    config = _starting_from(job.config, job.folder / START)
    training = build_training(
        config,
        job.manifest,
        device=job.base.options.loop.device,
        ranks=Ranks(),
        reporter=reporter,
    )
    run.path.mkdir(exist_ok=True)
    saved = _starting_from(training.config, job.home / START)
    save_config(saved, run.config)
    save_manifest(job.manifest, run.split)
    # The folder of the work has another name than the finished one.
    weights = str(training.facts["weights"]).replace(str(job.folder), str(job.home))
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
    if run.path == job.folder:  # the runs of earlier steps are not kept
        draw_training(run, training.state.results, training.config.eval.monitor)
    log_event(
        run, "stop", {"reason": "early stopping" if result.stopped_early else "all epochs done"}
    )


def _starting_from(config: Config, folder: Path) -> Config:
    model = config.model.model_copy(update={"name": f"local-dir:{folder}"})
    return config.model_copy(update={"model": model})
