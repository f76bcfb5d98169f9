"""`mnft export`: a trained model to a file of another format that is proved to answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.commands.judging import Means, compute_selected
from mnft.commands.opening import Opened, load_settings, open_trained
from mnft.commands.selection import Selection, find_images
from mnft.config.schema import Config
from mnft.edge.artifact import PARITY, Artifact, compute_size, write_record
from mnft.edge.convert import convert
from mnft.edge.formats import Format, find_format
from mnft.edge.parity import Parity, check_gates, compute_parity, spread_evenly
from mnft.edge.runtimes import load_exported
from mnft.errors import ConfigError

_FEW_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Request:
    """What to export, and where to."""

    checkpoint: Path
    format: str
    data: Path | None
    split: str | None
    output: Path | None
    embed: bool


def run(request: Request, overrides: Sequence[str], *, as_json: bool) -> None:
    """Export a model, compare the file with it on real images, and keep it if it answers alike.

    Raises:
        MnftError: no model, no images, a tool-chain that is not there or fails.
        GateError: the file does not answer as the model does; nothing is written.
    """
    form = find_format(request.format)
    opened = open_trained(request.checkpoint)
    config, source = load_settings(opened, overrides)
    with source.locating():
        images = find_comparison_images(opened, request.data, request.split, config)
    target = request.output or default_target(opened, form.name + "-embedded" * request.embed)
    check_target(target)
    with files.atomic_folder(target) as folder:
        console.note(f"writing  {form.title}")
        artifact = convert(opened.bundle, form, folder, embed=request.embed)
        write_record(folder, artifact)
        parity = None
        if form.runtime is not None:
            parity = _compare(opened, folder, artifact, images, config)
            check_gates(parity, config.export, f"the {form.title} file")
        files.write_json(folder / PARITY, describe_parity(parity, images, form))
    _show(target, artifact, parity, form, as_json=as_json)


def find_comparison_images(
    opened: Opened, data: Path | None, split: str | None, config: Config
) -> Selection:
    """At most `export.images` images of the val split (or of a folder), evenly over the classes."""
    if data is None and split is None:
        split = "val"
    images = find_images(opened, data, split)
    chosen = images.take(spread_evenly(len(images.samples), config.export.images))
    if len(chosen.samples) < _FEW_IMAGES:
        console.warn(
            f"only {len(chosen.samples)} images to compare on; at least {_FEW_IMAGES} say more"
        )
    return chosen


def default_target(opened: Opened, name: str) -> Path:
    """RUN/exports/NAME for the best model; the name says which other model it was."""
    folder = opened.bundle.folder
    if opened.manifest is not None and folder.resolve() != opened.run.best.resolve():
        name = f"{folder.resolve().name}-{name}"
    parent = opened.run.path if opened.manifest is not None else folder.resolve()
    return parent / "exports" / name


def check_target(target: Path) -> None:
    """Refuse to replace what is not an earlier export.

    Raises:
        ConfigError: something else is there.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_dir() and (not any(target.iterdir()) or (target / "model.json").is_file()):
        return
    raise ConfigError(
        f"{target} exists and is not an earlier export, which alone may be replaced",
        hint="name a new folder: --output DIR",
    )


def _compare(
    opened: Opened, folder: Path, artifact: Artifact, images: Selection, config: Config
) -> Parity:
    exported = load_exported(folder)
    settings = config.eval.model_copy(update={"precision": "fp32"})
    means = Means("cpu")
    reference = compute_selected(opened.bundle, images, settings, means, what="trained model")
    outputs = compute_selected(exported, images, settings, means, what="exported file")
    return compute_parity(reference, outputs, probabilities=artifact.embedded)


def describe_parity(parity: Parity | None, images: Selection, form: Format) -> dict[str, Any]:
    """What parity.json says."""
    if parity is None:
        reason = f"{form.title} files cannot be run on this system"
        return {"checked": False, "passed": None, "reason": reason}
    names = [images.samples[position].path for position in parity.disagreements]
    where = {"data": str(images.root), "split": images.split}
    values = parity.as_json() | {"disagreements": names}
    return {"checked": True, "passed": True, **where, **values}


def _show(
    target: Path, artifact: Artifact, parity: Parity | None, form: Format, *, as_json: bool
) -> None:
    file = target / artifact.file
    size = compute_size(file)
    if as_json:
        record = {"checked": False} if parity is None else {"checked": True, **parity.as_json()}
        console.show_json(
            {"folder": str(target), "file": str(file), "bytes": size, "parity": record}
        )
        return
    console.note(f"file     {file}, {size / 1e6:.2f} MB")
    if parity is None:
        console.warn(
            f"parity not checked: {form.title} files cannot be run on this system; compare a few "
            "images on the device before you trust it"
        )
    else:
        console.note(
            f"parity   {parity.num_images} images: same class on {parity.agreement:.2%}, accuracy "
            f"{parity.accuracy_before:.2%} -> {parity.accuracy_after:.2%}, {parity.of} differ by "
            f"at most {parity.largest_difference:.2g} (mean {parity.mean_difference:.2g})"
        )
    console.done(f"exported to {target}")
    if form.runtime is not None:
        console.note(f"next: mnft eval --ckpt {target}")
    console.show_data(str(file))
