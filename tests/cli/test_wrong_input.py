"""Wrong configs, folders and command lines: each ends in a message that says where and what.

One table, a row a mistake. A row fails too where something is printed to stdout, where a file is
left behind, or where an exception that is no message comes out.
"""

# ruff: noqa: E501 - one row a line

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.images import COLOURS, MakeFolder, write_image
from typer.testing import CliRunner, Result

from mnft.cli.app import app

RunCli = Callable[..., Result]
# What a row does to the empty folder that the command runs in, and a folder with a trained run.
Setup = Callable[[Path, MakeFolder, Path], object]

BASE = """\
data:
  root: images
  img_size: 32
  workers: 0
model:
  name: lenet5
  pretrained: false
train:
  epochs: 1
"""
TRAIN = "train flowers.yaml"
RESUME = "train --resume runs/done"
EVAL = "eval --ckpt runs/done --workers 0"


def row(
    name: str,
    command: str,
    exit_code: int,
    says: str,
    config: str | None = None,
    *setup: Setup,
) -> Any:
    """A row of the table.

    Args:
        name: of the mistake.
        command: what is typed after `mnft`.
        exit_code: 1 or 2.
        says: fragments of stderr in their order, with " | " between them.
        config: what flowers.yaml holds; None where there is no such file.
        setup: what else there is.
    """
    return pytest.param(command, exit_code, says.split(" | "), config, setup, id=name)


def plus(*lines: str) -> str:
    """BASE with lines at its end, where the `train` section stands; the first is line 10."""
    return BASE + "".join(f"{line}\n" for line in lines)


def instead(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def of_data(line: str) -> str:
    """BASE with a key of the `data` section in line 3."""
    return instead("root: images\n", f"root: images\n  {line}\n")


def of_model(line: str) -> str:
    """BASE with a key of the `model` section in line 7."""
    return instead("name: lenet5\n", f"name: lenet5\n  {line}\n")


def images(_here: Path, make: MakeFolder, _trained: Path) -> None:
    make()


def few_images(_here: Path, make: MakeFolder, _trained: Path) -> None:
    make(per_class=2)


def split_images(_here: Path, make: MakeFolder, _trained: Path) -> None:
    make(splits=("train", "val"), per_class=2)


def done_run(here: Path, _make: MakeFolder, trained: Path) -> None:
    """images/ and runs/done/, a run of one epoch."""
    shutil.copytree(trained, here, dirs_exist_ok=True)


def foreign_weights(here: Path, _make: MakeFolder, _trained: Path) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), here / "vit.safetensors")


