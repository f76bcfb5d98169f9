"""The config section about the images: where they are, how they are split, loaded and resized."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from mnft.config.section import Positive, Section, UnitInterval, UnitIntervalOpen
from mnft.preprocessing import MIN_CROP_PCT

# YAML 1.1 reads a plain `off` as false.
_OrOff = Annotated[str, BeforeValidator(lambda value: "off" if value is False else value)]

_COLUMNS = ("path", "label", "labels", "split", "group")


class DataConfig(Section):
    """Where the images are, how they are split, and how they are loaded."""

    root: str
    """Folder of images: one folder per class, which mnft splits in place, or `train/`, `val/` and
    `test/` folders that hold such folders. Or a table of labels (.csv, .tsv, .parquet) with a row
    for each image, or a folder with `metadata.csv`; paths in it are relative to it. A relative path
    starts at the current folder."""
    other: str | None = None
    """Folder of images that are none of the classes, in any subfolders: what else the camera will
    see. The model gets one more output for them, which never counts in the accuracy, and answers
    `unknown`. They are split like the classes, unless they lie in `train/`, `val/` and `test/`.
    Empty: none."""
    fetch: str | None = None
    """Data set (`mnft data fetch --list`) to download if `data.root` does not exist. Empty:
    none."""
    img_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Height and width of the model's input in pixels. Empty: the model's own size."""
    columns: dict[str, str | list[str]] = Field(default={})
    """Columns of the table: `path`, `label`, `split` and `group` name one each, `labels` lists
    columns of 0 and 1. Without it columns with usual names are taken: path, file_name, filename or
    image; label or class; split; group; else, for labels, all columns of 0 and 1."""
    separator: str = ";"
    """What stands between the labels of an image that has several in one cell."""
    group: str | None = None
    """What keeps images of one patient, film or tree in one split: a column of the table, or a
    regular expression on the path with one bracket, such as `^(.*)_[0-9]+\\.jpg$`. Images whose
    path it does not match are groups of their own. Empty: the column `group` if there is one."""
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Fraction of each class that becomes the val split if the folder has none."""
    test_fraction: UnitIntervalOpen = 0.15
    """Fraction of each class that becomes the test split if the folder has no splits at all."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split. The same seed and files give the same split on every machine."""
    split_from: str | None = None
    """Run whose split is kept: images that it has, by content, stay in their split there, and only
    new images are split. Use it for a run that starts or learns from that run's model, so that no
    test image was trained on. Empty: none."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What happens if files cannot be decoded: `fail` lists them and stops before training, `skip`
    leaves them out and lists them in split.json."""
    exclude: str | None = None
    """File that lists images to leave out, one path relative to `data.root` per line, as `mnft data
    check --fix FILE` writes it. split.json records which ones were left out. Empty: none."""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Number of processes that decode and augment images; 0 does it in the main process. `auto`
    chooses by the number of cores, at most 8 per training process."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """How an image is fitted into the model's input in evaluation, prediction and exported models.
    `center` cuts out its middle, `squash` changes its proportions, and `border` adds a border of
    the mean colour. Training crops do not depend on this: they are random parts of the image.
    Empty: the mode of the model's weights, mostly `center`."""
    crop_pct: Annotated[float, Field(ge=MIN_CROP_PCT, le=1.0)] | None = None
    """Fraction of the resized image's side that evaluation keeps, in the middle. Empty: 1 if
    data.crop_mode is set to `squash` or `border`, so that nothing is cut off; else the model's."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    """Interpolation of the resize. Empty: the model's own."""
    mean: Annotated[list[UnitInterval], Field(min_length=1, max_length=3)] | None = None
    """Channel means that normalisation subtracts (pixels are 0 to 1). Empty: the model's own."""
    std: Annotated[list[Positive], Field(min_length=1, max_length=3)] | None = None
    """Channel standard deviations that normalisation divides by. Empty: the model's own."""
    store: _OrOff = "auto"
    """Decode each image only once and keep the pixels in memory-mapped files that all epochs, runs
    and processes share. `auto` puts them into the cache folder ($MNFT_CACHE, or mnft in the user's
    cache folder); a path names another folder; `off` decodes in every epoch. Batches are the same
    bit for bit, except that a GPU that keeps stored images in its memory rounds pixels
    differently."""
    store_limit_gb: Positive = 20.0
    """Largest size of that folder in gigabytes. The files that were used longest ago make room.
    Images that do not fit are decoded in every epoch, which only costs time."""

    def override_preprocessing(self) -> dict[str, Any]:
        """What replaces the model's own preprocessing, in timm's keys; None replaces nothing."""
        chosen = self.model_dump(include={"mean", "std", "interpolation", "crop_pct", "crop_mode"})
        if self.crop_pct is None and self.crop_mode in {"squash", "border"}:
            chosen["crop_pct"] = 1.0  # these modes are for seeing all of the image
        return chosen

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for what, name in value.items():
            if what not in _COLUMNS:
                raise ValueError(f"found {what!r}, expected some of {', '.join(_COLUMNS)}")
            if isinstance(name, list) != (what == "labels") or not name:
                kind = "a list of columns" if what == "labels" else "the name of one column"
                raise ValueError(f"{what}: found {name!r}, expected {kind}")
        if "label" in value and "labels" in value:
            raise ValueError("found label and labels, expected one of them")
        return value
