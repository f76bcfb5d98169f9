"""From a config to a training that can begin: early checks, images, parts, and the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mnft import files
from mnft.config.load import load_config, save_config
from mnft.config.schema import Config
from mnft.config.source import dump_yaml
from mnft.data.fetch import catalog
from mnft.data.labels import OTHER
from mnft.data.manifest import UNLABELLED, Manifest, list_changes, load_manifest, save_manifest
from mnft.data.prepare import prepare_manifest
from mnft.data.unlabelled import add_unlabelled, check_folder
from mnft.device.machine import Machine, open_machine
from mnft.device.ranks.distributed import Ranks, broadcast
from mnft.errors import DataError
from mnft.model.factory import check_model
from mnft.model.teacher import check_teacher
from mnft.reporter import Reporter
from mnft.runs.folder import (
    RunFolder,
    check_name_is_free,
    create_run,
    default_name,
    has_progress,
)
from mnft.runs.lock import RunLock
from mnft.runs.parents import inherit
from mnft.runs.resume import check_resumable, check_same_teachers, find_run
from mnft.runs.tensorboard import wants_writer
from mnft.tasks import load_label_rules
from mnft.text import count
from mnft.training.build import build_training
from mnft.training.inputs import UncheckedImages, list_learned
from mnft.training.optim import check_optimizer_name
from mnft.training.state import load_state
from mnft.training.training import Training


@dataclass(frozen=True, slots=True)
class Run:
    """A training that is ready to begin, and the folder that it writes into.

    Attributes:
        folder: where everything is written; locked.
        lock: the right to write there; only the main process holds it.
        manifest: the images of each split.
        training: the parts of the training, in the state that it continues from.
        resumed: whether an earlier process began the run.
    """

    folder: RunFolder
    lock: RunLock
    manifest: Manifest
    training: Training
    resumed: bool


@contextmanager
def opened_run(
    config_path: Path | None,
    overrides: Sequence[str],
    resume: Path | None,
    ranks: Ranks,
    reporter: Reporter,
) -> Iterator[Run]:
    """Begin a run, or resume one; inside the block its folder is locked.

    A new folder is made last, so that nothing is left behind by a run that cannot begin.

    Args:
        config_path: the config of a new run.
        overrides: values of `--set`.
        resume: a run, or AUTO for the newest one of the config.
        ranks: the processes of the training; the main one makes and locks the folder.
        reporter: receives notes and progress.

    Raises:
        MnftError: the training cannot begin.
    """
    folder, sets = broadcast(ranks, lambda: find_run(config_path, overrides, resume))
    resumed = folder is not None
    with ExitStack() as stack:

        def lock(folder: RunFolder) -> RunLock:
            taken = RunLock(folder.path)
            broadcast(ranks, taken.acquire)
            stack.callback(taken.release)
            return taken

        # A run is locked before anything in it is read, as another process may be writing it. A new
        # one is locked below, once it has a folder.
        held = lock(folder) if folder else None
        path = folder.config if folder else config_path
        assert path is not None
        config, source = load_config(path, sets)
        stack.enter_context(source.locating())
        if folder:
            check_resumable(config, folder)
            # A version of mnft that had no stages began it: the recipe must not choose any now.
            if config.train.stages is None:
                config = config.model_copy(update={"recipe": "plain"})
        machine = check_early(config, ranks, new_run=not resumed)
        manifest, training = begin_training(config, folder, machine, reporter)
        if folder:
            check_same_teachers(folder, training.facts)
        if folder and has_progress(folder):
            load_state(training.state, folder.resume)

        def fill(new: RunFolder) -> None:
            files.write_text(new.written, dump_yaml(source.values))
            save_config(training.config, new.config)
            save_manifest(manifest, new.split)

        if folder is None:
            parent, name = Path(config.run.dir).expanduser(), config.run.name
            folder = broadcast(
                ranks,
                lambda: create_run(parent, name=name, default_name=default_name(path), fill=fill),
            )
        yield Run(folder, held or lock(folder), manifest, training, resumed)


def check_early(config: Config, ranks: Ranks, *, new_run: bool) -> Machine:
    """Check all that can be checked before the images are read.

    Args:
        config: config of the training.
        ranks: the processes of the training.
        new_run: whether a run folder will be made, whose name must then be free.

    Returns:
        The machine to train on.

    Raises:
        MnftError: a name, a device or an option that cannot be used, or a run folder that exists.
    """
    check_model(config.model)
    check_optimizer_name(config.optim.name)
    machine = open_machine(config.train.device, ranks)
    machine.with_precision(config.train.precision, config.eval.precision, img_size=None)
    wants_writer(config.run)  # called here for its errors only, as is `with_precision` above
    for teacher in config.distill.teachers:
        check_teacher(teacher)
    if config.distill.images is not None:
        check_folder(Path(config.distill.images).expanduser())
    if config.data.fetch:
        catalog.describe(config.data.fetch)
    if new_run:
        check_name_is_free(Path(config.run.dir).expanduser(), config.run.name)
    return machine


def begin_training(
    config: Config,
    run_folder: RunFolder | None,
    machine: Machine,
    reporter: Reporter,
) -> tuple[Manifest, Training]:
    """Find the images, and build everything that training on them needs.

    Each image is decoded only once, by the store, which also finds out whether every file can be
    decoded. Only if one cannot, or there is no store, are all files checked one by one, so that
    each bad file is named or left out.
    """
    if run_folder is None and config.data.store != "off":
        try:
            return _build(config, None, machine, reporter, check_later=True)
        except UncheckedImages:
            pass
    return _build(config, run_folder, machine, reporter, check_later=False)


def _build(
    config: Config,
    run_folder: RunFolder | None,
    machine: Machine,
    reporter: Reporter,
    *,
    check_later: bool,
) -> tuple[Manifest, Training]:
    manifest = broadcast(
        machine.ranks, lambda: _find_manifest(config, run_folder, reporter, check_later=check_later)
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
        if without := len(manifest.split(UNLABELLED)):
            counts += f", {without:,} without labels"
        taken = f"; split of {config.data.split_from}" if config.data.split_from else ""
        rules = load_label_rules(config.task)
        num_others = sum(sample.label == OTHER for sample in manifest.samples)
        names = count(len(manifest.labels) - bool(num_others), rules.noun, rules.plural)
        names += f" and {count(num_others, 'image')} of none of them" if num_others else ""
        reporter.note(f"data     {manifest.root}: {names}, {counts}{taken}")
    return manifest, training


def _find_manifest(
    config: Config, run_folder: RunFolder | None, reporter: Reporter, *, check_later: bool
) -> Manifest:
    """Load the manifest of a run that is resumed, or make one from the folder of images."""
    if run_folder:
        manifest = load_manifest(run_folder.split)
        if changes := list_changes(
            manifest, list_learned(config, manifest) + manifest.split("val")
        ):
            raise DataError(
                f"{manifest.root}: {count(len(changes), 'image')} changed since the run began:\n  "
                + "\n  ".join(changes[:10]),
                hint="restore them, or start a new run",
            )
        return manifest
    root = Path(config.data.root).expanduser()
    if not root.exists() and config.data.fetch:
        catalog.fetch(config.data.fetch, root, reporter=reporter)
    with reporter.track("checking images") as on_progress:
        manifest = prepare_manifest(
            config.data, load_label_rules(config.task), on_progress, check_later=check_later
        )
    if config.distill.images is not None:
        folder = Path(config.distill.images).expanduser()
        with reporter.track("checking images without labels") as on_progress:
            manifest = add_unlabelled(
                manifest, folder, config.data, on_progress, check_later=check_later
            )
    return inherit(manifest, config, reporter)
