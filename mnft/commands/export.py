"""`mnft export`: write a file of another format, and prove that it answers as the model does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.evaluation.checkpoint import default_target, load_settings, open_trained
from mnft.evaluation.parity import (
    LARGE_DIFFERENCE,
    check_gates,
    choose_comparison_images,
    compare,
    describe_parity,
)
from mnft.exports.artifact import PARITY, Artifact, compute_size, write_record
from mnft.exports.convert import check_target, check_toolchain, convert
from mnft.exports.formats import find_format
from mnft.tasks.outputs import Agreement
from mnft.text import count


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
    """Export a model, and keep the file if it answers as the model does on real images.

    Raises:
        MnftError: there is no model or no image, or a tool-chain is missing or fails.
        GateError: the file does not answer as the model does; nothing is written.
    """
    fmt = find_format(request.format)
    check_toolchain(fmt)
    opened = open_trained(request.checkpoint)
    config, source = load_settings(opened, overrides)
    target = request.output or default_target(opened, fmt.name + "-embedded" * request.embed)
    check_target(target)
    images = None
    if fmt.runtime is not None:
        with source.locating():
            images = choose_comparison_images(
                opened, request.data, request.split, config, console.REPORTER
            )
    with files.atomic_folder(target) as folder:
        console.note(f"writing  {fmt.title}")
        artifact = convert(opened.bundle, fmt, folder, embed=request.embed)
        write_record(folder, artifact)
        parity = None
        if images is not None:
            parity = compare(opened, folder, images, config, console.REPORTER)
            check_gates(parity, config.export, f"the {fmt.title} file")
        record = describe_parity(parity, images, fmt, config.export)
        files.write_json(folder / PARITY, record)
    _show_export(target, artifact, parity, record, as_json=as_json)


def _show_export(
    target: Path,
    artifact: Artifact,
    parity: Agreement | None,
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
            f"parity   {count(parity.num_images, 'image')}: same answer for {parity.agreement:.2%}"
            f", {parity.title} {parity.before.value:.2%} -> {parity.after.value:.2%}, {parity.of} "
            f"differ by at most {parity.largest_difference:.2g} (mean {parity.mean_difference:.2g})"
        )
        if parity.largest_difference > LARGE_DIFFERENCE:
            console.warn(
                f"{parity.of} that differ by {parity.largest_difference:.2g} are more than rounding"
            )
    console.done(f"exported to {target}")
    if parity is not None:
        console.note(f"next: mnft eval --ckpt {shlex.quote(str(target))}")
    console.show_data(str(file))
