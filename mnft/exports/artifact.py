"""The folder of an exported model: model file, labels.txt, model.json, parity.json."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mnft
from mnft import files
from mnft.errors import CheckpointError
from mnft.exports.formats import FORMATS
from mnft.preprocessing import Preprocessing

RECORD = "model.json"
LABELS = "labels.txt"
PARITY = "parity.json"
QUANTIZATION = "quantization.json"  # only `mnft quantize` writes it
INPUT_NAME = "image"
# How `data.decode` brings an image to 8-bit RGB; decoders of apps may do otherwise.
DECODING = {
    "orientation": "turned upright as EXIF says",
    "transparency": "composited on white",
    "depth": "16-bit grey times 255 / 65535, rounded; not clipped",
    "cmyk": "through the colour profile where there is one",
    "animation": "the first frame",
}
# What `describe_metadata` puts into files whose format has a place for it.
METADATA = ("architecture", "class_names", "preprocessing", "embedded_preprocessing")
# The parts of model.json that say how the file is used; `record_sha256` covers them.
_SUMMED = (
    "format",
    "file",
    "architecture",
    "precision",
    "class_names",
    "preprocessing",
    "decoding",
    "embedded_preprocessing",
    "input",
    "output",
)
_EXPORT_AGAIN = "export the model again"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What an exported file takes and gives: all that an app must know.

    Attributes:
        format: a name of `formats.FORMATS`.
        file: name of the model file in its folder.
        architecture: timm's name.
        labels: names of the outputs, in their order.
        preprocessing: how an image becomes an input; with `embedded`, its normalisation is in the
            file.
        embedded: whether the file takes uint8 pixels (B, H, W, C) and ends in the task's
            activation; otherwise it takes normalised float32 pixels in `layout`.
        output_name: name of the output, such as "logits", or "probabilities" after an activation.
        task: name of the task.
        settings: what the task keeps with the model, such as thresholds; JSON values.
        layout: layout of the input, "NCHW" or "NHWC".
        dynamic_batch: whether the file takes any number of images at once; otherwise one.
        precision: "fp32", "fp16" or "int8".
        source: the model that the file was made from: folder, SHA-256 of the weights.
        facts: how it was made: packages with versions, calibration and the like.
    """

    format: str
    file: str
    architecture: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    output_name: str
    embedded: bool = False
    task: str = "classify"
    settings: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "NCHW"
    dynamic_batch: bool = True
    precision: str = "fp32"
    source: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """Shape of the input, with "batch" where the file takes any number of images."""
        channels, height, width = self.preprocessing.input_size
        batch: int | str = "batch" if self.dynamic_batch else 1
        if self.layout == "NHWC":
            return (batch, height, width, channels)
        return (batch, channels, height, width)


def set_facts(artifact: Artifact, **facts: Any) -> Artifact:
    """Return the artifact with further facts."""
    return replace(artifact, facts={**artifact.facts, **facts})


def write_record(folder: Path, artifact: Artifact) -> None:
    """Write labels.txt and model.json beside a model file that is there already."""
    model = folder / artifact.file
    colours = "grey" if artifact.preprocessing.input_size[0] == 1 else "RGB"
    values = f"{colours} pixels, 0 to 255"
    if not artifact.embedded:
        values = f"{colours} pixels divided by 255, less mean, divided by std"
    record = {
        "format": artifact.format,
        "task": artifact.task,
        **({"settings": dict(artifact.settings)} if artifact.settings else {}),
        "file": artifact.file,
        "mnft_version": mnft.__version__,
        "architecture": artifact.architecture,
        "precision": artifact.precision,
        "class_names": list(artifact.labels),
        "preprocessing": {
            **asdict(artifact.preprocessing),
            "resize": _describe_resize(artifact.preprocessing),
        },
        "decoding": dict(DECODING),
        "embedded_preprocessing": artifact.embedded,
        "input": {
            "name": INPUT_NAME,
            "dtype": "uint8" if artifact.embedded else "float32",
            "layout": artifact.layout,
            "shape": list(artifact.input_shape),
            "values": values,
        },
        "output": {
            "name": artifact.output_name,
            "dtype": "float32",
            "shape": [artifact.input_shape[0], len(artifact.labels)],
        },
        "size_bytes": compute_size(model),
        "sha256": compute_sha256(model),
        "source": dict(artifact.source),
        "facts": dict(artifact.facts),
    }
    files.write_text(folder / LABELS, _format_labels(artifact))
    files.write_json(folder / RECORD, record | {"record_sha256": _sum_record(record)})


def _describe_resize(preprocessing: Preprocessing) -> dict[str, Any]:
    """The size that an image is resized to before its centre is cut out, and how."""
    _, *sides = preprocessing.input_size
    height, width = (math.floor(side / preprocessing.crop_pct) for side in sides)
    how = {
        "center": "until it covers this size, keeping its aspect",
        "squash": "to this size, which changes its aspect",
        "border": "until it fits in this size, keeping its aspect; then centred on a canvas of the "
        "input's size in the colour fill",
    }[preprocessing.crop_mode]
    fill = {"fill": list(preprocessing.fill)} if preprocessing.crop_mode == "border" else {}
    return {"width": width, "height": height, "how": how, "antialias": True, **fill}


def _format_labels(artifact: Artifact) -> str:
    # One name a line: a line break within a name would shift all that follow.
    names = [" ".join(name.splitlines()) for name in artifact.labels]
    return "".join(f"{name}\n" for name in names)


