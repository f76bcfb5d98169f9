"""Models: every family with a new head, the model folder that plain timm opens, freezing."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from huggingface_hub import constants as hub
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.config.schema import ModelConfig
from mnft.errors import CheckpointError, ModelError
from mnft.model import bundle as bundle_module
from mnft.model import sources
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.factory import BuiltModel, build_model, check_model
from mnft.model.freeze import freeze, set_training_mode
from mnft.preprocessing import Preprocessing

CLASSES = ("ash", "beech", "\N{LATIN SMALL LETTER C WITH CEDILLA}am", "oak", "yew")
# Name to img_size, in_chans and further settings; one of every family.
MODELS: dict[str, tuple[int | None, int, dict[str, Any]]] = {
    "mobilenetv1_100": (64, 3, {}),
    "mobilenetv1_025": (32, 1, {}),
    "mobilenetv2_035": (64, 3, {"drop_rate": 0.1}),
    "mobilenetv3_large_075": (64, 3, {}),
    "mobilenetv3_small_050": (None, 1, {}),
    "mobilenetv4_conv_small": (64, 3, {"drop_path_rate": 0.1}),
    "lenet5": (28, 1, {}),
    "resnet18": (64, 3, {}),
    "efficientnet_b0": (64, 3, {}),
    "convnext_atto": (64, 3, {"kwargs": {"ls_init_value": 0.1}}),
    "vit_tiny_patch16_224": (96, 3, {}),
}
OF_TIMM = [name for name in MODELS if name not in {"lenet5", "mobilenetv1_025"}]


def build(name: str, **overrides: Any) -> BuiltModel:
    img_size, in_chans, settings = MODELS[name]
    torch.manual_seed(0)
    config = ModelConfig(name=name, pretrained=False, in_chans=in_chans, **settings)  # type: ignore[arg-type]
    return build_model(config, num_classes=5, img_size=img_size, overrides=overrides)


def save(built: BuiltModel, folder: Path, classes: tuple[str, ...] = CLASSES) -> None:
    card = ModelCard(
        built.architecture, built.model_args, built.preprocessing, classes, built.pretrained_cfg
    )
    save_bundle(folder, built.model.state_dict(), card, {"split_fingerprint": "f"})


def images_for(preprocessing: Preprocessing) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *preprocessing.input_size, generator=generator)


@torch.inference_mode()
def logits_of(model: nn.Module, preprocessing: Preprocessing) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(images_for(preprocessing))
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_build_save_and_open(name: str, tmp_path: Path) -> None:
    img_size, in_chans, _ = MODELS[name]
    built = build(name, mean=[0.1] * in_chans, crop_pct=0.9, interpolation="bilinear")
    for layer in built.model.modules():  # statistics that are not those of a fresh model
        if isinstance(layer, _BatchNorm):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    expected = logits_of(built.model, built.preprocessing)
    assert expected.shape == (2, 5)
    assert built.preprocessing.input_size == (in_chans, img_size or 224, img_size or 224)
    assert built.architecture == name
    save(built, tmp_path / "model")
    opened = load_bundle(tmp_path / "model")
    assert not opened.model.training
    assert torch.equal(logits_of(opened.model, opened.preprocessing), expected)
    assert opened.preprocessing == built.preprocessing
    assert opened.labels == CLASSES
    assert opened.record["split_fingerprint"] == "f"
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert torch.equal(logits_of(plain, built.preprocessing), expected)
    config = timm.data.resolve_model_data_config(plain)
    assert Preprocessing.from_timm(config) == built.preprocessing
    assert tuple(config["mean"]) == (0.1,) * in_chans
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bilinear")
    assert tuple(config["input_size"]) == built.preprocessing.input_size


@pytest.mark.parametrize(("written", "kept"), [(None, "border"), ("squash", "squash")])
def test_a_start_model_keeps_its_crop_mode_unless_the_config_names_one(
    tmp_path: Path, written: str | None, kept: str
) -> None:
    save(build("mobilenetv1_025", crop_mode="border", crop_pct=0.9), tmp_path / "model")
    start = ModelConfig(name=f"local-dir:{tmp_path / 'model'}", in_chans=1)
    again = build_model(start, num_classes=5, overrides={"crop_mode": written})
    assert (again.preprocessing.crop_mode, again.preprocessing.crop_pct) == (kept, 0.9)


READER = """
import json, sys, timm, timm.data, torch
from safetensors.torch import load_file
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    sample = load_file(f"{folder}/sample.safetensors")
    with torch.inference_mode():
        assert torch.equal(model(sample["images"]), sample["logits"]), folder
    config = timm.data.resolve_model_data_config(model)
    for key, value in json.load(open(f"{folder}/expected.json")).items():
        found = config[key]
        assert (list(found) if isinstance(found, tuple) else found) == value, (folder, key, found)
    assert model.pretrained_cfg["label_names"][1] == "beech"
    print(folder)
