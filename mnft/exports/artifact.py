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
from mnft.preprocessing import Preprocessing

RECORD = "model.json"
LABELS = "labels.txt"
PARITY = "parity.json"
QUANTIZATION = "quantization.json"  # of `mnft quantize` alone
INPUT_NAME = "image"
# How `data.decode` brings an image to 8-bit RGB; decoders of apps may do otherwise.
DECODING = {
    "orientation": "turned upright as EXIF says",
    "transparency": "composited on white",
    "depth": "16-bit grey times 255 / 65535, rounded; not clipped",
    "cmyk": "through the colour profile where there is one",
    "animation": "the first frame",
}
# What files that carry words say, by `describe_metadata`.
METADATA = ("architecture", "class_names", "preprocessing", "embedded_preprocessing")
# What model.json says of how the file is used.
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


@dataclass(frozen=True, slots=True)
class Artifact:
    """What an exported file takes and gives; all that an app must know.

    Attributes:
        format: a name of `formats.FORMATS`.
        file: name of the model file in its folder.
        architecture: timm's name.
        class_names: in the order of the outputs.
        preprocessing: of images; with `embedded`, its normalisation is in the file.
        embedded: the file takes uint8 pixels (B, H, W, C) and gives probabilities; otherwise
            normalised float32 pixels in `layout`, and logits.
        layout: of the input, "NCHW" or "NHWC".
        dynamic_batch: any number of images at once; otherwise one.
        precision: "fp32", "fp16" or "int8".
        source: the model that it was made from: folder, SHA-256 of the weights.
        facts: how it was made: packages with versions, calibration and the like.
    """

    format: str
    file: str
    architecture: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    embedded: bool = False
    layout: str = "NCHW"
    dynamic_batch: bool = True
    precision: str = "fp32"
    source: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output_name(self) -> str:
        """`logits`, or `probabilities` after a softmax in the file."""
        return "probabilities" if self.embedded else "logits"

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """With "batch" where any number of images goes."""
        channels, height, width = self.preprocessing.input_size
        batch: int | str = "batch" if self.dynamic_batch else 1
        if self.layout == "NHWC":
            return (batch, height, width, channels)
        return (batch, channels, height, width)


def write_record(folder: Path, artifact: Artifact) -> None:
    """Write labels.txt and model.json beside a model file that is there already."""
    files.write_text(folder / LABELS, _list_labels(artifact))
    files.write_json(folder / RECORD, _as_json(folder, artifact))


