"""`data.crop_mode` from the config to the exported file: everything sees what plain timm sees."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from support.images import draw
from timm.data import create_transform
from typer.testing import CliRunner, Result

from mnft.compress.quantize.calibration import read_images
from mnft.config.load import load_config
from mnft.data.transforms import build_eval_transform
from mnft.evaluation.checkpoint import open_checkpoint
from mnft.evaluation.images import ImageSet
from mnft.exports.artifact import _describe_resize
from mnft.exports.formats import FORMATS
from mnft.host import find_missing
from mnft.preprocessing import Preprocessing

Cli = Callable[..., Result]
ROOT = Path(__file__).parents[2]
MODES = ("center", "squash", "border")
MEAN = (0.2, 0.5, 0.9)


def invoke(*args: object) -> Result:
    from mnft.cli.app import app

    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def save_images(root: Path) -> None:
    """Long images, whose ends tell the classes apart: a bright one is left, above, or nowhere."""
    for number in range(48):
        split, label = ("train", "val")[number % 2], ("none", "first")[number // 2 % 2]
        size = (90, 30) if number // 4 % 2 else (30, 70 + number)
        image = draw(number, size).point(lambda value: value // 2)
        if label == "first":
            image.paste((255, 255, 255), (0, 0, 15, 15))
        (root / split / label).mkdir(parents=True, exist_ok=True)
        image.save(root / split / label / f"{number:02d}.png")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each mode, with a fitted head and an epoch of fine-tuning."""
    folder = tmp_path_factory.mktemp("crop modes")
    save_images(folder / "images")
    values = {
        "data": {
            "root": str(folder / "images"),
            "store": str(folder / "cache"),
            "workers": 0,
            "img_size": 32,
            "mean": MEAN,
        },
        "model": {"name": "test_resnet", "pretrained": False},
        "train": {"stages": ["head", "finetune"], "epochs": 1, "precision": "fp32"},
        "decision": {"calibrate": False},  # timm gives the probabilities without a temperature
        "run": {"dir": str(folder)},
    }
    for mode in MODES:
        (folder / f"{mode}.yaml").write_text(json.dumps(values))
        sets = ("--set", f"data.crop_mode={mode}") if mode != "center" else ()
        invoke("train", folder / f"{mode}.yaml", *sets, "--set", "train.device=cpu")
    return folder


