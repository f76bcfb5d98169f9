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


def run(images: Path, output: Path | None, model: str, *, force: bool) -> None:
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
    head = [
        f"{images}: {rules.describe(scan)}",
        f"{rules.plural}: {', '.join(rules.list_names(scan))}",
        f"launch:  mnft train {output}",
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
    console.note(f"next: mnft data check {output}, then mnft train {output}")
    console.show_data(str(output))
