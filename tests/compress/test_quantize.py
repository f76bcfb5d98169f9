"""`mnft quantize`: int8 that is really there, gates that hold, what loses most, what fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.images import COLOURS, write_image
from typer.testing import CliRunner, Result

from mnft.cli.app import app
from mnft.commands import quantize as command
from mnft.compare.latency import Latency
from mnft.compress.quantize import qat, search
from mnft.compress.quantize.calibration import choose_calibration_images
from mnft.compress.quantize.int8 import Calibration
from mnft.compress.quantize.layers import LayerCounts, check_counts, check_names, count_layers
from mnft.compress.quantize.onnxruntime import OnnxRuntimeQuantizer
from mnft.compress.quantize.sensitivity import choose_counts, rank_layers
from mnft.errors import ConfigError, ExportError
from mnft.evaluation.checkpoint import open_checkpoint, open_trained
from mnft.evaluation.images import per_class
from mnft.exports.artifact import read_artifact
from mnft.exports.convert import convert
from mnft.exports.formats import FORMATS
from mnft.host import find_missing
from mnft.model.bundle import load_bundle, replace_settings
from mnft.reporter import Reporter

onnx = pytest.importorskip("onnx", reason="mnft[onnx] is not installed")

Cli = Callable[..., Result]
QUICK = ("--set", "quantize.images=20", "--set", "quantize.method=onnxruntime")
needs_nncf = pytest.mark.skipif(
    bool(find_missing(("openvino", "nncf"))), reason="mnft[openvino] is not installed"
)
needs_torchao = pytest.mark.skipif(
    bool(find_missing(("torchao",))), reason="mnft[qat] is not installed"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LeNet-5 that tells three colours apart; its classes have different sizes."""
    root = tmp_path_factory.mktemp("quantize")
    for part, (split, counts) in enumerate(
        {"train": (16, 12, 4), "val": (8, 8, 8), "test": (4, 4, 4)}.items()
    ):
        for number, (label, colour) in enumerate(COLOURS.items()):
            for index in range(counts[number]):
                path = root / "images" / split / label / f"{index:03d}.png"
                write_image(path, colour, seed=10_000 * part + 1_000 * number + index)
    config = root / "config.yaml"
    config.write_text(
        f"data: {{root: {root / 'images'}}}\n"
        "model: {name: lenet5, pretrained: false}\n"
        "optim: {name: adamw, lr: 3.0e-3}\n"
        "augment: {scale: [0.9, 1.0]}\n"
        "train: {epochs: 3, batch_size: 8, device: cpu, precision: fp32}\n"
        f"run: {{dir: {root / 'runs'}, name: lenet}}\n",
        encoding="utf-8",
    )
    result = CliRunner().invoke(app, ["train", str(config)])
    assert result.exit_code == 0, result.output
    return root / "runs" / "lenet"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "lenet"))


@pytest.fixture
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that measure latency take seconds; one test lets them."""
    monkeypatch.setattr(command, "measure", lambda _variants, _plan: fake_latencies(2.0, 1.0))


def fake_latencies(*milliseconds: float) -> list[Latency]:
    return [Latency(f"{ms}", 1, ms, ms, (ms, ms), 1.0, 1, None) for ms in milliseconds]


def read_weights(path: Path) -> dict[str, tuple[str, int]]:
    """Of each layer, its weights' type and how many scales they have (0 in float)."""
    model = onnx.load(str(path))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        name = node.input[1]
        source = made.get(name)
        weight = tensors[source.input[0] if source else name]
        scales = int(np.prod(tensors[source.input[1]].dims)) if source else 0
        found[weight.name] = (onnx.TensorProto.DataType.Name(weight.data_type), scales)
    return found


# --- the file


