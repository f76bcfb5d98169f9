"""`mnft export`: files that answer as the model does, gates that hold, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.images import COLOURS, write_image
from torch import nn
from typer.testing import Result

from mnft.config.schema import ModelConfig
from mnft.data.decode import decode
from mnft.data.manifest import Manifest, Sample, load_manifest, save_manifest
from mnft.data.transforms import build_eval_transform, normalize
from mnft.exports import convert as conversion
from mnft.exports import graph, torchscript
from mnft.exports.artifact import read_artifact
from mnft.exports.formats import FORMATS
from mnft.exports.session import open_session
from mnft.host import find_missing
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.factory import build_model
from mnft.tasks import load_activation
from mnft.tasks.classify.metrics import softmax

Cli = Callable[..., Result]
ROOT = Path(__file__).parents[2]
# In the order of the outputs; line breaks, commas and other alphabets are allowed in names.
CLASSES = ("blue", "green\nsecond line", "rød, 花")
COLOUR_OF = dict(zip(CLASSES, COLOURS.values(), strict=True))

MODELS: dict[str, tuple[str, int, dict[str, Any], int]] = {
    "lenet5": ("lenet5", 28, {}, 1),
    "mobilenetv2": ("mobilenetv2_035", 32, {}, 3),
    "mobilenetv3": ("mobilenetv3_small_050", 32, {}, 3),
    "convnext": ("convnext_atto", 32, {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 3),
    "colour": ("lenet5", 28, {}, 3),
    # Of one input size only.
    "vit": ("vit_tiny_patch16_224", 32, {"depth": 2, "embed_dim": 48, "num_heads": 3}, 3),
}
# Each export takes a second or more, so not every format meets every model.
KEYS = ("lenet5", "mobilenetv2", "mobilenetv3", "convnext", "vit")
SLOW = pytest.mark.slow
PLAIN = [(fmt, model) for fmt in ("onnx", "torchscript", "openvino") for model in KEYS]
PLAIN += [
    ("executorch", "lenet5"),
    pytest.param("executorch", "mobilenetv2", marks=SLOW),
    pytest.param("executorch", "mobilenetv3", marks=SLOW),
]
EMBEDDED = [
    ("onnx", "lenet5"),
    ("onnx", "convnext"),
    ("openvino", "mobilenetv3"),
    ("torchscript", "lenet5"),
    ("torchscript", "vit"),
    ("executorch", "colour"),
    pytest.param("executorch", "mobilenetv2", marks=SLOW),
]
COREML = [
    ("lenet5", True),
    ("mobilenetv3", False),
    pytest.param("lenet5", False, marks=SLOW),
    pytest.param("mobilenetv2", True, marks=SLOW),
]


def require(name: str) -> None:
    fmt = FORMATS[name]
    if missing := find_missing((*fmt.converter, *(fmt.runtime or ()))):
        pytest.skip(f"{', '.join(missing)} is not installed: mnft[{fmt.extra}]")


def save_model(folder: Path, key: str, images: Path) -> None:
    """A model with random weights that tells the images apart, so that its classes are a test."""
    name, size, kwargs, channels = MODELS[key]
    torch.manual_seed(0)
    config = ModelConfig(name=name, pretrained=False, in_chans=channels, kwargs=kwargs)
    built = build_model(config, num_classes=len(CLASSES), img_size=size)
    transform = build_eval_transform(built.preprocessing)
    pixels = torch.stack([transform(decode(path)) for path in sorted(images.glob("*/*.png"))])
    head = built.model.get_classifier()
    with torch.no_grad():
        head.weight.normal_(0, 1)
        head.bias.zero_()
        logits = built.model.eval()(normalize(pixels, built.preprocessing))
        mean, spread = logits.mean(dim=0), logits.std(dim=0)
        head.weight.div_(spread[:, None] / 3)
        head.bias.copy_(-3 * mean / spread)
    card = ModelCard(
        built.architecture,
        built.model_args,
        built.preprocessing,
        CLASSES,
        built.pretrained_cfg,
    )
    save_bundle(folder, built.model.state_dict(), card, {})


def save_images(root: Path) -> Manifest:
    """Noise with much contrast, so that pixels tell of every step that they go through."""
    samples = []
    generator = np.random.default_rng(0)
    for number, (name, colour) in enumerate(COLOUR_OF.items()):
        for index in range(10):
            path = f"{number}/{index}.png"
            mixed = tuple(int(v) for v in (np.array(colour) + generator.integers(0, 256, 3)) // 2)
            write_image(root / path, mixed, seed=100 * number + index, size=40)  # type: ignore[arg-type]
            sha256 = hashlib.sha256((root / path).read_bytes()).hexdigest()
            samples.append(Sample(path, name, "train" if index < 2 else "val", sha256))
    return Manifest(root, CLASSES, tuple(samples))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each model, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("some runs")
    manifest = save_images(folder / "images")
    for key in MODELS:
        save_model(folder / key / "best", key, folder / "images")
        save_manifest(manifest, folder / key / "split.json")
        (folder / key / "config.yaml").write_text(f"data:\n  root: {folder / 'images'}\n")
    return folder


@pytest.fixture(scope="session")
def exports(runs: Path) -> Callable[..., Path]:
    """A function (format, model, embed) that gives the folder of an export, made once."""

    def export(fmt: str, model: str, *, embed: bool = False) -> Path:
        require(fmt)
        folder = runs / model / "exports" / (fmt + "-embedded" * embed)
        if not folder.exists():
            from typer.testing import CliRunner

            from mnft.cli.app import app

            arguments = ["export", "--ckpt", str(runs / model), "--format", fmt]
            result = CliRunner().invoke(app, arguments + ["--embed-preprocessing"] * embed)
            assert result.exit_code == 0, (result.stderr, result.exception)
            assert result.stdout == f"{folder / FORMATS[fmt].file}\n"
        return folder

    return export


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_pixels(runs: Path, model: str, count: int = 7) -> torch.Tensor:
    transform = build_eval_transform(load_bundle(runs / model / "best").preprocessing)
    paths = sorted((runs / "images").glob("*/[2-9].png"))[::3][:count]
    return torch.stack([transform(decode(path)) for path in paths])


def compute_reference(runs: Path, model: str, pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    bundle = load_bundle(runs / model / "best")
    with torch.inference_mode():
        return bundle.model(normalize(pixels, bundle.preprocessing)).numpy()


# The files answer as the model does


@pytest.mark.parametrize(("fmt", "model"), PLAIN)
def test_logits(fmt: str, model: str, exports: Callable[..., Path], runs: Path) -> None:
    folder = exports(fmt, model)
    pixels = load_pixels(runs, model)
    expected = compute_reference(runs, model, pixels)
    assert len(set(expected.argmax(axis=1))) > 1  # the images are told apart
    images = normalize(pixels, load_bundle(runs / model / "best").preprocessing).numpy()
    artifact = read_artifact(folder)
    session = open_session(folder, artifact)
    for size in (1, 3, 7) if artifact.dynamic_batch else (1,):
        found = np.concatenate(
            [session.run(images[i : i + size]) for i in range(0, 7 - size + 1, size)]
        )
        assert np.abs(found - expected[: len(found)]).max() < 1e-3


@pytest.mark.parametrize(("fmt", "model"), EMBEDDED)
def test_embedded_preprocessing(
    fmt: str, model: str, exports: Callable[..., Path], runs: Path
) -> None:
    folder = exports(fmt, model, embed=True)
    pixels = load_pixels(runs, model)
    expected = softmax(compute_reference(runs, model, pixels))
    artifact = read_artifact(folder)
    assert (artifact.embedded, artifact.layout) == (True, "NHWC")
    session = open_session(folder, artifact)
    images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    assert images.dtype == np.uint8
    for size in (1, 3, 7) if artifact.dynamic_batch else (1,):
        found = session.run(images[:size])
        assert found.dtype == np.float32
        assert np.abs(found - expected[:size]).max() < 1e-4


@pytest.mark.parametrize(("model", "embed"), COREML)
def test_core_ml_is_converted_and_not_checked(
    model: str, embed: bool, exports: Callable[..., Path], runs: Path
) -> None:
    folder = exports("coreml", model, embed=embed)
    parity = read_json(folder / "parity.json")
    assert (parity["checked"], parity["passed"]) == (False, None)
    import coremltools

    spec = coremltools.models.MLModel(str(folder / "model.mlpackage"), skip_model_load=True)
    given = spec.get_spec().description.input[0]
    assert given.name == "image"
    _, size, _, channels = MODELS[model]
    if embed:
        # Apple's names of colour layouts: 10 grey, 20 RGB.
        image = given.type.imageType
        assert (image.width, image.height) == (size, size)
        assert image.colorSpace == (10 if channels == 1 else 20)
    else:
        assert list(given.type.multiArrayType.shape) == [1, channels, size, size]
    names = json.loads(spec.user_defined_metadata["mnft.labels"])
    assert tuple(names) == CLASSES


def test_onnx_carries_names_and_preprocessing(exports: Callable[..., Path]) -> None:
    onnx = pytest.importorskip("onnx", reason="mnft[onnx] is not installed")
    path = exports("onnx", "mobilenetv2") / "model.onnx"
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert tuple(json.loads(metadata["class_names"])) == CLASSES
    own = json.loads(metadata["preprocessing"])
    assert (own["input_size"], own["crop_pct"]) == ([3, 32, 32], 0.875)
    assert own["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert metadata["embedded_preprocessing"] == "false"
    assert metadata["architecture"] == "mobilenetv2_035"
    assert [node.name for node in model.graph.input] == ["image"]
    assert [node.name for node in model.graph.output] == ["logits"]
    # torch writes the places of its source files on this machine beside each operator.
    assert str(Path(torch.__file__).parent.parent).encode() not in path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir() if "data" in entry.name] == []


def test_openvino_carries_names(exports: Callable[..., Path]) -> None:
    openvino = pytest.importorskip("openvino", reason="mnft[openvino] is not installed")
    model = openvino.Core().read_model(exports("openvino", "mobilenetv2") / "model.xml")
    names = json.loads(model.get_rt_info(["mnft", "class_names"]).astype(str))
    assert tuple(names) == CLASSES
    assert model.inputs[0].get_any_name() == "image"
    assert model.outputs[0].get_any_name() == "logits"


def test_what_lies_beside_the_file(exports: Callable[..., Path], runs: Path) -> None:
    folder = exports("onnx", "lenet5")
    assert {entry.name for entry in folder.iterdir()} == {
        "model.onnx",
        "labels.txt",
        "model.json",
        "parity.json",
    }
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == [
        "blue",
        "green second line",
        "rød, 花",
    ]
    record = read_json(folder / "model.json")
    assert record["source"]["sha256"] == read_json(runs / "lenet5" / "best" / "mnft.json")["sha256"]
    assert record["facts"]["packages"].keys() >= {"torch", "onnx"}
    assert record["input"]["shape"] == ["batch", 1, 28, 28]
    parity = read_json(folder / "parity.json")
    assert (parity["num_images"], parity["split"], parity["agreement"]) == (24, "val", 1.0)
    assert 0 < parity["largest_difference"] < 1e-3
    assert parity["gates"] == {"min_agreement": 0.99, "max_accuracy_drop": 0.005}
    assert 0 < parity["accuracy_before"] == parity["accuracy_after"] < 1


def test_the_trained_model_stays_as_it_is(exports: Callable[..., Path], runs: Path) -> None:
    bundle = load_bundle(runs / "lenet5" / "best")
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    embedded, example = graph.build_graph(
        bundle.model, bundle.preprocessing, load_activation().apply, layout="NHWC"
    )
    assert example.shape == (2, 28, 28, 1)
    for parameter in embedded.parameters():
        nn.init.zeros_(parameter)
    for name, value in bundle.model.state_dict().items():
        assert torch.equal(value, before[name])


# mnft eval and mnft predict


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("fmt", "model", "embed"),
    [
        ("onnx", "lenet5", False),
        ("onnx", "convnext", True),
        ("torchscript", "vit", False),
        ("openvino", "mobilenetv3", True),
    ],
)
def test_eval_gives_the_same_figures(
    fmt: str, model: str, embed: bool, exports: Callable[..., Path], runs: Path, run_cli: Cli
) -> None:
    folder = exports(fmt, model, embed=embed)
    results = []
    for number, checkpoint in enumerate((runs / model, folder, folder / FORMATS[fmt].file)):
        options = ("--device", "cpu", "--workers", 0, "--json", "-o", f"out{number}")
        result = run_cli("eval", "--ckpt", checkpoint, *options)
        assert result.exit_code == 0, result.stderr
        results.append(json.loads(result.stdout))
    assert results[0]["accuracy"] == results[1]["accuracy"] == results[2]["accuracy"]
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], abs=1e-3)
    ours, theirs = (read_rows(Path(f"out{number}/predictions.csv")) for number in (0, 1))
    assert len(ours) == len(theirs) == 24
    for row, other in zip(ours, theirs, strict=True):
        assert (row["path"], row["prediction"]) == (other["path"], other["prediction"])
        assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=1e-4)


def reverse_names(folder: Path, *, forget: bool) -> None:
    """Edit model.json; `forget` as an export of before the checksum."""
    values = read_json(folder / "model.json")
    values["class_names"].reverse()
    if forget:
        del values["record_sha256"]
        (folder / "labels.txt").unlink()
    (folder / "model.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("fmt", "forget", "message"),
    [
        ("onnx", False, "model.json: changed since it was written"),
        ("onnx", True, "its class_names is not that of model.onnx"),
        ("openvino", True, "its class_names is not that of model.xml"),
        ("torchscript", True, "has other class names than"),  # a file without words, in its run
    ],
)
def test_reversed_labels_of_an_export_are_told(
    exports: Callable[..., Path],
    runs: Path,
    run_cli: Cli,
    tmp_path: Path,
    fmt: str,
    forget: bool,
    message: str,
) -> None:
    exports(fmt, "mobilenetv2")
    shutil.copytree(runs / "mobilenetv2", tmp_path / "run")
    folder = tmp_path / "run/exports" / fmt
    options = ("--split", "val", "--workers", 0, "-o", tmp_path / "judged")
    good = run_cli("eval", "--ckpt", folder, *options)
    assert good.exit_code == 0, good.stderr
    reverse_names(folder, forget=forget)
    for command in (("eval", *options), ("predict", next((runs / "images").glob("*/*.png")))):
        result = run_cli(command[0], "--ckpt", folder, *command[1:])
        assert result.exit_code == 1
        assert message in result.stderr


def test_eval_writes_beside_the_run(exports: Callable[..., Path], runs: Path, run_cli: Cli) -> None:
    folder = exports("torchscript", "lenet5")
    result = run_cli("eval", "--ckpt", folder, "--device", "cpu", "--workers", 0)
    assert result.exit_code == 0
    assert (runs / "lenet5" / "eval-torchscript" / "metrics.json").is_file()
    assert "lenet5, torchscript fp32" in result.stdout


def test_eval_of_an_export_that_lies_in_no_run_needs_images(
    exports: Callable[..., Path], runs: Path, run_cli: Cli, tmp_path: Path
) -> None:
    alone = tmp_path / "phone model"
    shutil.copytree(exports("torchscript", "lenet5"), alone)
    result = run_cli("eval", "--ckpt", alone, "--device", "cpu")
    assert result.exit_code == 1
    assert "does not lie in a run" in result.stderr
    assert "--data DIR" in result.stderr
    data = tmp_path / "data"
    for number, name in enumerate(CLASSES):
        if "\n" not in name:  # which no folder may have
            shutil.copytree(runs / "images" / str(number), data / name)
    result = run_cli("eval", "--ckpt", alone, "--data", data, "--device", "cpu", "--workers", 0)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "phone model-eval" / "metrics.json").is_file()


@pytest.mark.parametrize("embed", [False, True])
def test_predict_gives_the_same_rows(
    embed: bool, exports: Callable[..., Path], runs: Path, run_cli: Cli
) -> None:
    folder = exports("onnx", "lenet5", embed=embed)
    pattern = runs / "images" / "*" / "[2-4].png"
    tables = []
    for checkpoint in (runs / "lenet5", folder / "model.onnx"):
        options = ("--json", "--top-k", 3, "--device", "cpu")
        result = run_cli("predict", "--ckpt", checkpoint, pattern, *options)
        assert result.exit_code == 0, result.stderr
        tables.append([json.loads(line) for line in result.stdout.splitlines()])
    assert len(tables[0]) == 9
    for row, other in zip(*tables, strict=True):
        assert row["path"] == other["path"]
        for ours, theirs in zip(row["predictions"], other["predictions"], strict=True):
            assert ours["class"] == theirs["class"]
            assert theirs["probability"] == pytest.approx(ours["probability"], abs=1e-4)


def read_example() -> str:
    manual = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", manual, re.DOTALL)
    assert code is not None
    return code[1]


def save_unusual_images(folder: Path) -> list[Path]:
    """What decoders differ in, with much contrast between what is right and what is not."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 52, 4), dtype=np.uint8)
    deep = Image.fromarray(rng.integers(0, 65536, (40, 52), dtype=np.uint16))
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    palette = rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "photo.png")
    rgba.save(folder / "transparent.png")
    rgba.save(folder / "transparent.webp", lossless=True, exif=exif)
    rgba.convert("LA").save(folder / "grey-transparent.png")
    palette.save(folder / "palette.png")
    palette.save(folder / "palette-transparent.png", transparency=3)
    palette.save(folder / "transparent.gif", transparency=3)
    rgb.save(folder / "colour-transparent.png", transparency=rgb.getpixel((5, 5)))
    deep.save(folder / "deep.png")
    deep.save(folder / "deep-transparent.png", transparency=int(deep.getpixel((5, 5))))
    deep.save(folder / "deep.tif")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("1").save(folder / "black-and-white.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    return sorted(folder.iterdir())


def test_the_example_decodes_as_mnft_does(tmp_path: Path) -> None:
    """Pixel for pixel; without `decode` most of the transparent and 16-bit ones differ."""
    names: dict[str, Any] = {}
    exec(read_example().partition("model = json")[0], names)
    paths = save_unusual_images(tmp_path)
    assert len(paths) == 15
    naive = 0
    for path in paths:
        ours, theirs = np.asarray(decode(path)), np.asarray(names["decode"](path))
        assert np.array_equal(ours, theirs), path.name
        with Image.open(path) as file:
            plain = ImageOps.exif_transpose(file).convert("RGB")
        naive += not np.array_equal(ours, np.asarray(plain))
    assert naive >= 6
    floats = tmp_path / "floats.tif"
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(floats)
    with pytest.raises(ValueError, match="not covered by this example"):
        names["decode"](floats)


def test_the_example_of_the_manual(
    exports: Callable[..., Path], runs: Path, run_cli: Cli, tmp_path: Path
) -> None:
    """With onnxruntime, NumPy and Pillow alone it answers as `mnft predict` does."""
    folder = exports("onnx", "mobilenetv2")
    assert read_json(folder / "model.json")["decoding"]["transparency"] == "composited on white"
    (tmp_path / "images").mkdir()
    paths = save_unusual_images(tmp_path / "images")
    script = read_example().replace("runs/flowers/exports/onnx", str(folder))
    head, _, tail = script.partition('image = decode("photo.jpg")')
    assert tail
    answer = '[model["class_names"][logits.argmax()], float(probabilities.max())]'
    shown = 'print(model["class_names"][logits.argmax()], probabilities.max())'
    assert shown in tail
    tail = tail.replace(shown, f"print(json.dumps({answer}))")  # names may have line breaks
    body = f"image = decode(path){tail}".replace("\n", "\n    ")
    script = f"{head}import sys\nfor path in sys.argv[1:]:\n    {body}\n"
    script += "assert not {'torch', 'mnft'} & set(sys.modules)\n"
    (tmp_path / "app.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "app.py", *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    result = run_cli("predict", "--ckpt", runs / "mobilenetv2", *paths, "--json")
    rows = [json.loads(line)["predictions"][0] for line in result.stdout.splitlines()]
    for path, line, best in zip(paths, done.stdout.strip().splitlines(), rows, strict=True):
        name, probability = json.loads(line)
        assert name == best["class"], path.name
        assert probability == pytest.approx(best["probability"], abs=1e-4), path.name


# Gates


def gate(run_cli: Cli, runs: Path, *options: object, fmt: str = "torchscript") -> Result:
    return run_cli("export", "--ckpt", runs / "colour", "--format", fmt, "-o", "out", *options)


class SwappedColours(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.flip(1))


def break_normalisation(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    real = graph.EmbeddedModel.__init__

    def init(self: graph.EmbeddedModel, *args: Any) -> None:
        real(self, *args)
        self.scale *= 255  # as if pixels were in 0..1

    monkeypatch.setattr(graph.EmbeddedModel, "__init__", init)
    return ("--embed-preprocessing",)


def swap_colours(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    real = conversion.build_graph

    def build(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return real(SwappedColours(model), *args, **kwargs)

    monkeypatch.setattr(conversion, "build_graph", build)
    return ()


def misstate_mean(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The file is right, but an app that goes by model.json would not be."""
    from dataclasses import replace

    from mnft.commands import export as command

    real = command.write_record

    def write(folder: Path, artifact: Any) -> None:
        wrong = replace(artifact.preprocessing, mean=(-3.0, 0.5, 4.0))
        real(folder, replace(artifact, preprocessing=wrong))

    monkeypatch.setattr(command, "write_record", write)
    return ()


def shift_classes(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    real = conversion.build_graph

    class Shifted(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images).roll(1, dims=1)

    monkeypatch.setattr(conversion, "build_graph", lambda m, *a, **k: real(Shifted(m), *a, **k))
    return ()


BREAKAGES = [break_normalisation, swap_colours, misstate_mean, shift_classes]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_broken_file_is_not_kept(
    breakage: Callable[[pytest.MonkeyPatch], tuple[str, ...]],
    runs: Path,
    run_cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = breakage(monkeypatch)
    result = gate(run_cli, runs, *options)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "does not answer as the trained model does and was not kept" in result.stderr
    assert "export.min_agreement" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--embed-preprocessing",)])
def test_a_whole_file_is_kept(
    options: tuple[str, ...], runs: Path, run_cli: Cli, tmp_path: Path
) -> None:
    result = gate(run_cli, runs, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert "rounding" not in result.stderr
    shown = json.loads(result.stdout)
    assert shown["file"] == "out/model.pt"
    assert shown["bytes"] == (tmp_path / "out" / "model.pt").stat().st_size
    assert shown["parity"] == read_json(tmp_path / "out" / "parity.json")
    assert shown["parity"]["passed"] is True


def test_gates_can_be_loosened(
    runs: Path, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_colours(monkeypatch)
    loose = ("--set", "export.min_agreement=0", "--set", "export.max_accuracy_drop=1")
    result = gate(run_cli, runs, *loose)
    assert result.exit_code == 0
    assert "are more than rounding" in result.stderr
    parity = read_json(tmp_path / "out" / "parity.json")
    assert parity["agreement"] < 0.99
    assert all((runs / "images" / path).is_file() for path in parity["disagreements"])
    assert parity["disagreements"]


def test_a_failed_export_leaves_the_earlier_one(
    runs: Path, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gate(run_cli, runs).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with monkeypatch.context() as broken:
        swap_colours(broken)
        assert gate(run_cli, runs).exit_code == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # A whole one takes its place.
    (tmp_path / "out" / "labels.txt").write_text("old")
    assert gate(run_cli, runs).exit_code == 0
    assert (tmp_path / "out" / "labels.txt").read_text(encoding="utf-8") != "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# What is refused, and what is said


def test_unknown_format(run_cli: Cli, runs: Path) -> None:
    result = gate(run_cli, runs, fmt="onxn")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "found 'onxn', expected one of onnx, openvino" in result.stderr


@pytest.mark.parametrize("fmt", ["onnx", "openvino", "executorch", "tflite", "coreml"])
def test_a_missing_extra(
    fmt: str, runs: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    result = gate(run_cli, runs, fmt=fmt)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "export needs" in result.stderr
    assert f"hint: pip install 'mnft[{FORMATS[fmt].extra}]'" in result.stderr


def test_a_package_that_is_damaged(
    runs: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = gate(run_cli, runs, fmt="openvino")
    assert result.exit_code == 1
    assert "cannot be exported to OpenVINO: a package does not work here: " in result.stderr


def test_a_model_that_the_tool_chain_refuses(
    runs: Path, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such operator\nand a page of details")

    monkeypatch.setattr(torchscript, "write", refuse)
    result = gate(run_cli, runs)
    assert result.exit_code == 1
    assert "lenet5 cannot be exported to TorchScript: no such operator" in result.stderr
    assert "page of details" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_best_model(run_cli: Cli, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "lenet5", tmp_path / "run", ignore=lambda *_: {"best", "exports"})
    result = run_cli("export", "--ckpt", "run", "--format", "torchscript")
    assert result.exit_code == 1
    assert "run has no best model" in result.stderr
    result = run_cli("export", "--ckpt", "nowhere", "--format", "torchscript")
    assert "nowhere does not exist" in result.stderr


def test_an_export_is_no_source_of_exports(
    run_cli: Cli, runs: Path, exports: Callable[..., Path]
) -> None:
    folder = exports("torchscript", "lenet5")
    for path in (folder, folder / "model.pt"):
        result = run_cli("export", "--ckpt", path, "--format", "torchscript")
        assert result.exit_code == 1
        assert "is an exported file, expected a run or a model folder" in result.stderr


def copy_run(runs: Path, tmp_path: Path) -> Path:
    """A run with images of its own."""
    ignored = shutil.ignore_patterns("exports", "eval*")
    shutil.copytree(runs / "lenet5", tmp_path / "run", ignore=ignored)
    manifest = save_images(tmp_path / "images")
    save_manifest(manifest, tmp_path / "run" / "split.json")
    (tmp_path / "run" / "config.yaml").write_text(f"data:\n  root: {tmp_path / 'images'}\n")
    return tmp_path / "run"


def test_images_that_have_changed(run_cli: Cli, runs: Path, tmp_path: Path) -> None:
    run = copy_run(runs, tmp_path)
    (tmp_path / "images/1/5.png").write_bytes((tmp_path / "images/1/6.png").read_bytes())
    (tmp_path / "images/2/7.png").unlink()
    result = run_cli("export", "--ckpt", run, "--format", "torchscript")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "2 of the 24 val images are not what they were" in result.stderr
    assert "1/5.png: its content has changed" in result.stderr
    assert not (run / "exports").exists()
    # Only the images that are compared are looked at.
    few = ("--set", "export.images=3")
    assert run_cli("export", "--ckpt", run, "--format", "torchscript", *few).exit_code == 0


def test_no_val_images(run_cli: Cli, runs: Path, tmp_path: Path) -> None:
    run = copy_run(runs, tmp_path)
    whole = load_manifest(run / "split.json")
    save_manifest(Manifest(whole.root, CLASSES, tuple(whole.split("train"))), run / "split.json")
    result = run_cli("export", "--ckpt", run, "--format", "torchscript")
    assert result.exit_code == 1
    assert "no val split, it has train" in result.stderr
    train = run_cli("export", "--ckpt", run, "--format", "torchscript", "--split", "train")
    assert train.exit_code == 0, train.stderr
    assert read_json(run / "exports/torchscript/parity.json")["split"] == "train"


def test_a_bare_model_folder(run_cli: Cli, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "lenet5" / "best", tmp_path / "a model")
    result = run_cli("export", "--ckpt", "a model", "--format", "torchscript")
    assert result.exit_code == 1
    assert "--data DIR" in result.stderr
    for split in ("val", "test"):
        for number, name in enumerate(CLASSES):
            for index in (2, 3) if "\n" not in name else ():  # which no folder may have
                target = tmp_path / "data" / split / name / f"{split}{index}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(runs / "images" / str(number) / f"{index}.png", target)
    result = run_cli("export", "--ckpt", "a model", "--format", "torchscript", "--data", "data")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "a model/exports/torchscript/model.pt\n"
    assert "mnft eval --ckpt 'a model/exports/torchscript'" in result.stderr
    assert "warning: only 4 images to compare on" in result.stderr
    parity = read_json(tmp_path / "a model/exports/torchscript/parity.json")
    # Never the test split, which is for the last word on a model.
    assert (parity["num_images"], parity["split"]) == (4, "val")
    load_bundle(tmp_path / "a model")


def test_another_model_of_a_run_goes_elsewhere(run_cli: Cli, runs: Path, tmp_path: Path) -> None:
    run = copy_run(runs, tmp_path)
    shutil.copytree(run / "best", run / "last")
    result = run_cli("export", "--ckpt", "run/last", "--format", "torchscript")
    assert result.stdout == "run/exports/last-torchscript/model.pt\n"


def test_core_ml_needs_no_images(run_cli: Cli, runs: Path, tmp_path: Path) -> None:
    require("coreml")
    shutil.copytree(runs / "lenet5" / "best", tmp_path / "model")
    result = run_cli("export", "--ckpt", "model", "--format", "coreml", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["parity"]["checked"] is False
    result = run_cli("eval", "--ckpt", "model/exports/coreml", "--data", ".")
    assert result.exit_code == 1
    assert "Core ML files cannot be run here" in result.stderr


@pytest.mark.parametrize("what", ["notes", "file", "below a file", "current folder", "other"])
def test_other_things_are_never_replaced(
    what: str, run_cli: Cli, runs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    output: Path | str = target
    if what == "notes":
        (target / "sub").mkdir(parents=True)
    elif what == "other":
        target.mkdir()
        (target / "model.json").write_text('{"format": "layers-model"}')
    elif what == "current folder":
        output = "."
    else:
        target.write_text("mine")
        output = target / "x" if what == "below a file" else target
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("export", "--ckpt", runs / "lenet5", "--format", "torchscript", "-o", output)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--output" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(run_cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    result = run_cli(
        "export", "--ckpt", runs / "lenet5", "--format", "torchscript", "-o", "locked/x"
    )
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr


def test_nothing_but_the_path_is_printed(runs: Path, tmp_path: Path) -> None:
    """In a process of its own, as native libraries write to the descriptors."""
    arguments = ["export", "--ckpt", str(runs / "lenet5"), "--format", "torchscript", "-o", "x"]
    code = "from mnft.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "x/model.pt\n"
    starts = ("warning: only 24", "writing", "file", "parity", "exported to", "next:")
    assert [line for line in done.stderr.splitlines() if not line.startswith(starts)] == []


# Real images and weights


def save_real_run(folder: Path, assets: Path, weights: str) -> None:
    """ImageNet features with a random head of five classes: enough to compare two runtimes."""
    data = assets / "data" / "flowers" / "val"
    samples = []
    for path in sorted(data.glob("*/*.jpg")):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        name = path.parent.name
        samples.append(Sample(f"{name}/{path.name}", name, "val", sha256))
    classes = tuple(sorted({sample.label for sample in samples}))
    torch.manual_seed(0)
    name = f"local-dir:{assets / 'weights' / weights}"
    built = build_model(ModelConfig(name=name), num_classes=len(classes), img_size=96)
    nn.init.normal_(built.model.get_classifier().weight, std=0.1)
    card = ModelCard(
        built.architecture, built.model_args, built.preprocessing, classes, built.pretrained_cfg
    )
    save_bundle(folder / "best", built.model.state_dict(), card, {})
    save_manifest(Manifest(data, classes, tuple(samples)), folder / "split.json")
    (folder / "config.yaml").write_text(f"data:\n  root: {data}\n")


@pytest.mark.real
@pytest.mark.parametrize(
    "weights",
    [
        pytest.param("mobilenetv1_100_tf", marks=pytest.mark.slow),
        pytest.param("mobilenetv2_100", marks=pytest.mark.slow),
        "tf_mobilenetv3_small_075",
    ],
)
def test_parity_on_photographs(weights: str, assets: Path, run_cli: Cli, tmp_path: Path) -> None:
    require("onnx")
    save_real_run(tmp_path / "run", assets, weights)
    result = run_cli("export", "--ckpt", "run", "--json")
    assert result.exit_code == 0, result.stderr
    parity = json.loads(result.stdout)["parity"]
    assert parity["num_images"] >= 300
    assert parity["agreement"] == 1.0
    assert parity["largest_difference"] < 1e-3


def test_paths_of_an_export_are_shown_as_they_were_typed(
    exports: Callable[..., Path], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = exports("torchscript", "lenet5")
    ignored = shutil.ignore_patterns("exports", "eval*")
    shutil.copytree(folder.parents[1], tmp_path / "runs" / "mine", ignore=ignored)
    shutil.copytree(folder, tmp_path / "runs" / "mine" / "exports" / "torchscript")
    arguments = ("--device", "cpu", "--workers", 0, "--split", "val")
    result = run_cli("eval", "runs/mine/exports/torchscript", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "written to runs/mine/eval-torchscript" in result.stderr
    # A link leads to the run that the export belongs to.
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "mine" / "exports" / "torchscript")
    result = run_cli("eval", "link", *arguments)
    assert result.exit_code == 0, result.stderr
