"""The models that a training starts from or learns from, and the images that they have seen."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from mnft.config.schema import Config
from mnft.data.lineage import shorten, unpack
from mnft.data.manifest import SPLIT_FILE, Manifest, load_manifest
from mnft.errors import CheckpointError
from mnft.model.bundle import RECORD
from mnft.model.sources import find_start_folder
from mnft.model.teacher import find_folder
from mnft.reporter import Reporter


@dataclass(frozen=True, slots=True)
class Parent:
    """A model whose weights or answers a training takes over.

    Attributes:
        what: part in the training, in words.
        folder: the model folder.
        run: the run folder that it lies in, or None.
    """

    what: str
    folder: Path
    run: Path | None


def inherit(manifest: Manifest, config: Config, reporter: Reporter) -> Manifest:
    """The manifest, with the images that its parents were trained on as `inherited`."""
    seen = frozenset[str]().union(
        *(_read_trained_on(parent, reporter) for parent in find_parents(config))
    )
    own = replace(manifest, inherited=frozenset()).trained_on
    return replace(manifest, inherited=seen - own)


def warn_of_seen_images(manifest: Manifest, config: Config, reporter: Reporter) -> None:
    """Name val and test images that a model before this one was trained on."""
    parts = []
    for split in ("test", "val"):
        samples = manifest.split(split)
        if seen := sum(shorten(sample.sha256) in manifest.inherited for sample in samples):
            parts.append(f"{seen} of the {len(samples)} {split} images")
    if not parts:
        return
    parents = find_parents(config)
    who = " or ".join(f"{parent.folder} ({parent.what})" for parent in parents)
    runs = [parent.run for parent in parents if parent.run]
    cure = ""
    if runs and config.data.split_from is None:
        cure = f"; --set data.split_from={runs[0]} takes over the split of that run"
    reporter.warn(
        f"{' and '.join(parts)} were trained on by {who or 'a model before this one'}, so the "
        f"figures on them will be too good{cure}"
    )


def find_parents(config: Config) -> list[Parent]:
    """The model folders that weights come from, and that teach; published models have none."""
    named = [("the start model", find_start_folder(config.model))]
    for teacher in config.distill.teachers:
        named.append(("the teacher", find_folder(teacher)))
    return [Parent(what, folder, _find_run(folder)) for what, folder in named if folder]


def _find_run(folder: Path) -> Path | None:
    """The folder itself, for weights that lie beside the split, or the one that it lies in."""
    inner = folder if folder.name not in {"", ".."} else folder.resolve()
    return next((p for p in (folder, inner.parent) if (p / SPLIT_FILE).is_file()), None)


def _read_trained_on(parent: Parent, reporter: Reporter) -> frozenset[str]:
    """Shortened SHA-256 of its training images; older models have only those of their split."""
    record = parent.folder / RECORD
    try:
        content = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if "trained_on" in content:
            return unpack(content["trained_on"])
        return load_manifest(parent.run / SPLIT_FILE).trained_on if parent.run else frozenset()
    except (OSError, ValueError, TypeError, CheckpointError) as error:
        reporter.warn(
            f"which images {parent.folder} was trained on is not known, so nobody can tell whether "
            f"test images are among them: {error}"
        )
        return frozenset()
