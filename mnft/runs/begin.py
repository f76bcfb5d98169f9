"""From a config to a training that can begin: early checks, images, parts; for several commands."""

from __future__ import annotations

from pathlib import Path

from mnft.config.schema import Config
from mnft.data.fetch import catalog
from mnft.data.manifest import Manifest, list_changes, load_manifest
from mnft.data.prepare import prepare_manifest
from mnft.device.machine import Machine, open_machine
from mnft.device.ranks.distributed import Ranks, broadcast
from mnft.errors import DataError
from mnft.model.factory import check_model
from mnft.reporter import Reporter
from mnft.runs.folder import RunFolder, check_name_is_free
from mnft.runs.parents import inherit
from mnft.runs.tensorboard import wants_writer
from mnft.tasks.classify.distill.teacher import check_teacher
from mnft.text import count
from mnft.training.build import build_training
from mnft.training.inputs import UncheckedImages
from mnft.training.optim import check_optimizer_name
from mnft.training.training import Training


def check_early(config: Config, ranks: Ranks, *, resumed: bool) -> Machine:
    """Find what is wrong before the images are looked at.

    Returns:
        The machine to train on.

    Raises:
        MnftError: what is wrong.
    """
    check_model(config.model)
    check_optimizer_name(config.optim.name)
    machine = open_machine(config.train.device, ranks)
    machine.with_precision(config.train.precision, config.eval.precision, img_size=None)
    wants_writer(config.run)
    if config.distill.teacher:
        check_teacher(config.distill)
    if config.data.fetch:
        catalog.describe(config.data.fetch)
    if not resumed:
        check_name_is_free(Path(config.run.dir).expanduser(), config.run.name)
    return machine


def begin_training(
    config: Config,
    run_folder: RunFolder | None,
    machine: Machine,
    reporter: Reporter,
) -> tuple[Manifest, Training]:
    """The images, and all that training on them takes.

    Each image is decoded once: for the store, which finds those that cannot be. Only then all
    are checked one by one, so that every bad file is named or left out.
    """
    if run_folder is None and config.data.store != "off":
        try:
            return _prepare(config, None, machine, reporter, check_later=True)
        except UncheckedImages:
            pass
    return _prepare(config, run_folder, machine, reporter, check_later=False)


def _prepare(
    config: Config,
    run_folder: RunFolder | None,
    machine: Machine,
    reporter: Reporter,
    *,
    check_later: bool,
) -> tuple[Manifest, Training]:
    manifest = broadcast(
        machine.ranks,
        lambda: _bring_manifest(config, run_folder, reporter, check_later=check_later),
    )
    training = build_training(
        config,
        manifest,
        machine,
        reporter=reporter,
        checked=not check_later,
    )
    if machine.ranks.is_main and run_folder is None:
        counts = ", ".join(f"{len(manifest.split(s)):,} {s}" for s in manifest.splits)
        taken = f"; split of {config.data.split_from}" if config.data.split_from else ""
        names = len(manifest.class_names)
        reporter.note(f"data     {manifest.root}: {names} classes, {counts}{taken}")
    return manifest, training


def _bring_manifest(
    config: Config, run_folder: RunFolder | None, reporter: Reporter, *, check_later: bool
) -> Manifest:
    """The run's own manifest when it is resumed, or a new one from the folder."""
    if run_folder:
        manifest = load_manifest(run_folder.split)
        if changes := list_changes(manifest, manifest.split("train") + manifest.split("val")):
            raise DataError(
                f"{manifest.root}: {count(len(changes), 'image')} changed since the run began:\n  "
                + "\n  ".join(changes[:10]),
                hint="restore them, or start a new run",
            )
        return manifest
    root = Path(config.data.root).expanduser()
    if not root.exists() and config.data.fetch:
        bring(config.data.fetch, root, reporter)
    with reporter.track("checking images") as on_progress:
        manifest = prepare_manifest(config.data, on_progress, check_later=check_later)
    return inherit(manifest, config, reporter)


def bring(name: str, destination: Path, reporter: Reporter, source: Path | None = None) -> Path:
    """Fetch a data set, and say which."""
    info = catalog.describe(name)
    reporter.note(f"fetch    {info.title}: {info.num_images:,} images, {info.num_classes} classes")
    return catalog.fetch(name, destination, source=source, reporter=reporter)