def write(path: str, content: bytes | str) -> Setup:
    def setup(here: Path, *_: object) -> None:
        (here / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return setup


def image(path: str) -> Setup:
    seed = int.from_bytes(path.encode()) % 2**32
    return lambda here, *_: write_image(here / path, (20, 200, 40), seed=seed)


def folder(path: str) -> Setup:
    return lambda here, *_: (here / path).mkdir(parents=True)


def remove(path: str) -> Setup:
    def setup(here: Path, *_: object) -> None:
        target = here / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return setup


def move(old: str, new: str) -> Setup:
    def setup(here: Path, *_: object) -> None:
        (here / new).parent.mkdir(parents=True, exist_ok=True)
        (here / old).rename(here / new)

    return setup


def replace(path: str, old: str, new: str) -> Setup:
    def setup(here: Path, *_: object) -> None:
        text = (here / path).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (here / path).write_text(text.replace(old, new), encoding="utf-8")

    return setup


def edit(path: str, **changes: Any) -> Setup:
    """Change a JSON file, as an editor does: keys of the file, or of `pretrained_cfg` in it."""

    def setup(here: Path, *_: object) -> None:
        values = json.loads((here / path).read_text(encoding="utf-8"))
        for key, value in changes.items():
            (values if key in values else values["pretrained_cfg"])[key] = value
        (here / path).write_text(json.dumps(values), encoding="utf-8")
        record = (here / path).with_name("mnft.json")  # without the checksum of what was changed
        known = json.loads(record.read_text(encoding="utf-8"))
        known.pop("config_sha256")
        record.write_text(json.dumps(known), encoding="utf-8")

    return setup


def forget_absolute_root(folder: Path, *_: object) -> None:
    """The run is a copy: the images that it was made with are still at their first place."""
    path = folder / "runs" / "done" / "split.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"absolute_root": "/gone"}))


# fmt: off
TABLE = [
    # --- keys and values
    row("key typo", TRAIN, 2, "flowers.yaml has a problem | line 10: train.epoch: unknown key; did you mean train.epochs?", plus("  epoch: 3")),
    row("section typo", TRAIN, 2, "line 10: optm: unknown key; did you mean optim?", plus("optm:", "  lr: 1.0")),
    row("key at top level", TRAIN, 2, "line 10: lr: unknown key; did you mean optim.lr?", plus("lr: 0.1")),
    row("key of another section", TRAIN, 2, "line 10: train.lr: unknown key; did you mean optim.lr?", plus("  lr: 0.1")),
    row("wrong type", TRAIN, 2, "line 9: train.epochs: found 'many', expected an integer from 1 to 100000", instead("epochs: 1", "epochs: many")),
    row("number in quotes", TRAIN, 2, "line 11: optim.lr: found '1e-3', expected a number above 0; did you mean 1e-3 without quotes?", plus("optim:", '  lr: "1e-3"')),
    row("number for a text", TRAIN, 2, "line 11: run.name: found 7, expected a text, or empty | needs quotes", plus("run:", "  name: 7")),
    row("number for a flag", TRAIN, 2, "line 10: train.channels_last: found 1, expected true or false", plus("  channels_last: 1")),
    row("float for an integer", TRAIN, 2, "line 9: train.epochs: found 1.5, expected an integer", instead("epochs: 1", "epochs: 1.5")),
    row("nothing for a number", TRAIN, 2, "line 9: train.epochs: found nothing, expected an integer", instead("epochs: 1", "epochs:")),
    row("hexadecimal number", TRAIN, 2, "line 11: optim.lr: found '0x10', expected a number above 0; numbers are decimal", plus("optim:", "  lr: 0x10")),
    row("leading zero", TRAIN, 2, "line 9: train.epochs: found '010', expected an integer from 1 to 100000; numbers are decimal, without leading zeros", instead("epochs: 1", "epochs: 010")),
    row("--set to minutes and seconds", f"{TRAIN} --set train.epochs=1:30", 2, "train.epochs: found '1:30', expected an integer | numbers are decimal", BASE),
    row("a stage twice", TRAIN, 2, "line 10: train.stages: found [head, head], expected [head], [finetune], [head, finetune] or [head, finetune, interpolate]", plus("  stages: [head, head]")),
    row("stages in wrong order", TRAIN, 2, "line 10: train.stages: found [finetune, head], expected", plus("  stages: [finetune, head]")),
    row("out of range", TRAIN, 2, "line 3: data.img_size: found 4, expected an integer from 8 to 2048, or empty", instead("img_size: 32", "img_size: 4")),
    row("infinite", TRAIN, 2, "line 11: optim.lr: found .inf, expected a number above 0", plus("optim:", "  lr: .inf")),
    row("not a number", TRAIN, 2, "line 11: optim.lr: found .nan, expected a number above 0", plus("optim:", "  lr: .nan")),
    row("choice typo", TRAIN, 2, "line 11: schedule.name: found 'cosin', expected one of none, cosine | did you mean cosine?", plus("schedule:", "  name: cosin")),
    row("choice in capitals", TRAIN, 2, "found 'AUTO' | did you mean auto?", instead("workers: 0", "workers: AUTO")),
    row("warmup as long as training", TRAIN, 2, "line 11: schedule.warmup_epochs: found 1, expected less than train.epochs (1)", plus("schedule:", "  warmup_epochs: 1")),
    row("more parts than images", TRAIN, 2, "line 11: train.accumulation_steps: found 8, expected at most train.batch_size (4)", plus("  batch_size: 4", "  accumulation_steps: 8")),
    row("crop to almost nothing", TRAIN, 2, "line 3: data.crop_pct: found 0.002, expected a number from 0.25 to 1, or empty", of_data("crop_pct: 0.002")),
    row("crop mode in British English", TRAIN, 2, "line 3: data.crop_mode: found 'centre', expected one of center, squash, border, or empty | did you mean center?", of_data("crop_mode: centre")),
    row("list in wrong order", TRAIN, 2, "line 11: augment.scale: found [1.0, 0.5], expected the smaller value first", plus("augment:", "  scale: [1.0, 0.5]")),
    row("list of one", TRAIN, 2, "line 11: augment.scale: found [0.5], expected a list of 2 numbers from 0 to 1", plus("augment:", "  scale: [0.5]")),
    row("wrong item of a list", TRAIN, 2, "line 11: augment.scale: found 'big' as item 2, expected a list of 2 numbers", plus("augment:", "  scale: [0.5, big]")),
    row("mean of two", TRAIN, 2, "line 3: data.mean: found 2 values, expected one for each of the 3 channels, or one", of_data("mean: [0.5, 0.5]")),
    row("mean in 0..255", TRAIN, 2, "line 3: data.mean: found 123.7 as item 1, expected a list of 1 to 3 numbers from 0 to 1", of_data("mean: [123.7, 116.3, 103.5]")),
    row("std of three for grey", TRAIN, 2, "line 3: data.std: found 3 values, expected one for each of the 1 channels", of_data("std: [1, 1, 1]").replace("lenet5", "lenet5\n  in_chans: 1")),
    row("two channels", TRAIN, 2, "line 7: model.in_chans: found 2, expected one of 1, 3", of_model("in_chans: 2")),
    row("freeze nothing", TRAIN, 2, "line 7: model.freeze: found 0, expected one of none, backbone, or an integer at least 1", of_model("freeze: 0")),
    row("run name with a slash", TRAIN, 2, "line 11: run.name: found 'a/b', expected a folder name without slashes", plus("run:", "  name: a/b")),
    row("value for a section", TRAIN, 2, "line 10: optim: found 'adam', expected a section with keys such as name, lr", plus("optim: adam")),
    row("list for a section", TRAIN, 2, "line 10: optim: found [adam], expected a section with keys such as name, lr", plus("optim: [adam]")),
    row("no data section", TRAIN, 2, "line 1: data: missing, expected a section with keys such as root", "train:\n  epochs: 3\n"),
    row("no data root", TRAIN, 2, "line 1: data.root: missing, expected a text", "data:\n  img_size: 32\n"),
    row("empty config", TRAIN, 2, "line 1: data: missing, expected a section", ""),
    row("several problems", TRAIN, 2, "flowers.yaml has 3 problems | line 10: train.epoch: | line 12: optim.lr: found -1, | line 13: foo: unknown key", plus("  epoch: 3", "optim:", "  lr: -1", "foo: 1")),
    # --- config files
    row("config name typo", "train flower.yaml", 2, "flower.yaml: no such config file | hint: did you mean flowers.yaml?", BASE),
    row("no config at all", TRAIN, 2, "flowers.yaml: no such config file | hint: `mnft init IMAGES`"),
    row("config is a folder", "train images", 2, "images: is a folder, expected a YAML config | hint: `mnft init images`", None, images),
    row("config is an image", "train images/red/000.png", 2, "images/red/000.png: not a text file, expected YAML", None, images),
    row("config not UTF-8", TRAIN, 2, "flowers.yaml: not a text file, expected YAML in UTF-8", None, write("flowers.yaml", b"\xff\xfe\x00")),
    row("config too large", TRAIN, 2, "flowers.yaml: too large, expected a config of at most 1,000,000 bytes", "#" * 1_000_001),
    row("not YAML", TRAIN, 2, "flowers.yaml, line 11: not valid YAML", plus("optim: [")),
    row("tab", TRAIN, 2, "flowers.yaml, line 10: not valid YAML | hint: indent with spaces", plus("\tlr: 1")),
    row("control character", TRAIN, 2, "flowers.yaml, line 10: not valid YAML: the character '\\x1b' is not allowed", plus("# \x1b[31m")),
    row("key twice", TRAIN, 2, "flowers.yaml, line 10: the key train.epochs is given twice, first in line 9", plus("  epochs: 2")),
    row("not a mapping", TRAIN, 2, "flowers.yaml, line 1: found a list, expected sections such as `data:`", "- a\n- b\n"),
    row("alias", TRAIN, 2, "flowers.yaml, line 10: configs may not contain aliases", plus("optim: &o", "  lr: 1", "run: *o")),
    row("Python object", TRAIN, 2, "flowers.yaml, line 10: configs may not contain the tag !!python/object", plus("run: !!python/object:os.system {}")),
    # --- the command line
    row("neither config nor run", "train", 2, "expected one of them | hint: mnft train"),
    row("config and run", f"{TRAIN} --resume runs/x", 2, "found both a config and --resume", BASE),
    row("--set key typo", f"{TRAIN} --set optim.lrr=1", 2, "the command line has a problem | --set optim.lrr=1: optim.lrr: unknown key; did you mean optim.lr?", BASE),
    row("--set section typo", f"{TRAIN} --set optm.lr=1", 2, "--set optm.lr=1: optm: unknown key; did you mean optim?", BASE),
    row("--set at top level", f"{TRAIN} --set lr=1", 2, "--set lr=1: lr: unknown key; did you mean optim.lr?", BASE),
    row("--set without value", f"{TRAIN} --set optim.lr", 2, "--set optim.lr: expected section.key=value | hint: for example --set optim.lr=3e-4", BASE),
    row("--set out of range", f"{TRAIN} --set optim.lr=-1", 2, "--set optim.lr=-1: optim.lr: found -1, expected a number above 0", BASE),
    row("--set below a value", f"{TRAIN} --set train.epochs.x=1", 2, "--set train.epochs.x=1: train.epochs is a value | hint: set it whole: --set train.epochs=VALUE", BASE),
    row("--set not YAML", f"{TRAIN} --set 'augment.scale=[0.1'", 2, "--set augment.scale=[0.1: not valid YAML", BASE),
    row("--set beside a missing key", f"{TRAIN} --set data.img_size=32", 2, "flowers.yaml has a problem | line 1: data.root: missing, expected a text", "train:\n  epochs: 3\n"),
    row("--set to nothing", f"{TRAIN} --set train.epochs=", 2, "--set train.epochs=: train.epochs: found nothing, expected an integer", BASE),
    row("--set later one wins", f"{TRAIN} --set optim.lr=1 --set optim.lr=x", 2, "--set optim.lr=x: optim.lr: found 'x', expected", BASE),
    row("--set unknown model", f"{TRAIN} --set model.name=lenet6", 1, "error: --set model.name=lenet6: found 'lenet6', expected | hint: did you mean lenet5?", BASE, images),
    row("unknown command", "trian flowers.yaml", 2, "No such command 'trian'. Did you mean 'train'?", BASE),
    row("unknown data command", "data chek images", 2, "No such command 'chek'. Did you mean 'check'?"),
    row("a key as option", f"{TRAIN} --epochs 3 --json", 2, "mnft train has no option --epochs; values of the config are set with --set | hint: mnft train flowers.yaml --set train.epochs=3 --json", BASE),
    row("a key as option, with =", f"{TRAIN} --batch-size=16", 2, "hint: mnft train flowers.yaml --set train.batch_size=16", BASE),
    row("another tool's option", f"{TRAIN} --learning-rate 1e-3", 2, "hint: mnft train flowers.yaml --set optim.lr=1e-3", BASE),
    row("a key of no section as option", f"{TRAIN} --recipe plain", 2, "hint: mnft train flowers.yaml --set recipe=plain", BASE),
    row("a whole key as option", f"{TRAIN} --optim.lr 1e-3", 2, "hint: mnft train flowers.yaml --set optim.lr=1e-3", BASE),
    row("a key as option, misspelt", f"{TRAIN} --epoch 'many of them'", 2, "hint: mnft train flowers.yaml --set 'train.epochs=many of them'", BASE),
    row("a key of the command's own section", "prune runs/x --epochs 3 --lr", 2, "has no option --epochs or --lr; | hint: mnft prune runs/x --set prune.epochs=3 --set prune.lr=VALUE"),
    row("a key as option of check", "data check flowers.yaml --img-size 64", 2, "mnft data check has no option --img-size; | hint: mnft data check flowers.yaml --set data.img_size=64", BASE),
    row("a run in the place of a config", "train runs/done", 2, "runs/done: is a folder, expected a YAML config | hint: mnft train --resume runs/done", None, done_run),
    row("unknown option", f"{TRAIN} --resum x", 2, "No such option: --resum | --resume", BASE),
    row("option of wrong type", "predict --ckpt x --top-k many a.png", 2, "Invalid value for '--top-k': | integer"),
    row("option out of range", "predict --ckpt x --top-k 0 a.png", 2, "Invalid value for '--top-k': | 1"),
    # --- image folders
    row("no folder", TRAIN, 1, "images: no such folder | hint: | data.root", BASE),
    row("root is a file", TRAIN, 1, "images: is a file, expected a folder | hint:", BASE, write("images", "x")),
    row("empty folder", TRAIN, 1, "images: found no class folders, expected one folder a class | hint:", BASE, folder("images")),
    row("no class folders", TRAIN, 1, "images: found 2 images but no class folders, expected one folder a class | hint:", BASE, image("images/a.png"), image("images/b.png")),
    row("one class", TRAIN, 1, "images: found one class (red), expected at least two", BASE, image("images/red/a.png"), image("images/red/b.png")),
    row("only empty classes", TRAIN, 1, "images: found no images, expected images in folders, one for each class", BASE, folder("images/a"), folder("images/b")),
    row("an empty class", TRAIN, 1, "images: no usable image in class white | hint: add images of it, or take it away", BASE, images, folder("images/white")),
    row("class too small", TRAIN, 1, "class blue has 2 different images, too few to split into train, val, test | hint: add images", BASE, few_images),
    row("split beside class", TRAIN, 1, "images: split folders (train, val) stand beside other folders (red) | hint:", BASE, split_images, image("images/red/a.png")),
    row("two train folders", TRAIN, 1, "images: two folders for one split: train, training", BASE, split_images, folder("images/training")),
    row("class named like a split", TRAIN, 1, "images/train/val: a folder named like a split stands among the classes | hint: rename it", BASE, split_images, folder("images/train/val")),
    row("no train split", TRAIN, 1, "images: found no images in a train split, expected images", BASE, split_images, remove("images/train")),
    row("class only in val", TRAIN, 1, "images: the val split has classes that train has not: rde | hint: classes are matched by name", BASE, split_images, image("images/val/rde/a.png")),
    row("damaged image", TRAIN, 1, "images: 1 of 25 files cannot be decoded: | red/bad.png: | hint: | data.on_bad_image: skip", BASE, images, write("images/red/bad.png", "no image")),
    row("unknown data set", TRAIN, 2, "unknown data set 'digit'; did you mean digits?", of_data("fetch: digit")),
    # --- models
    row("model typo", TRAIN, 1, "flowers.yaml, line 6, model.name: found 'mobilnetv2_100', expected | hint: did you mean mobilenetv2_100?", instead("lenet5", "mobilnetv2_100"), images),
    row("model tag typo", TRAIN, 1, "line 6, model.name: found 'mobilenetv2_100.ra_in1', but | hint: did you mean mobilenetv2_100.ra_in1k?", instead("lenet5", "mobilenetv2_100.ra_in1"), images),
    row("model without weights", TRAIN, 1, "line 6, model.name: there are no pretrained weights of lenet5 | hint: set model.pretrained to false", instead("false", "true"), images),
    row("weights without network", TRAIN, 1, "line 7, model.pretrained: the pretrained weights of mobilenetv2_100 are not in the cache | hint: | local-dir:FOLDER", instead("false", "true").replace("lenet5", "mobilenetv2_100"), images),
    row("weights file missing", TRAIN, 1, "line 7, model.pretrained: no such weights file: my.safetensors | hint: true takes", instead("false", "my.safetensors"), images),
    row("weights file is a folder", TRAIN, 1, "line 7, model.pretrained: images is a folder, not a weights file | hint: name the file", instead("false", "images"), images),
    row("weights file is an image", TRAIN, 1, "line 7, model.pretrained: images/red/000.png cannot be read as weights | hint: a safetensors file", instead("false", "images/red/000.png"), images),
    row("weights of another model", TRAIN, 1, "line 7, model.pretrained: vit.safetensors does not fit lenet5: 8 missing | hint: nothing was loaded", instead("false", "vit.safetensors"), images, foreign_weights),
    row("model folder missing", TRAIN, 1, "line 6, model.name: runs/x/best is not a model folder: config.json is missing | hint:", instead("lenet5", "local-dir:runs/x/best"), images),
    row("unknown model argument", TRAIN, 1, "line 7, model.kwargs: lenet5 cannot be built | unexpected keyword argument 'widht'", of_model("kwargs: {widht: 2}"), images),
    row("weights past mnft's checks", TRAIN, 1, "line 7, model.kwargs: checkpoint_path cannot be set here | hint: model.pretrained: FILE", of_model("kwargs: {checkpoint_path: my.pt}"), images),
    row("weights by way of timm's config", TRAIN, 1, "line 7, model.kwargs: pretrained_cfg_overlay cannot be set here | hint: model.pretrained: FILE", of_model("kwargs: {pretrained_cfg_overlay: {file: my.pt}}"), images),
    row("freeze too much", TRAIN, 1, "line 7, model.freeze: found 9, expected at most 4", of_model("freeze: 9"), images),
    row("images too small for the model", TRAIN, 1, "lenet5 cannot take images of 8x8 pixels | hint: use an img_size of 16 or more", instead("img_size: 32", "img_size: 8"), images),
    row("images smaller than a kernel", TRAIN, 1, "flowers.yaml, line 3, data.img_size: the model cannot take images of 16 x 16 pixels: | hint: leave data.img_size out", instead("img_size: 32", "img_size: 16").replace("lenet5", "test_convnext"), images),
    row("images not of whole windows", TRAIN, 1, "flowers.yaml, line 3, data.img_size: the model cannot take images of 16 x 16 pixels: | hint: leave data.img_size out", instead("img_size: 32", "img_size: 16").replace("lenet5", "test_maxvit"), images),
    row("damaged preprocessing to start from", TRAIN, 1, "flowers.yaml, line 6, model.name: the model's preprocessing | is damaged: crop_pct is 1e-09", instead("lenet5", "local-dir:runs/done/best"), done_run, edit("runs/done/best/config.json", crop_pct=1e-9)),
    # --- machine and run folder
    row("optimizer typo", TRAIN, 2, "flowers.yaml, line 11, optim.name: found 'adamww', expected an optimizer of timm | hint: did you mean adamw?", plus("optim:", "  name: adamww"), images),
    row("unknown device", TRAIN, 2, "line 10, train.device: found 'gpu', expected auto, cpu, cuda, cuda:N or mps", plus("  device: gpu"), images),
    row("number of a CPU", TRAIN, 2, "line 10, train.device: found 'cpu:3', expected auto, cpu, cuda, cuda:N or mps | hint: did you mean cpu?", plus("  device: cpu:3"), images),
    row("absent device", TRAIN, 2, "line 10, train.device: this machine has no device 'cuda:99' | hint: `mnft doctor`", plus("  device: cuda:99"), images),
    row("fp16 on the CPU", TRAIN, 2, "line 11, train.precision: fp16 needs a GPU; use bf16 or fp32", plus("  device: cpu", "  precision: fp16"), images),
    row("eval in fp16 on the CPU", TRAIN, 2, "line 12, eval.precision: fp16 needs a GPU; use bf16 or fp32", plus("  device: cpu", "eval:", "  precision: fp16"), images),
    row("run name taken", TRAIN, 2, "line 11, run.name: runs/mine exists already | hint: choose another name | --resume runs/mine", plus("run:", "  name: mine"), images, folder("runs/mine")),
    row("run folder in a file", TRAIN, 2, "line 11, run.dir: images/red/000.png is a file", plus("run:", "  dir: images/red/000.png"), images),
    # --- resume
    row("resume nothing", "train --resume runs/nothing", 1, "runs/nothing does not exist | hint: runs are the folders that `mnft train` makes"),
    row("resume no run", "train --resume images", 1, "images is not a run folder: config.yaml is missing | hint:", None, images),
    row("resume with another rate", f"{RESUME} --set optim.lr=1", 2, "optim.lr cannot change when a run is resumed | hint: only | train.epochs", None, done_run),
    row("resume an edited config", RESUME, 2, "runs/done/config.yaml was changed since the run was trained: | optim.lr: 0.5, was 0.001 | hint: put the values back", None, done_run, replace("runs/done/config.yaml", "  lr: 0.001\n", "  lr: 0.5\n")),
    row("resume with a typo", f"{RESUME} --set train.epoch=9", 2, "--set train.epoch=9: train.epoch: unknown key; did you mean train.epochs?", None, done_run),
    row("resume with other images", RESUME, 1, "images: | changed since the run began: | red/ | hint: restore them", None, done_run, remove("images/red")),
    row("resume without state", RESUME, 1, "runs/done/resume.pt: no such file | hint: start it again", None, done_run, remove("runs/done/resume.pt")),
    row("resume with damaged state", RESUME, 1, "runs/done/resume.pt: damaged resume state", None, done_run, write("runs/done/resume.pt", "x")),
    row("resume without split", RESUME, 1, "runs/done/split.json: no such file, expected the run's split", None, done_run, remove("runs/done/split.json")),
    # --- eval and predict
    row("eval without model", "eval", 2, "found no model, expected a run or a model folder | hint: mnft eval --ckpt runs/NAME"),
    row("eval of two models", "eval runs/a --ckpt runs/b", 2, "found two models, runs/a and --ckpt runs/b, expected one"),
    row("export without model", "export", 2, "found no model | hint: mnft export --ckpt runs/NAME"),
    row("predict without --ckpt", "predict runs/done images/red/000.png", 2, "found no model: --ckpt is missing | hint: mnft predict --ckpt runs/done images/red/000.png", None, done_run),
    row("predict without any model", "predict a.png", 2, "--ckpt is missing | hint: mnft predict --ckpt runs/NAME a.png"),
    row("eval nothing", "eval --ckpt runs/nothing", 1, "runs/nothing does not exist | hint: name a run (runs/NAME) or a model folder"),
    row("eval images", "eval --ckpt images", 1, "images is not a model or run folder | hint: name a run", None, images),
    row("eval a file", "eval --ckpt runs/done/best/config.json", 1, "config.json is not a model or run folder | hint: name the folder: runs/done/best", None, done_run),
    row("eval unfinished run", EVAL, 1, "runs/done has no best model: it has not finished an epoch | hint: resume it with", None, done_run, remove("runs/done/best")),
    row("eval model without run", "eval --ckpt models/best", 1, "models/best does not lie in a run | hint: name a folder of images: --data DIR", None, done_run, move("runs/done/best", "models/best")),
    row("eval damaged model", EVAL, 1, "runs/done/best/config.json: damaged", None, done_run, write("runs/done/best/config.json", "{")),
    row("eval damaged weights", EVAL, 1, "runs/done/best/model.safetensors: damaged: it is not what was written", None, done_run, write("runs/done/best/model.safetensors", "x")),
    row("eval without room for a pixel", EVAL, 1, "runs/done/best: cannot be loaded: crop_pct is 1e-09, expected a number from 0.25 to 2.0", None, done_run, edit("runs/done/best/config.json", crop_pct=1e-9)),
    row("eval without contrast", EVAL, 1, "runs/done/best: cannot be loaded: std is (0.0, 0.0, 0.0), expected numbers above 0", None, done_run, edit("runs/done/best/config.json", std=[0, 0, 0])),
    row("eval model of other labels", EVAL, 1, "runs/done/best has other class names than runs/done/split.json: it calls class 1 'a', the run 'blue' | hint: bring back the folder", None, done_run, edit("runs/done/best/config.json", label_names=["a", "b", "c"])),
    row("eval unknown class", f"{EVAL} --data other", 1, "other: classes that the model does not know: rde | hint: the model knows blue, green, red", None, done_run, image("other/rde/a.png")),
    row("eval missing images", f"{EVAL} --data other", 1, "other: no such folder", None, done_run),
    row("eval unknown split", f"{EVAL} --split vall", 2, "--split: found 'vall', expected one of train, val, test | hint: did you mean val?", None, done_run),
    row("eval absent split", f"{EVAL} --data images --split test", 1, "images: no images in the test split: it has train, val", None, done_run, remove("images"), split_images),
    row("eval moved images", EVAL, 1, "images: 3 of the 3 test images are not what they were | hint: if the folder moved, name it: --data DIR", None, done_run, forget_absolute_root, move("images", "moved")),
    row("eval unknown device", f"{EVAL} --device gpu", 2, "--device gpu: found 'gpu', expected auto, cpu, cuda, cuda:N or mps", None, done_run),
    row("predict without images", "predict --ckpt runs/done", 2, "Missing argument 'inputs'", None, done_run),
    row("predict no match", "predict --ckpt runs/done 'photos/*.jpg'", 1, "photos/*.jpg: matches no file", None, done_run),
    row("predict empty folder", "predict --ckpt runs/done empty", 1, "found no images | hint: name files, folders, globs", None, done_run, folder("empty")),
    row("predict without model", "predict --ckpt runs/nothing a.png", 1, "runs/nothing does not exist | hint: name a run"),
    row("predict on unknown device", "predict --ckpt runs/done --device gpu images", 2, "--device gpu: found 'gpu', expected auto, cpu, cuda", None, done_run),
    # --- init, data, models
    row("init missing folder", "init photos", 1, "photos: no such folder"),
    row("init empty folder", "init images", 1, "images: found no class folders, expected one folder a class | hint:", None, folder("images")),
    row("init empty classes", "init images", 1, "images: found no images with labels, expected some", None, folder("images/red"), folder("images/blue")),
    row("init existing config", "init images -o flowers.yaml", 2, "flowers.yaml exists already | hint: --force replaces it, -o names another", BASE, images),
    row("init into a folder", "init images -o runs --force", 2, "runs is a folder | hint: name a file: -o runs/CONFIG.yaml", None, images, folder("runs")),
    row("init below a file", "init images -o flowers.yaml/a.yaml", 2, "flowers.yaml/a.yaml cannot be written: its folder is a file", BASE, images),
    row("init model typo", "init images --model mobilnetv2_100", 1, "--model mobilnetv2_100: found 'mobilnetv2_100', expected | hint: did you mean mobilenetv2_100?", None, images),
    row("fetch no name", "data fetch", 2, "missing the NAME of a data set | hint: one of digits, flowers102"),
    row("fetch name typo", "data fetch flower102", 2, "unknown data set 'flower102'; did you mean flowers102? | hint: known are digits"),
    row("fetch into used folder", "data fetch digits --to images", 1, "images: not empty | hint: give a folder that does not exist", None, images),
    row("fetch without network", "data fetch flowers102 --to flowers", 1, "could not download https:// | hint: download https:// | mnft data fetch flowers102 --from FOLDER"),
    row("fetch from nothing", "data fetch flowers102 --to flowers --from a.tgz", 1, "a.tgz: no such file or folder | hint: download https://"),
    row("fetch digits from a file", "data fetch digits --from a.tgz", 2, "digits: comes with an installed package | hint: run: mnft data fetch digits"),
    row("check missing folder", "data check photos", 1, "photos: no such folder"),
    row("check missing config", "data check flower.yaml", 2, "flower.yaml: no such config file | hint: did you mean flowers.yaml?", BASE),
    row("check wrong config", "data check flowers.yaml", 2, "line 10: train.epoch: unknown key; did you mean train.epochs?", plus("  epoch: 3")),
    row("check config without folder", "data check flowers.yaml", 1, "images: no such folder", BASE),
    row("models typo", "models mobilnetv2_100", 1, "no model matches 'mobilnetv2_100' | hint: did you mean mobilenetv2_100"),
    row("models no match", "models 'mobilnet*'", 1, "no model matches 'mobilnet*' | hint: did you mean"),
    row("models too small", "models lenet5 --img-size 4", 2, "Invalid value for '--img-size': | 8"),
]
# fmt: on


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and runs/done/, a run of one epoch."""
    here = tmp_path_factory.mktemp("trained")
    for number, (label, colour) in enumerate(COLOURS.items()):
        for index in range(8):
            write_image(here / f"images/{label}/{index}.png", colour, seed=100 * number + index)
    (here / "flowers.yaml").write_text(plus("run:", "  name: done", "  tensorboard: false"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        result = CliRunner().invoke(app, shlex.split(TRAIN))
    assert result.exit_code == 0, result.stderr
    (here / "flowers.yaml").unlink()
    return here


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A machine without any network, and with empty caches."""
    from huggingface_hub import constants as hub

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    cache = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("MNFT_CACHE", cache)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)  # and back, whatever mnft makes of it
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def snapshot(here: Path) -> dict[str, str]:
    """Every path below a folder, with a hash of its content."""
    return {
        str(p.relative_to(here)): hashlib.sha256(p.read_bytes() if p.is_file() else b"").hexdigest()
        for p in here.rglob("*")
    }