def test_a_file_of_onnxruntime_is_an_export_with_int8_weights_per_channel(run_cli, run):
    result = run_cli("quantize", "--ckpt", run, *QUICK)
    assert result.exit_code == 0, result.output
    folder = run / "exports" / "onnx-int8"
    assert result.stdout == f"{folder / 'model.onnx'}\n"
    assert {p.name for p in folder.iterdir()} == {
        "model.onnx",
        "labels.txt",
        "model.json",
        "parity.json",
        "quantization.json",
    }
    assert read_artifact(folder).precision == "int8"
    weights = read_weights(folder / "model.onnx")
    assert len(weights) == 5
    assert Counter(kind for kind, _ in weights.values()) == {"INT8": 5}
    convolutions = sorted(scales for _, scales in weights.values())[-5:]
    assert {6, 16} <= set(convolutions)
    record = json.loads((folder / "quantization.json").read_text())
    assert record["layers"] == {"quantized": 5, "per_channel": 5, "floating": 0}
    assert record["attempts"][-1]["attempt"] == record["attempt"]
    assert record["size_bytes"]["ratio"] < 0.5
    assert record["latency"]["fp32"]["median_ms"] > 0
    assert record["latency"]["threads"] == 1
    for split, images in (("val", 24), ("test", 12)):
        values = record["accuracy"][split]
        assert values["images"] == images
        low, high = values["int8"]["interval"]
        assert low <= values["int8"]["accuracy"] <= high
    evaluated = run_cli("eval", "--ckpt", folder, "--split", "val", "--json")
    accuracy = json.loads(evaluated.stdout)["accuracy"]
    assert accuracy == record["accuracy"]["val"]["int8"]["accuracy"]


@pytest.mark.usefixtures("_no_clock")
def test_per_tensor_has_one_scale_a_layer_and_a_folder_of_its_own(run_cli, run):
    overrides = ("--set", "quantize.method=per_tensor", "--set", "quantize.max_accuracy_drop=1.0")
    result = run_cli("quantize", "--ckpt", run, *overrides)
    assert result.exit_code == 0, result.output
    weights = read_weights(run / "exports" / "onnx-int8-per-tensor" / "model.onnx")
    assert {scales for _, scales in weights.values()} == {1}


@needs_nncf
@pytest.mark.usefixtures("_no_clock")
def test_nncf_writes_an_openvino_file_that_eval_takes(run_cli, run):
    result = run_cli("quantize", "--ckpt", run, *QUICK[:2], "--set", "quantize.method=nncf")
    assert result.exit_code == 0, result.output
    folder = run / "exports" / "openvino-int8"
    assert result.stdout == f"{folder / 'model.xml'}\n"  # and nothing of NNCF's
    record = json.loads((folder / "quantization.json").read_text())
    assert record["layers"]["quantized"] == 5
    assert record["layers"]["per_channel"] == 5
    assert run_cli("eval", "--ckpt", folder).exit_code == 0


@pytest.mark.usefixtures("_no_clock")
def test_layers_to_keep_stay_in_float(run_cli, run):
    result = run_cli("quantize", "--ckpt", run, *QUICK, "--set", "quantize.keep_float=[conv2]")
    assert result.exit_code == 0, result.output
    weights = read_weights(run / "exports" / "onnx-int8" / "model.onnx")
    assert [name for name, (kind, _) in weights.items() if kind == "FLOAT"] == ["conv2.weight"]


def test_a_slower_file_is_warned_of(run_cli, run, monkeypatch):
    """OpenVINO is the runtime to turn to (docs/smaller.md)."""
    monkeypatch.setattr(command, "measure", lambda _variants, _plan: fake_latencies(1.0, 2.0))
    result = run_cli("quantize", "--ckpt", run, *QUICK)
    assert "slower than fp32" in result.stderr
    assert "which takes 2.00 times as long" in result.stderr
    assert "--set quantize.method=nncf" in result.stderr


@needs_nncf
def test_who_uses_openvino_already_is_not_sent_to_another_runtime(run_cli, run, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda _variants, _plan: fake_latencies(1.0, 2.0))
    result = run_cli("quantize", "--ckpt", run, *QUICK[:2], "--set", "quantize.method=nncf")
    assert "slower than fp32" in result.stderr
    assert "--set quantize.method" not in result.stderr


@pytest.mark.usefixtures("_no_clock")
def test_a_faster_file_is_called_fast(run_cli, run):
    result = run_cli("quantize", "--ckpt", run, *QUICK)
    assert "2.00 times as fast" in result.stderr
    assert "slower" not in result.stderr


# --- calibration


