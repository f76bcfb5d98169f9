"""`mnft init`: write a commented config for a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnft import console, files
from mnft.config.data import DataConfig
from mnft.config.docs import render_config
from mnft.config.schema import Config, ModelConfig
from mnft.data import readers
from mnft.data.decode import list_missing_support
from mnft.errors import ConfigError, DataError
from mnft.tasks import load_label_rules
from mnft.text import count

_BACKBONES = ("mobilenetv3_large_100", "mobilenetv4_conv_small")
_FEW_IMAGES, _MANY_IMAGES = 2_000, 20_000


def run(
    images: Path, output: Path | None, model: str, *, force: bool, search: bool = False
) -> None:
    """Look at the folder and write a config for it.

    Raises:
        DataError: the folder cannot be used.
        ModelError: timm has no such model.
        ConfigError: the file exists already, or cannot be written.
    """
    place = images.resolve()
    output = output or Path(f"{place.stem if place.is_file() else place.name}.yaml")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder", hint=f"name a file: -o {output}/CONFIG.yaml")
    if output.exists() and not force:
        raise ConfigError(f"{output} exists already", hint="--force replaces it, -o names another")
    scan = readers.read(DataConfig(root=str(images)))
    if not scan.images:
        raise DataError(f"{images}: found no images with labels, expected some of each")
    rules = load_label_rules(scan.task)
    chosen: dict[str, Any] = {"name": model}
    if model != ModelConfig().name:  # the default is known, and not worth importing timm
        from mnft.model.factory import check_model
        from mnft.model.sources import has_pretrained_weights

        check_model(ModelConfig(name=model, pretrained=False))
        if not has_pretrained_weights(model):
            chosen["pretrained"] = False
    values: dict[str, Any] = {"recipe": "auto", "data": {"root": str(images)}, "model": chosen}
    if scan.task != Config.model_fields["task"].default:
        values = {"task": scan.task, **values}
    if search:
        pretrained = chosen.get("pretrained", True)
        values["search"] = _propose_search(model, len(scan.images), pretrained=pretrained)
    head = [
        f"{images}: {rules.describe(scan)}",
        f"{rules.plural}: {', '.join(rules.list_names(scan))}",
        f"launch:  mnft {'search' if search else 'train'} {output}",
        "Lines that begin with # show defaults; take the # away to change one. What you do not",
        "write the recipe chooses for a pretrained model; the run says what, and why.",
    ]
    try:
        files.write_text(output, render_config(values, head))
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or "a name is not valid UTF-8"
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "its folder is a file"
        raise ConfigError(f"{output} cannot be written: {reason}") from error
    console.note(f"found    {rules.describe(scan)}")
    if scan.unusable:
        console.warn(
            f"{count(len(scan.unusable), 'row')} cannot be used; `mnft data check` lists them"
        )
    for missing in list_missing_support(image.path for image in scan.images):
        console.warn(missing)
    console.done(f"wrote    {output}")
    verb = "search" if search else "train"
    console.note(f"next: mnft data check {output}, then mnft {verb} {output}")
    console.show_data(str(output))


def _propose_search(model: str, num_images: int, *, pretrained: bool) -> dict[str, Any]:
    """A first search for a folder: what mostly matters, in about the time of four trainings."""
    space: dict[str, Any] = {}
    if pretrained:
        # Backbones of about one cost, which differ in what they know.
        space["model.name"] = list(dict.fromkeys([model, *_BACKBONES]))
        space["optim.lr"] = {"low": 3e-4, "high": 3e-3, "log": True}
    else:
        space["optim.lr"] = {"low": 3e-4, "high": 1e-2, "log": True}
        space["optim.weight_decay"] = {"low": 1e-3, "high": 1e-1, "log": True}
    space["augment.mixup"] = [0, 0.2]
    if num_images < _FEW_IMAGES:
        space["augment.scale"] = [[0.35, 1.0], [0.7, 1.0]]
    return {
        "method": "random",
        "trials": 12,
        "seeds": 2,
        "rungs": [1, 3] if num_images < _MANY_IMAGES else [1],
        "space": space,
    }
