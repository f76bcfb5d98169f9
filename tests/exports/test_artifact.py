"""The folder of an export: what is written comes back, damage is told, other folders are left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnft.data.transforms import build_eval_transform
from mnft.errors import CheckpointError
from mnft.exports.artifact import (
    Artifact,
    check_metadata,
    compute_sha256,
    compute_size,
    describe_metadata,
    find_artifact,
    is_export,
    read_artifact,
    set_facts,
    write_record,
)
from mnft.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "bicubic", 0.875)
NAMES = ("daisy", "two\nlines", "crème brûlée", "花")
ARTIFACT = Artifact(
    "onnx",
    "model.onnx",
    "lenet5",
    NAMES,
    PREPROCESSING,
    "logits",
    source={"folder": "runs/x/best", "sha256": "00"},
    facts={"packages": {"onnx": "1"}},
)


def write(folder: Path, artifact: Artifact = ARTIFACT) -> Path:
    folder.mkdir(parents=True)
    (folder / artifact.file).write_bytes(b"weights")
    write_record(folder, artifact)
    return folder


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_written_comes_back(
    tmp_path: Path, embedded: bool, layout: str, dynamic: bool
) -> None:
    artifact = replace(
        ARTIFACT, embedded=embedded, layout=layout, dynamic_batch=dynamic, precision="int8"
    )
    assert read_artifact(write(tmp_path / "x y", artifact)) == artifact


def test_model_json_says_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "a", replace(ARTIFACT, embedded=True, output_name="probabilities", layout="NHWC")
    )
    record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert record["input"]["shape"] == ["batch", 32, 32, 3]
    assert record["input"]["dtype"] == "uint8"
    assert record["output"] == {"name": "probabilities", "dtype": "float32", "shape": ["batch", 4]}
    assert record["size_bytes"] == 7
    folder = write(tmp_path / "b", replace(ARTIFACT, dynamic_batch=False))
    record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert record["input"]["shape"] == [1, 3, 32, 32]
    assert record["input"]["dtype"] == "float32"
    assert record["output"]["name"] == "logits"
    assert record["class_names"] == list(NAMES)


def test_labels_have_one_line_each(tmp_path: Path) -> None:
    text = (write(tmp_path / "a") / "labels.txt").read_text(encoding="utf-8")
    assert text == "daisy\ntwo lines\ncrème brûlée\n花\n"


@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 0.9])
@pytest.mark.parametrize("size", [(90, 40), (40, 91), (60, 60)])
def test_the_size_to_resize_to_is_that_of_evaluation(
    tmp_path: Path, crop_pct: float, size: tuple[int, int]
) -> None:
    preprocessing = replace(PREPROCESSING, crop_pct=crop_pct)
    folder = write(tmp_path / "a", replace(ARTIFACT, preprocessing=preprocessing))
    resize = json.loads((folder / "model.json").read_text())["preprocessing"]["resize"]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    side, short = resize["width"], min(size)
    image = image.resize(
        (int(side * size[0] / short), int(side * size[1] / short)), Image.Resampling.BICUBIC
    )
    left, top = (round((length - 32) / 2) for length in image.size)
    found = np.asarray(image.crop((left, top, left + 32, top + 32)))
    expected = build_eval_transform(preprocessing)(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("mode", "words", "fill"),
    [
        ("center", "until it covers this size, keeping its aspect", None),
        ("squash", "to this size, which changes its aspect", None),
        ("border", "until it fits in this size, keeping its aspect; then", [128]),
    ],
)
def test_every_way_to_resize_has_words(
    tmp_path: Path, mode: str, words: str, fill: list[int] | None
) -> None:
    preprocessing = replace(PREPROCESSING, crop_mode=mode, input_size=(1, 24, 48), crop_pct=0.75)
    preprocessing = replace(preprocessing, mean=(0.5,), std=(0.5,))
    folder = write(tmp_path / "a", replace(ARTIFACT, preprocessing=preprocessing))
    record = json.loads((folder / "model.json").read_text())
    resize = record["preprocessing"]["resize"]
    assert (resize["width"], resize["height"]) == (64, 32)
    assert resize["how"].startswith(words)
    assert resize.get("fill") == fill
    assert record["input"]["values"].startswith("grey")


def test_a_changed_file_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "model.onnx").write_bytes(b"weighty")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        read_artifact(folder)


@pytest.mark.parametrize("part", ["model.bin", "model.xml"])
def test_both_files_of_openvino_count(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"123")
    (folder / "model.xml").write_bytes(b"<net>")
    write_record(folder, replace(ARTIFACT, format="openvino", file="model.xml"))
    assert compute_size(folder / "model.xml") == 8
    read_artifact(folder)
    (folder / part).write_bytes(b"124")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        read_artifact(folder)


def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    package = folder / "model.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights").write_bytes(b"12345")
    (package / "Manifest.json").write_bytes(b"{}")
    write_record(folder, replace(ARTIFACT, format="coreml", file="model.mlpackage"))
    assert compute_size(package) == 7
    before = compute_sha256(package)
    assert find_artifact(package) == folder
    (package / "Data" / "weights").rename(package / "weights")
    assert compute_sha256(package) != before


def test_damaged_records(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    record = folder / "model.json"
    good = record.read_text()
    values = json.loads(good)
    less = {key: value for key, value in values.items() if key != "input"}
    for text in ("", "{", "[]", json.dumps(less), json.dumps(values | {"preprocessing": 3})):
        record.write_text(text)
        with pytest.raises(CheckpointError, match="damaged"):
            read_artifact(folder)
    for file in ("../a/model.onnx", "gone.onnx"):
        record.write_text(json.dumps(values | {"file": file}))
        with pytest.raises(CheckpointError, match="is missing"):
            read_artifact(folder)
    record.unlink()
    with pytest.raises(CheckpointError, match="no export"):
        read_artifact(folder)


CHANGES = {
    "names reversed": lambda r: r["class_names"].reverse(),
    "a name less": lambda r: r["class_names"].pop(),
    "mean": lambda r: r["preprocessing"].update(mean=[0.1, 0.2, 0.3]),
    "input_size": lambda r: r["preprocessing"].update(input_size=[3, 64, 64]),
    "resize": lambda r: r["preprocessing"]["resize"].update(width=99),
    "layout": lambda r: r["input"].update(layout="NHWC"),
    "output": lambda r: r["output"].update(name="probabilities"),
    "embedded": lambda r: r.update(embedded_preprocessing=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_an_app_must_know_is_covered(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path / "a")
    record = folder / "model.json"
    values = json.loads(record.read_text(encoding="utf-8"))
    CHANGES[change](values)
    record.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"model\.json: changed since it was written"):
        read_artifact(folder)


def test_where_it_came_from_may_be_taken_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    record = folder / "model.json"
    values = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps(values | {"source": {}, "facts": {}}))
    assert read_artifact(folder).labels == NAMES


def test_exports_of_before_the_checksum_open(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    record = folder / "model.json"
    values = json.loads(record.read_text(encoding="utf-8"))
    del values["record_sha256"]
    record.write_text(json.dumps(values))
    assert read_artifact(folder) == ARTIFACT


def test_labels_are_those_of_the_record(tmp_path: Path) -> None:
    labels = write(tmp_path / "a") / "labels.txt"
    text = labels.read_text(encoding="utf-8")
    labels.write_bytes(text.replace("\n", "\r\n").encode())  # git on Windows
    assert read_artifact(tmp_path / "a") == ARTIFACT
    lines = text.splitlines()
    for wrong in (lines[::-1], lines[:-1], [*lines, "more"]):
        labels.write_text("\n".join(wrong), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"labels\.txt: not the class names of"):
            read_artifact(tmp_path / "a")
    labels.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"labels\.txt: damaged"):
        read_artifact(tmp_path / "a")
    labels.unlink()
    assert read_artifact(tmp_path / "a") == ARTIFACT


def test_a_file_that_speaks_for_itself_is_believed(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    metadata = describe_metadata(ARTIFACT)
    check_metadata(folder, ARTIFACT, metadata)
    check_metadata(folder, ARTIFACT, {})
    wrong = {
        "class_names": replace(ARTIFACT, labels=NAMES[::-1]),
        "preprocessing": replace(ARTIFACT, preprocessing=replace(PREPROCESSING, crop_pct=0.5)),
        "embedded_preprocessing": replace(ARTIFACT, embedded=True),
    }
    for name, artifact in wrong.items():
        with pytest.raises(CheckpointError, match=f"its {name} is not that of model.onnx"):
            check_metadata(folder, artifact, metadata)


def test_find_artifact(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    assert find_artifact(folder) == folder
    assert find_artifact(folder / "model.onnx") == folder
    # Only the model file stands for its folder.
    assert find_artifact(folder / "labels.txt") is None
    assert find_artifact(folder / "gone.onnx") is None
    assert find_artifact(tmp_path) is None
    assert find_artifact(tmp_path / "nowhere") is None
    folder.rename(tmp_path / "a.old")  # a crash between the two renames of a swap
    assert find_artifact(folder) == folder


def test_is_export(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / ".DS_Store").write_text("")
    (folder / "quantization.json").write_text("{}")
    assert is_export(folder)
    (folder / "notes.txt").write_text("mine")
    assert not is_export(folder)
    other = tmp_path / "b"
    other.mkdir()
    assert not is_export(other)
    (other / "model.json").write_text('{"format": "layers-model"}')  # TensorFlow.js
    assert not is_export(other)


def test_facts_are_added() -> None:
    assert set_facts(ARTIFACT, images=3).facts == {"packages": {"onnx": "1"}, "images": 3}


def test_openvino_without_its_weights_says_which_file_is_missing(tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(name.encode())
    write_record(tmp_path, replace(ARTIFACT, format="openvino", file="model.xml"))
    read_artifact(tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"'model.bin', which holds the weights of model.xml"):
        read_artifact(tmp_path)