def unwrapped(stderr: str) -> str:
    """Without the boxes that Typer draws around usage errors, and their line breaks."""
    return re.sub(r"[\s\u2500-\u257f]+", " ", stderr)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("command", "exit_code", "says", "config", "setup"), TABLE)
def test_wrong_input(
    command: str,
    exit_code: int,
    says: list[str],
    config: str | None,
    setup: tuple[Setup, ...],
    run_cli: RunCli,
    make_folder: MakeFolder,
    tmp_path: Path,
    trained: Path,
) -> None:
    if config is not None:
        (tmp_path / "flowers.yaml").write_text(config)
    for step in setup:
        step(tmp_path, make_folder, trained)
    before = snapshot(tmp_path)

    result = run_cli(*shlex.split(command))  # raises what is no message
    if record := os.environ.get("MNFT_GOLDEN_MESSAGES"):  # tests/golden/golden.py
        message = result.stderr.replace(str(tmp_path), "HERE").replace(str(trained), "TRAINED")
        with Path(record).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([command, result.exit_code, message]) + "\n")

    assert result.exit_code == exit_code, result.stderr
    assert "Traceback" not in result.output
    assert "\x1b" not in result.stderr
    assert result.stdout == ""
    rest = unwrapped(result.stderr)
    for fragment in says:
        assert fragment in rest, result.stderr
        rest = rest.partition(fragment)[2]
    assert snapshot(tmp_path) == before, "a failed command leaves nothing behind"


def test_the_table_is_long_and_its_rows_have_names() -> None:
    names = [case.id for case in TABLE]
    assert len(names) == len(set(names)) >= 36
    assert {case.values[1] for case in TABLE} == {1, 2}


def test_a_right_command_passes_where_a_wrong_one_fails(
    run_cli: RunCli, make_folder: MakeFolder, tmp_path: Path
) -> None:
    """The setup of the table is sound: without a mistake the same config trains."""
    make_folder()
    (tmp_path / "flowers.yaml").write_text(plus("run:", "  tensorboard: false"))
    assert run_cli(*shlex.split(TRAIN)).stdout == "runs/flowers/best\n"


@pytest.mark.parametrize(
    "command", ["init nope", "data check nope", "eval --ckpt runs/done --data nope"]
)
def test_a_folder_that_was_typed_is_not_blamed_on_the_config(
    command: str, run_cli: RunCli, make_folder: MakeFolder, tmp_path: Path, trained: Path
) -> None:
    done_run(tmp_path, make_folder, trained)
    result = run_cli(*shlex.split(command))
    assert "error: nope: no such folder" in result.stderr
    assert "data.root" not in result.stderr
