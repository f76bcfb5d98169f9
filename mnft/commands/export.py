"""`mnft export`: a trained model to a file of another format that is proved to answer alike."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.config.edge import ExportConfig
from mnft.config.schema import Config
from mnft.data.folder import scan_folder
from mnft.errors import ConfigError
from mnft.evaluation.checkpoint import Opened, load_settings, open_trained, spell
from mnft.evaluation.images import Selection, find_images
from mnft.evaluation.outputs import Means, compute_selected
from mnft.evaluation.parity import Parity, check_gates, compute_parity
from mnft.exports.artifact import (
    PARITY,
    Artifact,
    compute_size,
    is_export,
    read_artifact,
    write_record,
)
from mnft.exports.convert import check_toolchain, convert
from mnft.exports.formats import Format, find_format
from mnft.exports.model import load_exported
from mnft.text import count

_FEW_IMAGES = 256
# Rounding alone was seen to move a logit by 1e-5 in fp32.
_LARGE_DIFFERENCE = 0.01


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
    check_toolchain(form)
    opened = open_trained(request.checkpoint)
    config, source = load_settings(opened, overrides)
    target = request.output or default_target(opened, form.name + "-embedded" * request.embed)
    check_target(target)
    images = None
    if form.runtime is not None:
        with source.locating():
            images = find_comparison_images(opened, request.data, request.split, config)
    with files.atomic_folder(target) as folder:
        console.note(f"writing  {form.title}")
        artifact = convert(opened.bundle, form, folder, embed=request.embed)
        write_record(folder, artifact)
        parity = None
        if images is not None:
            parity = compare(opened, folder, images, config)
            check_gates(parity, config.export, f"the {form.title} file")
        record = describe_parity(parity, images, form, config.export)
        files.write_json(folder / PARITY, record)
    _show(target, artifact, parity, record, as_json=as_json)


def find_comparison_images(
    opened: Opened, data: Path | None, split: str | None, config: Config
) -> Selection:
    """At most `export.images` images of the val split (or of a folder), evenly over the classes."""
    if split is None and (data is None or "val" in scan_folder(data).splits):
        split = "val"
    chosen = find_images(opened, data, split, limit=config.export.images)
    if len(chosen.samples) < _FEW_IMAGES:
        console.warn(
            f"only {count(len(chosen.samples), 'image')} to compare on; at least {_FEW_IMAGES} say "
            "more"
        )
    return chosen


def default_target(opened: Opened, name: str) -> Path:
    """RUN/exports/NAME for the best model; the name says which other model it was."""
    folder = opened.bundle.folder
    if opened.manifest is not None and folder.resolve() != opened.run.best.resolve():
        name = f"{folder.resolve().name}-{name}"
    parent = opened.run.path if opened.manifest is not None else Path(spell(folder))
    return parent / "exports" / name


def check_target(target: Path) -> None:
    """Refuse to replace what is not an earlier export.

    Raises:
        ConfigError: something else is there.
    """
    if target.resolve() == Path.cwd():
        raise ConfigError(
            f"--output: {target} is the current folder, and an export is a folder of its own",
            hint="name a new folder: --output DIR",
        )
    if not (target.exists() or target.is_symlink()):
        parent = next(folder for folder in target.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise ConfigError(f"--output: {parent} is a file, expected a folder")
        return
    if target.is_dir() and (not any(target.iterdir()) or is_export(target)):
        return
    raise ConfigError(
        f"{target} exists and is not an earlier export, which alone may be replaced",
        hint="name a new folder: --output DIR",
    )


def compare(opened: Opened, folder: Path, images: Selection, config: Config) -> Parity:
    """Run an exported file as its folder describes it, and the model that it was made from."""
    exported = load_exported(folder)
    settings = config.eval.model_copy(update={"precision": "fp32"})
    means = Means("cpu", store=config.data.store)
    reference = compute_selected(opened.bundle, images, settings, means, what="trained model")
    outputs = compute_selected(exported, images, settings, means, what="exported file")
    return compute_parity(reference, outputs, probabilities=read_artifact(folder).embedded)


def describe_parity(
    parity: Parity | None, images: Selection | None, form: Format, gates: ExportConfig
) -> dict[str, Any]:
    """What parity.json says of a file that is kept."""
    if parity is None or images is None:
        reason = f"{form.title} files cannot be run on this system"
        return {"checked": False, "passed": None, "reason": reason}
    names = [images.samples[position].path for position in parity.disagreements]
    where = {"data": str(images.root), "split": images.split}
    values = parity.as_json() | {"disagreements": names}
    limits = gates.model_dump(include={"min_agreement", "max_accuracy_drop"})
    return {"checked": True, "passed": True, **where, **values, "gates": limits}


def _show(
    target: Path,
    artifact: Artifact,
    parity: Parity | None,
    record: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    file = target / artifact.file
    size = compute_size(file)
    if as_json:
        where = {"folder": str(target), "file": str(file), "bytes": size}
        console.show_json({**where, "parity": record})
        return
    console.note(f"file     {file}, {size / 1e6:.2f} MB")
    if parity is None:
        console.warn(
            f"parity not checked: {record['reason']}; compare a few images on the device before "
            "you trust it"
        )
    else:
        console.note(
            f"parity   {count(parity.num_images, 'image')}: same class on {parity.agreement:.2%}, "
            f"accuracy {parity.accuracy_before:.2%} -> {parity.accuracy_after:.2%}, {parity.of} "
            f"differ by at most {parity.largest_difference:.2g} (mean {parity.mean_difference:.2g})"
        )
        if parity.largest_difference > _LARGE_DIFFERENCE:
            console.warn(
                f"{parity.of} that differ by {parity.largest_difference:.2g} are more than rounding"
            )
    console.done(f"exported to {target}")
    if parity is not None:
        console.note(f"next: mnft eval --ckpt {shlex.quote(str(target))}")
    console.show_data(str(file))
