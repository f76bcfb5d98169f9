"""Heat maps of predicted images as files: each image, and beside it what raised the answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from mnft import files
from mnft.data.decode import decode_bytes, read_content
from mnft.data.store.geometry import EvalGeometry
from mnft.data.transforms import normalize
from mnft.errors import ConfigError
from mnft.model.bundle import Bundle
from mnft.model.explain import check_explainable, compute_gradcam
from mnft.report.album import paint_heat
from mnft.tasks.outputs import Answers

_SIDE = 800  # pixels of the longer side of the image
_MAX_NAME = 60  # characters of a part of a file name


class HeatFiles:
    """Writes NAME-ANSWER.png for each predicted image, with the image and its heat map.

    Args:
        folder: folder to write to; it is made where it is missing.
        bundle: the model, placed on its device.
        answers: what the model says of images.

    Raises:
        ModelError: the model has no feature maps.
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path, bundle: Bundle, answers: Answers) -> None:
        check_explainable(bundle.model)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
        self._folder, self._bundle, self._answers = folder, bundle, answers
        self._taken: set[str] = set()
        self._device = next(bundle.model.parameters()).device

    def write(self, path: Path, values: NDArray[Any]) -> list[Path]:
        """Write the files of one image.

        Args:
            path: the image file.
            values: (K,) outputs for it.

        Returns:
            The files, one for each output that the answer names; none for an output that no
            feature raised.

        Raises:
            ModelError: the model's features are no maps.
        """
        content = read_content(path)
        pixels = torch.from_numpy(EvalGeometry(self._bundle.preprocessing).decode(content))
        images = normalize(pixels.permute(2, 0, 1)[None], self._bundle.preprocessing)
        outputs = self._answers.choose_explained(values)
        images = images.to(self._device).expand(len(outputs), -1, -1, -1)
        maps = compute_gradcam(self._bundle.model, images.contiguous(), outputs).cpu().numpy()
        image = decode_bytes(content, min_side=_SIDE)
        image.thumbnail((_SIDE, _SIDE))
        written = []
        for output, heat in zip(outputs, maps, strict=True):
            if heat.any():
                target = self._folder / self._name(path.stem, self._bundle.labels[output])
                with files.atomic_path(target) as temporary:
                    paint_heat(image, heat, self._bundle.preprocessing).save(temporary, "PNG")
                written.append(target)
        return written

    def _name(self, stem: str, label: str) -> str:
        """A file name of this run's own; images of several folders may have one name."""
        parts = (re.sub(r"[^\w.-]+", "_", part)[:_MAX_NAME] or "_" for part in (stem, label))
        base = "-".join(parts)
        name, number = f"{base}.png", 1
        while name in self._taken:
            number += 1
            name = f"{base}-{number}.png"
        self._taken.add(name)
        return name
