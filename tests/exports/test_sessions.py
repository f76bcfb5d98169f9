"""Opening model files in their runtimes: what is refused, and in which words."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from mnft.errors import CheckpointError, ConfigError, ExportError
from mnft.exports.artifact import Artifact, write_record
from mnft.exports.formats import FORMATS, Format, check_installed, find_format
from mnft.exports.model import RuntimeModel
from mnft.exports.quiet import silent
from mnft.exports.session import open_session
from mnft.host import find_missing
from mnft.preprocessing import Preprocessing

ARTIFACT = Artifact(
    "onnx",
    "model.onnx",
    "lenet5",
    ("a", "b"),
    Preprocessing((1, 4, 4), (0.5,), (0.5,), "bilinear", 1.0),
    "logits",
)
RUNNABLE = [fmt for fmt in FORMATS.values() if fmt.runtime is not None]


def skip_without(fmt: Format) -> None:
    if missing := find_missing(fmt.runtime or ()):
        pytest.skip(f"{', '.join(missing)} is not installed: mnft[{fmt.extra}]")


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)


@pytest.mark.parametrize("content", [b"", b"\x00garbage" * 40], ids=["empty", "garbage"])
@pytest.mark.parametrize("fmt", RUNNABLE, ids=lambda fmt: fmt.name)
def test_a_file_that_the_runtime_refuses(fmt: Format, content: bytes, tmp_path: Path) -> None:
    skip_without(fmt)
    (tmp_path / fmt.file).write_bytes(content)
    with pytest.raises(ExportError, match="cannot open it: ") as caught:
        open_session(tmp_path, replace(ARTIFACT, format=fmt.name, file=fmt.file))
    assert str(tmp_path / fmt.file) in caught.value.message
    assert fmt.title in caught.value.message
    assert "\n" not in caught.value.message


def test_what_cannot_run_here() -> None:
    with pytest.raises(ExportError, match="Core ML files cannot be run here"):
        open_session(Path(), replace(ARTIFACT, format="coreml", file="model.mlpackage"))
    with pytest.raises(ExportError, match="unknown format 'tensorrt'"):
        open_session(Path(), replace(ARTIFACT, format="tensorrt"))


@pytest.mark.parametrize("fmt", [f for f in RUNNABLE if f.runtime], ids=lambda fmt: fmt.name)
@pytest.mark.usefixtures("without_packages")
def test_a_runtime_that_is_not_installed(fmt: Format) -> None:
    with pytest.raises(ExportError, match="is not installed") as caught:
        open_session(Path(), replace(ARTIFACT, format=fmt.name, file=fmt.file))
    assert caught.value.hint == f"pip install 'mnft[{fmt.extra}]'"


@pytest.mark.usefixtures("without_packages")
def test_missing_packages_are_named_together() -> None:
    with pytest.raises(ExportError, match="ONNX export needs onnx, onnxscript, which"):
        check_installed(("onnx", "onnxscript"), "onnx", "ONNX export")
    check_installed((), "", "TorchScript export")


def test_extras_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for fmt in FORMATS.values():
        needed = {*fmt.converter, *(fmt.runtime or ())}
        if needed:
            listed = {r.split(">")[0].split("=")[0] for r in extras[fmt.extra]}
            assert needed <= listed, fmt.name


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_each_format_is_a_module_that_writes_and_opens(fmt: Format) -> None:
    """It is imported late, and without its packages."""
    module = fmt.load_module()
    assert len(inspect.signature(module.write).parameters) >= 4
    if fmt.runtime is None:
        assert not hasattr(module, "open")
    else:
        assert [*inspect.signature(module.open).parameters] == ["path", "threads"]


HEAVY = """
import sys
from mnft.exports import formats, session
for fmt in formats.FORMATS.values():
    fmt.load_module()
