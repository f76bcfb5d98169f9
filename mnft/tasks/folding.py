"""Put into the weights what a task divides a model's outputs by, so that every runtime obeys it."""

from __future__ import annotations

from dataclasses import replace

from mnft.model.bundle import Bundle
from mnft.model.linear_head import divide_outputs
from mnft.tasks import load_activation

# Marks settings whose temperature is in the weights already; model folders never have it.
FOLDED = "temperature_folded"


def fold_temperature(bundle: Bundle) -> Bundle:
    """Divide the outputs of a model by its temperature; a model that was folded stays as it is.

    Args:
        bundle: an opened model; its module is changed.

    Raises:
        ModelError: the settings of the model are damaged.
    """
    temperature = load_activation(bundle.task).read_temperature(bundle.settings)
    if temperature == 1 or bundle.settings.get(FOLDED):
        return bundle
    model = divide_outputs(bundle.model, temperature, bundle.preprocessing.input_size)
    return replace(bundle, model=model, settings={**bundle.settings, FOLDED: True})