def timm_predicts(folder: Path, paths: list[Path]) -> np.ndarray[Any, Any]:
    """(N, K) probabilities by a model folder that is opened without mnft."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = create_transform(**config, is_training=False)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        probabilities: torch.Tensor = model(images).softmax(dim=1)
    return probabilities.numpy()


def mnft_predicts(checkpoint: Path, paths: list[Path]) -> np.ndarray[Any, Any]:
    result = invoke("predict", "--ckpt", checkpoint, *paths, "--json", "--top-k", 2)
    rows = [json.loads(line)["predictions"] for line in result.stdout.splitlines()]
    known = [{answer["class"]: answer["probability"] for answer in row} for row in rows]
    return np.array([[row["first"], row["none"]] for row in known])


def val_images(runs: Path) -> list[Path]:
    paths = sorted((runs / "images" / "val").glob("*/*.png"))
    assert len(paths) == 24
    return paths


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_answers_in_plain_timm_as_in_predict_and_eval(runs: Path, mode: str) -> None:
    best, paths = runs / mode / "best", val_images(runs)
    config = json.loads((best / "config.json").read_text())["pretrained_cfg"]
    assert (config["crop_mode"], config["crop_pct"]) == (mode, 0.95 if mode == "center" else 1.0)
    expected = timm_predicts(best, paths)
    assert expected.std(axis=0).min() > 0.01
    assert np.abs(mnft_predicts(best, paths) - expected).max() < 2e-6
    right = expected.argmax(axis=1) == [path.parent.name == "none" for path in paths]
    evaluated = json.loads(invoke("eval", "--ckpt", runs / mode, "--split", "val", "--json").stdout)
    assert evaluated["accuracy"] == pytest.approx(right.mean())
    log = [json.loads(line) for line in (runs / mode / "log.jsonl").read_text().splitlines()]
    epochs = [entry for entry in log if entry["event"] == "epoch" and entry["is_best"]]
    assert epochs[-1]["val_accuracy"] == pytest.approx(right.mean())


def test_the_modes_answer_differently(runs: Path) -> None:
    """Else the other tests could not fail."""
    answers = [timm_predicts(runs / mode / "best", val_images(runs)) for mode in MODES]
    model = timm.create_model(f"local-dir:{runs / 'squash' / 'best'}", pretrained=True).eval()
    for mode in ("center", "border"):
        config = timm.data.resolve_model_data_config(model) | {"crop_mode": mode}
        transform = create_transform(**config, is_training=False)
        images = [transform(Image.open(p).convert("RGB")) for p in val_images(runs)]
        with torch.inference_mode():
            other = model(torch.stack(images)).softmax(dim=1).numpy()
        assert np.abs(other - answers[1]).max() > 0.01


@pytest.mark.parametrize(
    ("fmt", "mode", "embed"),
    [
        ("onnx", "squash", False),
        ("onnx", "border", True),
        ("torchscript", "squash", True),
        ("torchscript", "border", False),
    ],
)
def test_an_export_answers_as_the_model_does(
    runs: Path, tmp_path: Path, fmt: str, mode: str, embed: bool
) -> None:
    if find_missing((*FORMATS[fmt].converter, *(FORMATS[fmt].runtime or ()))):
        pytest.skip(f"mnft[{FORMATS[fmt].extra}] is not installed")
    options = ["--embed-preprocessing"] * embed
    invoke("export", "--ckpt", runs / mode, "--format", fmt, "-o", tmp_path / "out", *options)
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (parity["agreement"], parity["num_images"]) == (1.0, 24)
    found = mnft_predicts(tmp_path / "out" / FORMATS[fmt].file, val_images(runs))
    expected = timm_predicts(runs / mode / "best", val_images(runs))
    assert np.abs(found - expected).max() < 1e-4
    record = json.loads((tmp_path / "out" / "model.json").read_text())["preprocessing"]
    assert (record["crop_mode"], record["crop_pct"]) == (mode, 1.0)
    resize = record["resize"]
    assert (resize["width"], resize["height"]) == (32, 32)
    assert resize.get("fill") == (None if mode == "squash" else [51, 128, 230])


@pytest.mark.parametrize("mode", MODES)
def test_calibration_sees_what_timm_sees(runs: Path, mode: str) -> None:
    opened = open_checkpoint(runs / mode)
    assert opened.manifest is not None
    root, samples = opened.manifest.root, opened.manifest.split("train")
    images = ImageSet(root, "train", samples, {}, root)
    found = read_images(opened.bundle, images, load_config(opened.run.config)[0])
    config = opened.bundle.preprocessing.as_pretrained_cfg()
    transform = create_transform(**config, is_training=False)
    paths = [opened.manifest.root / sample.path for sample in images.samples]
    expected = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    assert np.array_equal(found, expected.numpy())


def test_a_run_that_starts_from_a_folder_keeps_its_mode(runs: Path, run_cli: Cli) -> None:
    start = ("--set", f"model.name=local-dir:{runs / 'border' / 'best'}")
    start += ("--set", "model.pretrained=true", "--set", "train.stages=[head]")
    for mode, crop_mode in ((None, "border"), ("center", "center")):
        options = ("--set", f"data.crop_mode={mode}") if mode else ()
        named = ("--set", f"run.name=from-border-{mode}")
        result = run_cli("train", runs / "center.yaml", *start, *options, *named)
        assert result.exit_code == 0, result.stderr
        config = json.loads((runs / f"from-border-{mode}" / "best" / "config.json").read_text())
        assert config["pretrained_cfg"]["crop_mode"] == crop_mode


def test_features_of_another_mode_are_not_taken_from_the_cache(runs: Path) -> None:
    """The three runs share one store, one backbone and one set of images."""
    heads = [
        timm.create_model(f"local-dir:{runs / mode / 'best'}", pretrained=True).fc.weight
        for mode in MODES
    ]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    assert len(list((runs / "cache").rglob("features-*.npz"))) >= 6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["squash", "border"])
def test_the_lines_of_the_manual_give_the_same_pixels(mode: str, channels: int) -> None:
    manual = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", manual, re.DOTALL) if "gaps" in c)
    rng = np.random.default_rng(0)
    for size, crop_pct in (((32, 32), 1.0), ((32, 32), 0.8), ((24, 40), 0.9), ((33, 32), 1.15)):
        preprocessing = Preprocessing(
            (channels, *size), MEAN[:channels], (0.5,) * channels, "bicubic", crop_pct, mode
        )
        spec = preprocessing.as_pretrained_cfg() | {"resize": _describe_resize(preprocessing)}
        for width, height in rng.integers(3, 90, (40, 2)).tolist():
            photo = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            photo = photo.convert("L" if channels == 1 else "RGB")
            names: dict[str, Any] = {"np": np, "Image": Image, "image": photo, "spec": spec}
            exec(code, names)
            expected = build_eval_transform(preprocessing)(photo).permute(1, 2, 0)
            found = names["pixels"].reshape(expected.shape)
            assert np.array_equal(found, expected.numpy()), (size, crop_pct, width, height)