assert not any(name.split(".")[0] == "mnft" for name in sys.modules)
"""


def test_timm_without_mnft_opens_the_folders(tmp_path: Path) -> None:
    folders = []
    for name in OF_TIMM:
        built, folder = build(name), tmp_path / name
        logits = logits_of(built.model, built.preprocessing)
        save(built, folder)
        images = images_for(built.preprocessing)
        save_file({"images": images, "logits": logits.clone()}, folder / "sample.safetensors")
        expected = built.preprocessing.as_pretrained_cfg()
        (folder / "expected.json").write_text(json.dumps(expected))
        folders.append(str(folder))
    command = [sys.executable, "-I", "-c", "import torch; torch.set_num_threads(1)\n" + READER]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == folders


def test_the_folder_holds_what_the_design_says(tmp_path: Path) -> None:
    save(build("mobilenetv1_025"), tmp_path / "model")
    folder = tmp_path / "model"
    expected = {"config.json", "mnft.json", "model.safetensors"}
    assert {entry.name for entry in folder.iterdir()} == expected
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == list(CLASSES)
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 5
    assert config["model_args"] == {"in_chans": 1}
    assert {"input_size", "mean", "std", "interpolation", "crop_pct"} <= set(
        config["pretrained_cfg"]
    )
    record = json.loads((folder / "mnft.json").read_text(encoding="utf-8"))
    weights = (folder / "model.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(weights).hexdigest()
    assert record["mnft_version"]
    modes = {oct(entry.stat().st_mode & 0o777) for entry in folder.iterdir()}
    assert len(modes) == 1  # as readable for others as any file


def test_a_grey_model_takes_the_mean_of_three_colour_values() -> None:
    built = build("mobilenetv3_small_050")
    assert built.preprocessing.mean == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
    with pytest.raises(ModelError, match=r"data.mean and data.std"):
        build("mobilenetv3_small_050", mean=[0.1, 0.2])


def test_a_folder_can_be_trained_on_with_other_classes(tmp_path: Path) -> None:
    """`model.name: local-dir:` keeps the weights and arguments of the folder but for the head."""
    built = build("vit_tiny_patch16_224", std=[0.3] * 3)
    save(built, tmp_path / "model")
    config = ModelConfig(name=f"local-dir:{tmp_path / 'model'}")
    again = build_model(config, num_classes=7, img_size=96)
    assert again.model_args["img_size"] == 96
    assert again.preprocessing.std == (0.3,) * 3
    assert "new head" in again.weights
    old, new = built.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old if not key.startswith("head."))
    assert new["head.weight"].shape == (7, 192)
    save(again, tmp_path / "again", tuple("abcdefg"))
    opened = load_bundle(tmp_path / "again")
    expected = logits_of(again.model, again.preprocessing)
    assert torch.equal(logits_of(opened.model, opened.preprocessing), expected)
    same = build_model(config, num_classes=5, labels=CLASSES, img_size=96)
    assert "its head too" in same.weights
    assert torch.equal(same.model.state_dict()["head.weight"], old["head.weight"])


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize(
    ("in_folder", "wanted", "kept"),
    [
        (CLASSES, CLASSES, True),
        (CLASSES, CLASSES[::-1], False),
        (CLASSES, tuple("abcde"), False),
        (CLASSES, None, False),
        (None, CLASSES, False),
    ],
)
def test_a_head_is_kept_for_the_same_classes_only(
    tmp_path: Path,
    in_folder: tuple[str, ...] | None,
    wanted: tuple[str, ...] | None,
    kept: bool,
    by_file: bool,
) -> None:
    source, folder = build("mobilenetv1_025"), tmp_path / "model"
    save(source, folder)
    if in_folder is None:
        edit(folder, label_names="remove")
    start: dict[str, Any] = {"name": f"local-dir:{folder}"}
    if by_file:
        start = {"name": "mobilenetv1_025", "pretrained": str(folder / "model.safetensors")}
    config = ModelConfig(in_chans=1, **start)
    built = build_model(config, num_classes=5, labels=wanted)
    old, new = source.model.state_dict(), built.model.state_dict()
    assert torch.equal(new["classifier.weight"], old["classifier.weight"]) is kept
    assert ("new head" in built.weights) is not kept
    assert new["classifier.weight"].std() < 0.02 or kept
    assert torch.equal(new["conv_stem.weight"], old["conv_stem.weight"])


def test_a_file_of_unknown_classes_gives_no_head(tmp_path: Path) -> None:
    torch.save(build("mobilenetv1_025").model.state_dict(), tmp_path / "w.pth")
    config = ModelConfig(name="mobilenetv1_025", pretrained=str(tmp_path / "w.pth"), in_chans=1)
    for content in (None, "{", "[]"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert "new head" in build_model(config, num_classes=5, labels=CLASSES).weights


def test_grey_weights_ask_for_a_grey_model(tmp_path: Path) -> None:
    save(build("mobilenetv1_025"), tmp_path / "model")
    name = f"local-dir:{tmp_path / 'model'}"
    with pytest.raises(ModelError, match=r"conv_stem.weight") as error:
        build_model(ModelConfig(name=name), num_classes=5)
    assert "set model.in_chans: 1" in str(error.value.hint)
    colour = build_model(ModelConfig(name=name, pretrained=False), num_classes=5)
    assert colour.model_args["in_chans"] == 3
    save(colour, tmp_path / "colour")
    opened = load_bundle(tmp_path / "colour")
    assert logits_of(opened.model, opened.preprocessing).shape == (2, 5)


def test_colour_weights_are_adapted_to_a_grey_model(tmp_path: Path) -> None:
    source = build("mobilenetv2_035")
    save(source, tmp_path / "model")
    config = ModelConfig(name=f"local-dir:{tmp_path / 'model'}", in_chans=1)
    built = build_model(config, num_classes=5, labels=CLASSES)
    assert built.model_args["in_chans"] == 1
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        expected = source.model.eval()(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(built.model.eval()(grey), expected, rtol=1e-4, atol=1e-4)
    save(built, tmp_path / "grey")
    opened = load_bundle(tmp_path / "grey")
    assert opened.preprocessing.input_size[0] == 1
    with torch.inference_mode():
        torch.testing.assert_close(opened.model(grey), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("in_chans", 1, "model.in_chans"),
        ("num_classes", 3, "classes of the data"),
        ("features_only", True, "classifiers"),
        ("pretrained", False, "model.pretrained"),
        ("drop_rate", 0.1, "model.drop_rate"),
        ("drop_path_rate", 0.1, "model.drop_path_rate"),
        ("img_size", 64, "data.img_size"),
    ],
)
def test_what_mnft_gives_itself_is_refused_in_kwargs(key: str, value: Any, hint: str) -> None:
    config = ModelConfig(name="resnet18", pretrained=False, kwargs={key: value})
    with pytest.raises(ModelError, match=key) as checked:
        check_model(config)
    with pytest.raises(ModelError, match=key):
        build_model(config, num_classes=5)
    assert checked.value.key == "model.kwargs"
    assert hint in str(checked.value.hint)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(build("mobilenetv1_025"), tmp_path / "model")
    for settings in (
        {"name": "local-dir:~/model"},
        {"name": "mobilenetv1_025", "pretrained": "~/model/model.safetensors"},
    ):
        config = ModelConfig(in_chans=1, **settings)  # type: ignore[arg-type]
        check_model(config)
        built = build_model(config, num_classes=5, labels=CLASSES)
        assert "its head too" in built.weights
    with pytest.raises(ModelError, match="no such weights file"):
        check_model(ModelConfig(pretrained="~no_such_user/w.pth"))


def test_deprecated_names_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    config = ModelConfig(name="tf_efficientnet_b0_ns", pretrained=False)
    check_model(config)
    built = build_model(config, num_classes=2, img_size=32)
    assert built.architecture == "tf_efficientnet_b0"
    assert built.pretrained_cfg["tag"] == "ns_jft_in1k"
    assert "tf_efficientnet_b0_ns" in caplog.text
    assert "tf_efficientnet_b0.ns_jft_in1k" in caplog.text


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mobilenetv1_025", "pretrained: false"),
        ("resnet18", "# pretrained: true"),
        ("hf-hub:someone/model", "# pretrained: true"),
    ],
)
def test_init_asks_for_no_weights_that_do_not_exist(
    run_cli: Callable[..., Any],
    make_folder: Callable[..., Path],
    tmp_path: Path,
    name: str,
    line: str,
) -> None:
    result = run_cli("init", make_folder(per_class=2), "-o", "c.yaml", "--model", name)
    assert result.exit_code == 0, result.stderr
    lines = [found.strip() for found in (tmp_path / "c.yaml").read_text().splitlines()]
    assert any(found.startswith(line) for found in lines), lines


def test_arguments_of_a_hub_config_are_saved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_hub(model_id: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
        assert model_id == "someone/model"
        return {}, "resnet18", {"global_pool": "max", "num_classes": 9}

    monkeypatch.setattr(sources, "load_model_config_from_hf", from_hub)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert sources.load_source("hf-hub:someone/model") == ("resnet18", {"global_pool": "max"})
    assert sources.load_source("resnet18") == ("resnet18", {})


# Starting weights


def test_a_weights_file(tmp_path: Path) -> None:
    source = build("mobilenetv1_025").model
    torch.save(source.state_dict(), tmp_path / "w.pth")
    config = ModelConfig(name="mobilenetv1_025", pretrained=str(tmp_path / "w.pth"), in_chans=1)
    built = build_model(config, num_classes=3)
    assert torch.equal(built.model.state_dict()["conv_stem.weight"], source.conv_stem.weight)
    assert built.weights.endswith("w.pth, new head")
    logits = logits_of(built.model, built.preprocessing)
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 2])).item()
    assert loss == pytest.approx(math.log(3), abs=0.2)


@pytest.mark.parametrize(
    "name", ["mobilenetv2_035", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
def test_a_new_head_on_loaded_weights_is_small(name: str, tmp_path: Path) -> None:
    img_size, in_chans, _ = MODELS[name]
    source = build(name)
    save(source, tmp_path / "model")
    config = ModelConfig(name=f"local-dir:{tmp_path / 'model'}", in_chans=in_chans)  # type: ignore[arg-type]
    built = build_model(config, num_classes=50, img_size=img_size)
    built.model.train()
    targets = torch.arange(8) % 50
    images = 3 * torch.randn(8, *built.preprocessing.input_size)
    loss = nn.functional.cross_entropy(built.model(images), targets).item()
    assert loss == pytest.approx(math.log(50), abs=0.35)
    assert built.model.get_classifier().weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """No connection can be made and the cache of weights is empty; gives the attempts."""
    attempts: list[Any] = []

    def refuse(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        attempts.append(address)
        raise OSError("Network is unreachable")

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return attempts


@pytest.mark.parametrize("name", ["mobilenetv3_small_050.lamb_in1k", "hf-hub:someone/model"])
def test_pretrained_without_internet(name: str, offline: list[Any]) -> None:
    with pytest.raises(ModelError, match="cannot be downloaded") as error:
        build_model(ModelConfig(name=name), num_classes=5)
    assert len(offline) == 1
    hint = str(error.value.hint)
    where = "someone/model" if ":" in name else "timm/mobilenetv3_small_050.lamb_in1k"
    assert where in hint
    assert "model.name: local-dir:FOLDER" in hint
    assert "model.pretrained: false" in hint
    assert error.value.key == "model.pretrained"


def test_pretrained_without_internet_from_the_command_line(
    offline: list[Any],
    run_cli: Callable[..., Any],
    make_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    root = make_folder(splits=("train", "val"), per_class=2)
    (tmp_path / "c.yaml").write_text(
        f"data:\n  root: {root}\n  workers: 0\nmodel:\n  name: resnet18\n"
    )
    result = run_cli("train", "c.yaml")
    assert result.exit_code == 1
    assert "the pretrained weights of resnet18 are not in the cache" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"name": "mobilenet_v2"}, "a name that timm knows", "did you mean mobilenetv2"),
        ({"name": "timm/a.b"}, "a name that timm knows", "did you mean hf-hub:timm/a.b"),
        ({"name": "resnet18.nonsense"}, "no weights named 'nonsense'", "did you mean resnet18."),
        ({"name": "lenet5"}, "no pretrained weights of lenet5", "set model.pretrained to false"),
        ({"name": "local-dir:missing"}, "not a model folder", "config.json and model.safetensors"),
        ({"name": "resnet18", "pretrained": "no.pth"}, "no such weights file", "random ones"),
        ({"name": "resnet18", "pretrained": False, "kwargs": {"x": 1}}, "cannot be built", ""),
    ],
)
def test_models_that_cannot_be_had(settings: dict[str, Any], message: str, hint: str) -> None:
    config = ModelConfig(**settings)

    def check_and_build() -> None:
        check_model(config)
        build_model(config, num_classes=5)

    with pytest.raises(ModelError, match=message) as error:
        check_and_build()
    assert hint in (error.value.hint or "")
    assert str(error.value.key).startswith("model.")


# Freezing


def train_steps(model: nn.Module, steps: int = 3) -> None:
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        set_training_mode(model)
        images = torch.randn(4, 3, 64, 64, generator=generator)
        nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()


def stem_and_stage(prefixes: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefixes)


@pytest.mark.parametrize(
    ("name", "what", "frozen"),
    [
        ("mobilenetv2_035", "none", ()),
        ("mobilenetv2_035", 1, ("conv_stem", "bn1")),
        ("mobilenetv2_035", 3, ("conv_stem", "bn1", "blocks.0.", "blocks.1.")),
        (
            "mobilenetv2_035",
            "backbone",
            ("conv_stem", "bn1", "blocks.", "conv_head", "bn2"),
        ),
        ("resnet18", 2, ("conv1", "bn1", "layer1.")),
        ("mobilenetv4_conv_small", 2, ("conv_stem", "bn1", "blocks.0.")),
    ],
)
def test_frozen_parts_stay_bit_for_bit(name: str, what: Any, frozen: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    names = freeze(model, what)
    assert names == sorted(n for n, _ in model.named_parameters() if n.startswith(frozen or "-"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train_steps(model)
    for key, tensor in model.state_dict().items():
        if frozen and key.startswith(frozen):
            assert torch.equal(tensor, before[key]), f"{key} is frozen and changed"
        else:
            assert not torch.equal(tensor, before[key]), f"{key} did not learn"


def test_freezing_lets_go_again() -> None:
    model = timm.create_model("mobilenetv2_035", num_classes=4)
    freeze(model, "backbone")
    freeze(model, "none")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_training_mode_leaves_frozen_modules_in_evaluation() -> None:
    model = timm.create_model("mobilenetv2_035", num_classes=4, drop_rate=0.5)
    freeze(model, 2)
    model.eval()
    set_training_mode(model)
    assert model.training
    assert not model.bn1.training
    assert not model.blocks[0].training
    assert not any(module.training for module in model.blocks[0].modules())
    assert all(module.training for module in model.blocks[1:].modules())
    assert model.bn2.training


@pytest.mark.parametrize("what", [9, 100])
def test_more_groups_than_there_are(what: int) -> None:
    model = timm.create_model("mobilenetv2_035", num_classes=4)
    with pytest.raises(ModelError, match="expected at most 8: this model has the stem and 7") as e:
        freeze(model, what)
    assert e.value.key == "model.freeze"
    assert freeze(model, 8)


@pytest.mark.parametrize(
    "name", [*MODELS, "mobilenetv3_large_100", "deit_tiny_distilled_patch16_224"]
)
def test_the_backbone_is_all_but_the_head(name: str) -> None:
    model = timm.create_model(name, num_classes=4)
    freeze(model, "backbone")
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    heads = ("classifier", "head.fc", "head.", "fc.", "head_dist.")
    assert learning
    assert all(n.startswith(heads) for n in learning), learning
    total = sum(p.numel() for n, p in model.named_parameters() if n in learning)
    assert total < sum(p.numel() for p in model.parameters()) / 2


# Model folders that are not whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(build("mobilenetv1_025"), tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "remove"}))
    forget_sums(folder)


def forget_sums(folder: Path) -> None:
    """As in folders of before, and where config.json was changed on purpose."""
    if not (folder / "mnft.json").is_file():  # a folder of timm's
        return
    record = json.loads((folder / "mnft.json").read_text(encoding="utf-8"))
    record.pop("config_sha256", None)
    (folder / "mnft.json").write_text(json.dumps(record))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def other_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = torch.zeros(9, 256)
    save_file(weights, folder / "model.safetensors")


def one_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["conv_stem.weight"]
    save_file(weights, folder / "model.safetensors")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no folder": shutil.rmtree,
    "no config": lambda f: (f / "config.json").unlink(),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "empty weights": lambda f: cut(f / "model.safetensors", 0),
    "cut weights": lambda f: cut(f / "model.safetensors", 100_000),
    "weights are text": lambda f: (f / "model.safetensors").write_text("version https://git-lfs"),
    "other head": other_head,
    "a tensor is missing": one_missing,
    "cut config": lambda f: cut(f / "config.json", 40),
    "config is binary": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "config is a list": lambda f: (f / "config.json").write_text("[]"),
    "no architecture": lambda f: edit(f, architecture="remove"),
    "unknown architecture": lambda f: edit(f, architecture="mobilenet_v99"),
    "architecture is a number": lambda f: edit(f, architecture=3),
    "other architecture": lambda f: edit(f, architecture="resnet18"),
    "no label names": lambda f: edit(f, label_names="remove"),
    "too few label names": lambda f: edit(f, label_names=["a"]),
    "label names are numbers": lambda f: edit(f, label_names=[1, 2, 3, 4, 5]),
    "unknown argument": lambda f: edit(f, model_args={"nonsense": 1}),
    "arguments are a list": lambda f: edit(f, model_args=[1]),
    "pretrained_cfg is text": lambda f: edit(f, pretrained_cfg="x"),
    "input size of one number": lambda f: edit(
        f, pretrained_cfg={"num_classes": 5, "input_size": [3]}
    ),
    "mean of two numbers": lambda f: edit(
        f, pretrained_cfg={"num_classes": 5, "input_size": [1, 32, 32], "mean": ["a", "b"]}
    ),
    "cut record": lambda f: cut(f / "mnft.json", 10),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(CheckpointError) as error:
        load_bundle(folder)
    assert str(folder) in error.value.message


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "two names swapped": (
        "label_names",
        lambda c: c["label_names"].insert(0, c["label_names"].pop()),
    ),
    "a name changed": ("label_names", lambda c: c["label_names"].__setitem__(0, "other")),
    "mean": ("preprocessing", lambda c: c["pretrained_cfg"].update(mean=[0.1, 0.2, 0.3])),
    "std": ("preprocessing", lambda c: c["pretrained_cfg"].update(std=[0.1, 0.2, 0.3])),
    "input_size": ("preprocessing", lambda c: c["pretrained_cfg"].update(input_size=[3, 64, 64])),
    "crop_pct": ("preprocessing", lambda c: c["pretrained_cfg"].update(crop_pct=0.5)),
    "interpolation": (
        "preprocessing",
        lambda c: c["pretrained_cfg"].update(interpolation="nearest"),
    ),
    "crop_mode": ("preprocessing", lambda c: c["pretrained_cfg"].update(crop_mode="squash")),
    "arguments": ("architecture", lambda c: c["model_args"].update(drop_rate=0.1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_config_json_says_of_the_weights_is_covered(folder: Path, change: str) -> None:
    part, apply = CHANGES[change]
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    apply(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"changed since it was written: {part}") as error:
        load_bundle(folder)
    assert "take config_sha256 out of" in str(error.value.hint)
    forget_sums(folder)
    load_bundle(folder)


def test_a_licence_or_another_format_of_the_text_changes_nothing(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["pretrained_cfg"]["license"] = "mit"
    path.write_text(json.dumps(dict(reversed(config.items())), indent=8))
    assert load_bundle(folder).labels == CLASSES


def test_a_folder_of_timm_without_class_names_says_what_to_do(folder: Path) -> None:
    edit(folder, label_names="remove")
    with pytest.raises(CheckpointError) as error:
        load_bundle(folder)
    assert "model.name: local-dir:FOLDER" in str(error.value.hint)


def test_saving_is_all_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    built = build("mobilenetv1_025")
    built.model.classifier.bias.data.fill_(7)

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bundle_module.files, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            save(built, folder)
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
    save(built, folder)
    assert load_bundle(folder).model.classifier.bias[0] == 7
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


def test_a_crash_between_the_renames_is_recovered(folder: Path) -> None:
    folder.rename(folder.with_name("model.old"))
    assert load_bundle(folder).labels == CLASSES
    assert folder.is_dir()
    assert not folder.with_name("model.old").exists()


# Real weights


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    ["mobilenetv1_100_tf", "mobilenetv2_035_tf", "mobilenetv2_100", "tf_mobilenetv3_small_075"],
)
def test_real_weights_with_a_new_head(name: str, assets: Path, tmp_path: Path) -> None:
    source = assets / "weights" / name
    built = build_model(ModelConfig(name=f"local-dir:{source}"), num_classes=5, img_size=96)
    assert "new head" in built.weights
    stored = load_file(source / "model.safetensors")
    state = built.model.state_dict()
    same = [key for key in stored if key in state and torch.equal(stored[key], state[key])]
    assert len(same) >= len(stored) - 2
    built.model.train()
    images = torch.rand(8, 3, 96, 96) * 2 - 1
    loss = nn.functional.cross_entropy(built.model(images), torch.arange(8) % 5).item()
    assert loss == pytest.approx(math.log(5), abs=0.35)
    expected = logits_of(built.model, built.preprocessing)
    save(built, tmp_path / "model")
    opened = load_bundle(tmp_path / "model")
    assert torch.equal(logits_of(opened.model, opened.preprocessing), expected)
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert torch.equal(logits_of(plain, built.preprocessing), expected)


@pytest.mark.real
def test_real_weights_keep_their_own_head_for_their_own_classes(
    assets: Path, tmp_path: Path
) -> None:
    source, named = assets / "weights" / "mobilenetv1_100_tf", tmp_path / "named"
    count = json.loads((source / "config.json").read_text())["num_classes"]
    names = tuple(f"class {number}" for number in range(count))
    start = ModelConfig(name=f"local-dir:{source}")
    unnamed = build_model(start, num_classes=count, labels=names)
    assert "new head" in unnamed.weights  # 1,000 classes, but nobody knows which
    shutil.copytree(source, named)
    edit(named, label_names=list(names))
    start = ModelConfig(name=f"local-dir:{named}")
    built = build_model(start, num_classes=count, labels=names)
    assert "its head too" in built.weights
    plain = timm.create_model(f"local-dir:{source}", pretrained=True)
    expected = logits_of(plain, built.preprocessing)
    assert torch.equal(logits_of(built.model, built.preprocessing), expected)
    assert expected.std() > 0.1