def test_calibration_images_are_training_images_spread_over_classes(trained):
    images = choose_calibration_images(open_trained(trained), None, 12)
    assert {sample.split for sample in images.samples} == {"train"}
    assert Counter(sample.label for sample in images.samples) == {
        "blue": 4,
        "green": 4,
        "red": 4,
    }
    assert len({sample.sha256 for sample in images.samples}) == 12


@pytest.mark.parametrize(
    ("sizes", "count", "shares"),
    [((16, 12, 4), 12, (4, 4, 4)), ((16, 12, 4), 20, (8, 8, 4)), ((3, 2), 9, (3, 2))],
)
def test_each_class_gives_as_many_as_it_can(sizes, count, shares):
    names = [str(label) for label, size in enumerate(sizes) for _ in range(size)]
    chosen = per_class(names, count)
    assert len(set(chosen)) == len(chosen) == sum(shares)
    assert Counter(names[i] for i in chosen) == {str(k): v for k, v in enumerate(shares)}


def test_images_are_spread_over_a_class():
    assert per_class(["a"] * 100, 2) == [25, 75]


@pytest.mark.parametrize("method", ["percentile", "entropy", "mean"])
def test_every_calibration_gives_ranges_of_its_own(float_file, tmp_path, method):
    written = []
    for name in ("minmax", method):
        (tmp_path / name).mkdir()
        quantizer = OnnxRuntimeQuantizer(
            float_file, Calibration(make_noise(), name), tmp_path / name
        )
        quantizer.write(tmp_path / "int8.onnx")
        assert count_layers(tmp_path / "int8.onnx").quantized == 5
        written.append((tmp_path / "int8.onnx").read_bytes())
    assert written[0] != written[1]


@needs_nncf
def test_nncf_writes_onnx_too_and_keeps_layers_in_float(float_file, tmp_path):
    from mnft.compress.quantize.nncf import NncfQuantizer

    quantizer = NncfQuantizer(float_file, Calibration(make_noise()))
    quantizer.write(tmp_path / "int8.onnx", keep_float=["conv2"], thorough=True)
    assert count_layers(tmp_path / "int8.onnx") == LayerCounts(4, 4, 1)
    weights = read_weights(tmp_path / "int8.onnx")
    assert [name for name, (kind, _) in weights.items() if kind == "FLOAT"] == ["conv2.weight"]


