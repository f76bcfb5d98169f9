"""A run of many epochs keeps its memory flat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faults_support import Place, Warm

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# After each epoch, in the training process itself.
MEASURE = """
import gc, re
import mnft.runs.writer as writer
save_epoch = writer.RunWriter.save_epoch
def measured(self, state, result):
    save_epoch(self, state, result)
    gc.collect()
    with open("/proc/self/status") as status, open("rss", "a") as out:
        out.write(re.search(r"VmRSS:\\s+(\\d+)", status.read())[1] + "\\n")
writer.RunWriter.save_epoch = measured
"""


def fit_slope(rss_kb: np.ndarray) -> tuple[float, float]:
    """Of the last half: kB an epoch (least squares), and the range in kB."""
    half = rss_kb[len(rss_kb) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    return slope, float(half.max() - half.min())


@pytest.mark.parametrize(
    ("sets", "epochs", "interval"),
    [
        ((), 600, 0.0),
        (("model.name=mobilenetv2_035", "data.img_size=32", "train.ema_decay=0.9"), 120, None),
        (("data.store=off", "data.workers=2"), 120, 0.0),
    ],
)
def test_memory_stays_flat(
    sets: tuple[str, ...],
    epochs: int,
    interval: float | None,
    tmp_path: Path,
    warm: Warm,
    fault_images: Path,
) -> None:
    """Also where most epochs are copied to memory instead of saved (None)."""
    place = Place(tmp_path / "place", warm, fault_images)
    ended = place.train(*sets, f"train.epochs={epochs}", first=MEASURE, save_interval=interval)
    assert ended.code == 0, ended.err
    check(place, epochs)


def test_memory_stays_flat_on_the_demo_set(tmp_path: Path, warm: Warm) -> None:
    place = Place(tmp_path / "place", warm, tmp_path / "place" / "data" / "digits")
    assert place.call("data", "fetch", "digits").code == 0
    ended = place.train("train.epochs=60", "train.batch_size=64", first=MEASURE)
    assert ended.code == 0, ended.err
    check(place, 60)


def check(place: Place, epochs: int) -> None:
    rss = np.loadtxt(place.folder / "rss")
    assert len(rss) == epochs
    slope, spread = fit_slope(rss)
    print(
        f"{epochs} epochs: {rss[0] / 1e3:.1f} MB after the first, {rss[-1] / 1e3:.1f} MB at the "
        f"end; last half: {slope:+.2f} kB an epoch, range {spread / 1e3:.2f} MB"
    )
    # What an epoch leaves on purpose, its record in the history, is below 1 kB.
    assert abs(slope) < 16
    assert spread < 16_000