def read_artifact(folder: Path) -> Artifact:
    """Read model.json.

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
            class_names=tuple(map(str, values["class_names"])),
            preprocessing=Preprocessing.from_timm(preprocessing),
            embedded=bool(values["embedded_preprocessing"]),
            layout=str(values["input"]["layout"]),
            dynamic_batch=values["input"]["shape"][0] == "batch",
            precision=str(values["precision"]),
            source=dict(values["source"]),
            facts=dict(values["facts"]),
        )
        expected = str(values["sha256"])
        own_sum = values.get("record_sha256")
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: {RECORD} is missing, so it is no export") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {error or type(error).__name__}") from error
    # A damaged record must not lead out of the folder.
    if Path(artifact.file).name != artifact.file or not (folder / artifact.file).exists():
        raise CheckpointError(f"{folder}: {artifact.file!r}, which {RECORD} names, is missing")
    weights = Path(artifact.file).with_suffix(".bin")
    if artifact.format == "openvino" and not (folder / weights).is_file():
        raise CheckpointError(
            f"{folder}: {str(weights)!r}, which holds the weights of {artifact.file}, is missing",
            hint="the two files belong together: copy both, or export the model again",
        )
    if compute_sha256(folder / artifact.file) != expected:
        raise CheckpointError(
            f"{folder / artifact.file}: not the file that {RECORD} was written for "
            "(its SHA-256 differs)",
            hint="export the model again",
        )
    if own_sum is not None and own_sum != _sum_record(values):
        raise CheckpointError(
            f"{path}: changed since it was written, so labels or preprocessing may be wrong",
            hint="export the model again; where it was changed on purpose, take record_sha256 out",
        )
    _check_labels(folder, artifact)
    return artifact


def find_artifact(path: Path) -> Path | None:
    """The export folder that `--ckpt` means: itself, or that of the model file; None for others."""
    files.recover_folder(path)
    if (path / RECORD).is_file():
        return path
    # A Core ML file is a folder.
    return path.parent if path.exists() and _names_file(path.parent / RECORD, path.name) else None


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export and nothing else, so that it may be replaced."""
    try:
        model = json.loads((folder / RECORD).read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    weights = Path(str(model)).with_suffix(".bin").name
    own = {RECORD, LABELS, PARITY, QUANTIZATION, str(model), weights}
    return files.holds_only(folder, own, RECORD)


def compute_sha256(path: Path) -> str:
    """Of a model file; of a model that is a folder or has a file of weights, over all of it."""
    digest = hashlib.sha256()
    for part in _parts(path):
        digest.update(part.relative_to(path.parent).as_posix().encode() + b"\0")
        digest.update(part.read_bytes())
    return digest.hexdigest()


def compute_size(path: Path) -> int:
    """Bytes of a model file, with its file of weights or all that its folder holds."""
    return sum(part.stat().st_size for part in _parts(path))


def set_facts(artifact: Artifact, **facts: Any) -> Artifact:
    """The same with further facts."""
    return replace(artifact, facts={**artifact.facts, **facts})


def describe_metadata(artifact: Artifact) -> dict[str, str]:
    """Class names and preprocessing for formats whose files carry words."""
    values = (
        artifact.architecture,
        json.dumps(list(artifact.class_names), ensure_ascii=False),
        json.dumps(artifact.preprocessing.as_pretrained_cfg()),
        json.dumps(artifact.embedded),
    )
    return dict(zip(METADATA, values, strict=True))


def check_metadata(folder: Path, artifact: Artifact, metadata: Mapping[str, str]) -> None:
    """Compare model.json with what the model file says of itself.

    Args:
        folder: of the export.
        artifact: what its model.json says.
        metadata: of the file; empty where its format has none.

    Raises:
        CheckpointError: they differ.
    """
    for name, text in describe_metadata(artifact).items():
        if name in metadata and _parse(metadata[name]) != _parse(text):
            raise CheckpointError(
                f"{folder / RECORD}: its {name} is not that of {artifact.file}, which says "
                f"{metadata[name][:200]}",
                hint="export the model again",
            )


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _list_labels(artifact: Artifact) -> str:
    # One name a line: a line break within a name would shift all that follow.
    names = [" ".join(name.splitlines()) for name in artifact.class_names]
    return "".join(f"{name}\n" for name in names)


def _check_labels(folder: Path, artifact: Artifact) -> None:
    """Compare labels.txt, which apps read, with model.json; an app's folder may lack it."""
    try:
        text = (folder / LABELS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / LABELS}: damaged: {error}") from error
    if text.splitlines() != _list_labels(artifact).splitlines():
        raise CheckpointError(
            f"{folder / LABELS}: not the class names of {RECORD}", hint="export the model again"
        )


def _sum_record(values: Mapping[str, Any]) -> str:
    """SHA-256 of what an app must know; where the file came from, and from whom, may change."""
    text = json.dumps({key: values.get(key) for key in _SUMMED}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _names_file(record: Path, name: str) -> bool:
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("file") == name


def _parts(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(part for part in path.rglob("*") if part.is_file())
    weights = path.with_suffix(".bin")  # OpenVINO's
    return [path, weights] if path.suffix == ".xml" and weights.is_file() else [path]


def _as_json(folder: Path, artifact: Artifact) -> dict[str, Any]:
    model = folder / artifact.file
    values = {
        "format": artifact.format,
        "file": artifact.file,
        "mnft_version": mnft.__version__,
        "architecture": artifact.architecture,
        "precision": artifact.precision,
        "class_names": list(artifact.class_names),
        "preprocessing": {
            **asdict(artifact.preprocessing),
            "resize": _describe_resize(artifact.preprocessing),
        },
        "decoding": dict(DECODING),
        "embedded_preprocessing": artifact.embedded,
        "input": _describe_input(artifact),
        "output": {
            "name": artifact.output_name,
            "dtype": "float32",
            "shape": [artifact.input_shape[0], len(artifact.class_names)],
        },
        "size_bytes": compute_size(model),
        "sha256": compute_sha256(model),
        "source": dict(artifact.source),
        "facts": dict(artifact.facts),
    }
    return values | {"record_sha256": _sum_record(values)}


def _describe_input(artifact: Artifact) -> dict[str, Any]:
    colours = "grey" if artifact.preprocessing.input_size[0] == 1 else "RGB"
    values = f"{colours} pixels, 0 to 255"
    if not artifact.embedded:
        values = f"{colours} pixels divided by 255, less mean, divided by std"
    return {
        "name": INPUT_NAME,
        "dtype": "uint8" if artifact.embedded else "float32",
        "layout": artifact.layout,
        "shape": list(artifact.input_shape),
        "values": values,
    }


def _describe_resize(preprocessing: Preprocessing) -> dict[str, Any]:
    """The size that an image is brought to before its centre is cut, and what is done to it."""
    _, *sides = preprocessing.input_size
    height, width = (math.floor(side / preprocessing.crop_pct) for side in sides)
    how = {
        "center": "until it covers this size, keeping its aspect",
        "squash": "to this size",
        "border": "until it fits in this size, keeping its aspect; then bordered with the mean",
    }[preprocessing.crop_mode]
    return {"width": width, "height": height, "how": how, "antialias": True}