@needs_nncf
@pytest.mark.usefixtures("_no_clock")
def test_nncf_finds_the_layer_that_must_stay_in_float(run_cli, run):
    """In a network whose conv2 cannot be in int8, which the gate sees and the search fixes."""
    spoil(run / "best")
    method = ("--set", "quantize.method=nncf", "--set", "quantize.qat=never")
    result = run_cli("quantize", "--ckpt", run, *QUICK, *method, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    *before, last = record["attempts"]
    assert [attempt["keep_float"] for attempt in before] == [[], []]
    assert all(attempt["accuracy"] < last["accuracy"] for attempt in before)
    assert record["float_layers"] == last["keep_float"] == ["conv2"]
    assert record["layers"]["floating"] == 1
    assert record["accuracy"]["val"]["drop"] <= 0.005


# --- the gate and what is tried


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration on images almost without contrast, so that all others are cut off."""
    read = search.read_images
    monkeypatch.setattr(search, "read_images", lambda *a: np.float32(1e-3) * read(*a))


@pytest.mark.usefixtures("_no_clock")
def test_a_file_that_loses_too_much_is_not_kept(run_cli, run, monkeypatch):
    narrow(monkeypatch)
    bars: list[str] = []
    drawn: list[str] = []

    @contextmanager
    def progress(description):
        assert not drawn, "a bar within a bar"
        drawn.append(description)
        bars.append(description)
        yield lambda _done, _total: None
        drawn.clear()

    def note(message):
        assert not drawn, f"{message!r} beside the bar of {drawn}"

    reporter = type(command.console.REPORTER)
    monkeypatch.setattr(reporter, "track", lambda _, description: progress(description))
    monkeypatch.setattr(reporter, "note", lambda _, message: note(message))
    monkeypatch.setattr(command.console, "note", note)
    overrides = (*QUICK, "--set", "quantize.qat=never", "--set", "quantize.float_layers=1")
    result = run_cli("quantize", "--ckpt", run, *overrides)
    assert [bar for bar in bars if bar != "checking images"] == [
        "judging float file",
        "judging int8 file",
        "judging int8 file",
        "ranking layers by what int8 costs",
        "judging int8 file",
    ]
    assert result.exit_code == 3
    assert "nothing was kept" in result.stderr
    assert "1 layer in float" in result.stderr
    assert not (run / "exports" / "onnx-int8").exists()
    assert not list(run.rglob("*.tmp"))


@pytest.mark.usefixtures("_no_clock")
def test_a_loose_gate_keeps_it(run_cli, run, monkeypatch):
    narrow(monkeypatch)
    overrides = (*QUICK, "--set", "quantize.max_accuracy_drop=1.0")
    result = run_cli("quantize", "--ckpt", run, *overrides, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["accuracy"]["val"]["drop"] > 0.3
    assert len(record["attempts"]) == 1


def spoil(folder: Path) -> None:
    """One weight a channel of conv2 is huge, but sees next to nothing: int8 loses the others."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["conv2.weight"][:, 0] *= 3000
    weights["conv1.weight"][0] *= 1e-5
    weights["conv1.bias"][0] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((folder / "mnft.json").read_text())
    del record["sha256"]
    (folder / "mnft.json").write_text(json.dumps(record))


def make_noise() -> np.ndarray[Any, np.dtype[Any]]:
    return np.random.default_rng(0).normal(0, 1, (16, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def float_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    return (
        folder / convert(load_bundle(trained / "best"), FORMATS["onnx"], folder, embed=False).file
    )


def test_the_layer_that_loses_most_is_found(run, tmp_path):
    spoil(run / "best")
    artifact = convert(load_bundle(run / "best"), FORMATS["onnx"], tmp_path, embed=False)
    source, images = tmp_path / artifact.file, make_noise()
    quantizer = OnnxRuntimeQuantizer(source, Calibration(images), tmp_path)
    seen: list[tuple[int, int]] = []

    class Recorder(Reporter):
        @contextmanager
        def track(self, description):
            yield lambda done, total: seen.append((done, total))

    ranked = rank_layers(quantizer, source, artifact, images[:8], tmp_path, Recorder())
    assert ranked[0][0] == "conv2"
    assert ranked[0][1] > 3 * ranked[1][1]
    assert sorted(layer for layer, _ in ranked) == sorted(quantizer.layers)
    assert seen[-1] == (5, 5)


@pytest.mark.parametrize(
    ("largest", "available", "counts"), [(8, 53, [1, 2, 4, 8]), (6, 4, [1, 2, 3]), (0, 5, [])]
)
def test_a_few_more_layers_at_a_time(largest, available, counts):
    assert list(choose_counts(largest, available)) == counts


def test_nothing_quantized_is_an_error():
    with pytest.raises(ExportError, match="left all 5 layers in float"):
        check_counts(LayerCounts(0, 0, 5), what="X", per_channel=True)
    with pytest.raises(ExportError, match="a scale per channel"):
        check_counts(LayerCounts(5, 0, 0), what="X", per_channel=True)
    check_counts(LayerCounts(5, 0, 0), what="X", per_channel=False)


# --- quantization-aware fine-tuning


@needs_torchao
@pytest.mark.usefixtures("_no_clock")
def test_fine_tuning_keeps_the_temperature(run_cli, run, tmp_path):
    """The int8 file is as sure as the calibrated model, four times as sure as the weights are."""
    settings = {"decision": {"temperature": 0.25, "val": {"images": 1}}}
    replace_settings(run / "best", settings)
    options = ("--set", "quantize.qat=always", "--set", "quantize.max_accuracy_drop=0.2")
    result = run_cli("quantize", "--ckpt", run, *QUICK, *options, "-o", tmp_path / "sure")
    assert result.exit_code == 0, result.output
    models = [open_checkpoint(path).bundle.model for path in (tmp_path / "sure", run)]
    images = torch.randn(32, *load_bundle(run / "best").preprocessing.input_size)
    with torch.inference_mode():
        spreads = [model(images).std(1).mean().item() for model in models]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.4)


@needs_torchao
@pytest.mark.usefixtures("_no_clock")
def test_fine_tuning_writes_int8(run_cli, run, monkeypatch):
    rounded: list[int] = []
    tune = qat.fine_tune
    monkeypatch.setattr(
        "mnft.compress.quantize.qat.fine_tune", lambda *a, **k: rounded.append(tune(*a, **k))
    )
    overrides = (*QUICK, "--set", "quantize.qat=always", "--set", "quantize.max_accuracy_drop=0.2")
    result = run_cli("quantize", "--ckpt", run, *overrides, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["attempt"] == "quantization-aware fine-tuning"
    assert record["layers"]["per_channel"] == record["layers"]["quantized"] == 5
    assert rounded[0] >= 10
    assert "epoch 3/3" in result.stderr


@needs_torchao
@pytest.mark.usefixtures("_no_clock")
def test_a_quantizer_that_quantizes_nothing_is_an_error(run_cli, run, monkeypatch):
    monkeypatch.setattr(qat, "_insert_rounding", lambda graph, *_: graph)
    result = run_cli("quantize", "--ckpt", run, *QUICK, "--set", "quantize.qat=always")
    assert result.exit_code == 1
    assert "quantized nothing" in result.stderr


@needs_torchao
def test_rounding_gets_gradients(trained):
    from mnft.exports.graph import build_graph

    bundle = load_bundle(trained / "best")
    graph, example = build_graph(bundle.model, bundle.preprocessing)
    prepared = qat._insert_rounding(graph, example, ())
    prepared(example).square().sum().backward()
    assert all(torch.count_nonzero(p.grad) for p in prepared.parameters())


# --- wrong input


def test_an_exported_file_is_not_quantized(run_cli, run):
    assert run_cli("export", "--ckpt", run, "--format", "torchscript").exit_code == 0
    result = run_cli("quantize", "--ckpt", run / "exports" / "torchscript")
    assert result.exit_code == 1
    assert "is an exported file" in result.stderr


def test_a_bare_model_folder_needs_images(run_cli, run, tmp_path, monkeypatch):
    bare = Path(shutil.copytree(run / "best", tmp_path / "bare"))
    result = run_cli("quantize", "--ckpt", bare, *QUICK)
    assert result.exit_code == 1
    assert "--data DIR" in result.stderr
    images = run_cli("quantize", "--ckpt", bare, *QUICK, "--data", tmp_path / "none")
    assert images.exit_code == 1


@pytest.mark.usefixtures("_no_clock")
def test_a_bare_model_folder_with_images(run_cli, trained, tmp_path):
    bare = Path(shutil.copytree(trained / "best", tmp_path / "bare"))
    images = trained.parent.parent / "images"
    result = run_cli("quantize", "--ckpt", bare, *QUICK, "--data", images, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["calibration"]["split"] == "train"
    assert list(record["accuracy"]) == ["val"]


def test_a_run_without_a_best_model(run_cli, run):
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "last")
    result = run_cli("quantize", "--ckpt", run, *QUICK)
    assert result.exit_code == 1
    assert "error:" in result.stderr


def test_an_unknown_layer_has_suggestions(run_cli, run):
    result = run_cli("quantize", "--ckpt", run, *QUICK, "--set", "quantize.keep_float=[convv2]")
    assert result.exit_code == 2
    assert "no layer is called 'convv2'" in result.stderr
    assert "did you mean conv2" in result.stderr
    with pytest.raises(ConfigError, match=r"no layer is called 'blocks\.9'"):
        check_names(["blocks.9"], ["blocks.0.conv", "head"])
    check_names(["blocks", "head"], ["blocks.0.conv", "head"])


def test_a_missing_package_is_named(run_cli, run, monkeypatch):
    monkeypatch.setattr("mnft.exports.formats.find_missing", lambda packages: ["nncf"])
    result = run_cli("quantize", "--ckpt", run, "--set", "quantize.method=nncf")
    assert result.exit_code == 1
    assert "mnft[onnx,openvino]" in result.stderr


def test_an_unknown_method(run_cli, run):
    result = run_cli("quantize", "--ckpt", run, "--set", "quantize.method=int4")
    assert result.exit_code == 2


@needs_nncf
def test_openvino_reports_nothing_over_the_network():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = refuse\n"
        "from mnft.exports.quiet import forbid_telemetry\n"
        "forbid_telemetry()\n"
        "import openvino, nncf\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry.')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
