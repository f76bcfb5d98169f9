"""The models to compare: what paths name, each model once, with names that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnft.exports.artifact import RECORD, find_artifact
from mnft.runs.folder import find_bundle
from mnft.text import printable


@dataclass(frozen=True, slots=True)
class Variant:
    """A model to measure.

    Attributes:
        label: name in messages.
        folder: the folder of an export or of a model (`best/`).
        compiled: run a model folder through torch.compile.
    """

    label: str
    folder: Path
    compiled: bool = False

    @property
    def exported(self) -> bool:
        """Whether the folder is that of an export."""
        return (self.folder / RECORD).is_file()


def list_variants(paths: Sequence[Path], *, exports: bool, compiled: bool) -> list[Variant]:
    """The models that paths name, each once, with names that differ.

    Args:
        paths: runs, model folders, exports, or model files in exports.
        exports: take the exports of each run as well.
        compiled: take each torch model a second time, compiled.

    Raises:
        CheckpointError: a path that is none of these.
    """
    listed: list[Variant] = []
    for path in paths:
        if (folder := find_artifact(path)) is not None:
            listed.append(_name_export(folder))
            continue
        folder = find_bundle(path)
        place = folder.resolve()
        run, name = place.parent, place.name
        if (run / "split.json").is_file():
            name = run.name if name == "best" else f"{run.name}/{name}"
        listed.append(Variant(f"{name} torch", folder))
        if compiled:
            listed.append(Variant(f"{name} torch compiled", folder, compiled=True))
        if exports:
            records = sorted((path / "exports").glob(f"[!.]*/{RECORD}"))
            listed += [_name_export(record.parent) for record in records]
    unique: dict[tuple[Path, bool], Variant] = {}
    for variant in listed:
        unique.setdefault((variant.folder.resolve(), variant.compiled), variant)
    # Two runs of one name in different folders: "v2 torch" and "v2 torch (2)".
    taken: dict[str, int] = {}
    named = []
    for variant in unique.values():
        label = printable(variant.label)
        number = taken[label] = taken.get(label, 0) + 1
        named.append(replace(variant, label=label if number == 1 else f"{label} ({number})"))
    return named


def _name_export(folder: Path) -> Variant:
    """For RUN/exports/onnx the name "RUN onnx"; elsewhere the folder's name."""
    place = folder.resolve()
    run = place.parent.parent
    name = f"{run.name} {place.name}" if place.parent.name == "exports" else place.name
    return Variant(name, folder)