heavy = {"torch", "onnx", "onnxruntime", "openvino", "executorch", "ai_edge_litert", "coremltools"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_the_table_and_its_modules_import_no_tool_chain() -> None:
    done = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_unknown_formats() -> None:
    with pytest.raises(ConfigError, match="found 'onxn', expected one of onnx, openvino") as caught:
        find_format("onxn")
    assert caught.value.exit_code == 2


# Silence


NOISE = """
import logging, os, sys, warnings
from mnft import console
from mnft.exports.quiet import silent
console.setup_logging(verbose=sys.argv[1] == "verbose")
def chatter():
    print("python's stdout")
    print("python's stderr", file=sys.stderr)
    os.write(1, b"native stdout\\n")
    os.write(2, b"native stderr\\n")
    warnings.warn("a warning", FutureWarning)
    logging.getLogger("toolchain").warning("a log line")
with silent():
    chatter()
print("data")
print("after", file=sys.stderr)
warnings.warn("a later one", FutureWarning)
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_tool_chains_are_silent(verbose: bool) -> None:
    word = "verbose" if verbose else "plain"
    done = subprocess.run(
        [sys.executable, "-c", NOISE, word], capture_output=True, text=True, check=True
    )
    assert done.stdout == "data\n"
    assert "after\n" in done.stderr
    assert "a later one" in done.stderr
    held_back = ["python's stdout", "python's stderr", "native stdout", "native stderr"]
    for line in (*held_back, "a warning", "a log line"):
        assert (line in done.stderr) == verbose, line


def test_silence_ends_with_an_error() -> None:
    before = os.fstat(1), os.fstat(2)
    level = logging.root.manager.disable
    with pytest.raises(RuntimeError, match="tool-chain"), silent():
        raise RuntimeError("tool-chain")
    assert (os.fstat(1), os.fstat(2)) == before
    assert logging.root.manager.disable == level


CHILDREN = """
import signal, subprocess, sys
from pathlib import Path
from mnft.exports.artifact import read_artifact
from mnft.exports.session import open_session
folder = Path(sys.argv[1])
first, second = (open_session(folder, read_artifact(folder)) for _ in range(2))
signal.signal(signal.SIGCHLD, lambda *_: None)  # as torch's DataLoader does
del first
del second
subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"], check=True)
"""


def test_child_processes_after_openvino(tmp_path: Path) -> None:
    """Cores that end in the order in which they began leave a stack for signals that is gone."""
    openvino = pytest.importorskip("openvino", reason="mnft[openvino] is not installed")
    images = openvino.opset13.parameter([-1, 2], np.float32, name="image")
    model = openvino.Model([openvino.opset13.relu(images)], [images])
    openvino.save_model(model, tmp_path / "model.xml")
    write_record(tmp_path, replace(ARTIFACT, format="openvino", file="model.xml"))
    done = subprocess.run([sys.executable, "-c", CHILDREN, str(tmp_path)], check=False)
    assert done.returncode == 0


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A folder with a network that doubles, made without torch: the session needs none."""
    onnx = pytest.importorskip("onnx", reason="mnft[onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="mnft[onnx] is not installed")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "image"], ["logits"])],
        "double",
        [helper.make_tensor_value_info("image", float32, ["batch", 2])],
        [helper.make_tensor_value_info("logits", float32, ["batch", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "model.onnx"))
    return tmp_path


def test_threads_of_a_session(doubling: Path) -> None:
    for threads in (None, 1, 2):
        session = open_session(doubling, ARTIFACT, threads=threads)
        images = np.ones((3, 2), dtype=np.float32)
        assert np.array_equal(session.run(images), images * 2)


def test_a_record_that_is_not_of_its_file(doubling: Path) -> None:
    """A name too few, or another size, in model.json: said so where the file runs."""
    import torch

    for names, images, says in (
        (("a", "b", "c"), torch.ones(2, 2), "gives 2 values an image, but model.json names 3"),
        (("a",), torch.ones(2, 2), "gives 2 values an image, but model.json names 1"),
        (("a", "b"), torch.ones(2, 1, 4, 4), "does not take inputs of 1 x 4 x 4, as model.json"),
    ):
        artifact = replace(ARTIFACT, labels=names)
        model = RuntimeModel(open_session(doubling, artifact), artifact, doubling)
        with pytest.raises(CheckpointError, match=says) as caught:
            model(images)
        assert caught.value.message.startswith(str(doubling / "model.onnx"))
        assert caught.value.hint is not None