def _sum_record(values: Mapping[str, Any]) -> str:
    """SHA-256 of what an app must know; where the file came from, and from whom, may change."""
    summed = {key: values.get(key) for key in _SUMMED}
    # Files of older versions have no task, and most tasks no settings.
    summed |= {key: values[key] for key in ("task", "settings") if key in values}
    text = json.dumps(summed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_artifact(folder: Path) -> Artifact:
    """Read model.json, and check that the files beside it belong to it.

    Raises:
        CheckpointError: it is missing or damaged, the model file is missing, or is not the one
            that model.json was written for, or model.json or labels.txt are not what was written.
    """
    path = folder / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        preprocessing = dict(values["preprocessing"])
        artifact = Artifact(
            format=str(values["format"]),
            file=str(values["file"]),
            architecture=str(values["architecture"]),
            labels=tuple(map(str, values["class_names"])),
            preprocessing=Preprocessing.from_timm(preprocessing),
            output_name=str(values["output"]["name"]),
            embedded=bool(values["embedded_preprocessing"]),
            task=str(values.get("task", "classify")),
            settings=dict(values.get("settings", {})),
            layout=str(values["input"]["layout"]),
            dynamic_batch=values["input"]["shape"][0] == "batch",
            precision=str(values["precision"]),
            source=dict(values["source"]),
            facts=dict(values["facts"]),
        )
        expected = str(values["sha256"])
        expected_record = values.get("record_sha256")  # older exports have none
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: {RECORD} is missing, so it is no export") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {error or type(error).__name__}") from error
    model = folder / artifact.file
    # A damaged record must not lead out of the folder.
    if Path(artifact.file).name != artifact.file or not model.exists():
        raise CheckpointError(f"{folder}: {artifact.file!r}, which {RECORD} names, is missing")
    weights = _weights_beside(model)
    if weights is not None and not weights.is_file():
        raise CheckpointError(
            f"{folder}: {weights.name!r}, which holds the weights of {artifact.file}, is missing",
            hint="the two files belong together: copy both, or export the model again",
        )
    if compute_sha256(model) != expected:
        raise CheckpointError(
            f"{model}: not the file that {RECORD} was written for (its SHA-256 differs)",
            hint=_EXPORT_AGAIN,
        )
    if expected_record is not None and expected_record != _sum_record(values):
        raise CheckpointError(
            f"{path}: changed since it was written, so labels or preprocessing may be wrong",
            hint="export the model again; where it was changed on purpose, take record_sha256 out",
        )
    _check_labels(folder, artifact)
    return artifact


def _check_labels(folder: Path, artifact: Artifact) -> None:
    """Compare labels.txt, which apps read, with model.json; an app's folder may lack it."""
    try:
        text = (folder / LABELS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / LABELS}: damaged: {error}") from error
    if text.splitlines() != _format_labels(artifact).splitlines():
        raise CheckpointError(
            f"{folder / LABELS}: not the class names of {RECORD}", hint=_EXPORT_AGAIN
        )


def describe_metadata(artifact: Artifact) -> dict[str, str]:
    """Class names and preprocessing, for formats whose files have a place for them."""
    values = (
        artifact.architecture,
        json.dumps(list(artifact.labels), ensure_ascii=False),
        json.dumps(artifact.preprocessing.as_pretrained_cfg()),
        json.dumps(artifact.embedded),
    )
    return dict(zip(METADATA, values, strict=True))


def check_metadata(folder: Path, artifact: Artifact, metadata: Mapping[str, str]) -> None:
    """Compare model.json with what the model file says of itself.

    Args:
        folder: the folder of the export.
        artifact: the content of its model.json.
        metadata: the content of the model file's metadata; empty where its format has none.

    Raises:
        CheckpointError: they differ.
    """

    def parse(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    for name, text in describe_metadata(artifact).items():
        if name in metadata and parse(metadata[name]) != parse(text):
            raise CheckpointError(
                f"{folder / RECORD}: its {name} is not that of {artifact.file}, which says "
                f"{metadata[name][:200]}",
                hint=_EXPORT_AGAIN,
            )


def find_artifact(path: Path) -> Path | None:
    """The export folder that a path names: itself, or that of the model file; None for others."""
    files.recover_folder(path)
    if (path / RECORD).is_file():
        return path
    # A model file may be a folder, as Core ML's is.
    return path.parent if path.exists() and _read_file_name(path.parent) == path.name else None


def _read_file_name(folder: Path) -> str | None:
    """The name of the model file in a folder's model.json; None where it names none."""
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["file"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export and nothing else, so that it may be replaced."""
    name = _read_file_name(folder)
    if name is None:
        return False
    weights = _weights_beside(folder / name)
    known = {LABELS, PARITY, QUANTIZATION, name} | ({weights.name} if weights else set())
    return files.holds_only(folder, known, RECORD)


def compute_sha256(path: Path) -> str:
    """SHA-256 of a model file, with its file of weights or all that its folder holds."""
    digest = hashlib.sha256()
    for part in _parts(path):
        digest.update(part.relative_to(path.parent).as_posix().encode() + b"\0")
        digest.update(part.read_bytes())
    return digest.hexdigest()


def compute_size(path: Path) -> int:
    """Bytes of a model file, with its file of weights or all that its folder holds."""
    return sum(part.stat().st_size for part in _parts(path))


def _parts(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(part for part in path.rglob("*") if part.is_file())
    weights = _weights_beside(path)
    return [path, weights] if weights is not None and weights.is_file() else [path]


def _weights_beside(path: Path) -> Path | None:
    """The second file of a model whose format keeps the weights apart; it may be missing."""
    for fmt in FORMATS.values():
        if fmt.weights_suffix and path.suffix == Path(fmt.file).suffix:
            return path.with_suffix(fmt.weights_suffix)
    return None
