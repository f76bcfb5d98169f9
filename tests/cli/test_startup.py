"""What a training does not wait for: packages that it has no use for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Runs the commands one after the other in one process, and names what they have imported.
COMMANDS = """
import sys
from mnft.cli.app import main
for command in sys.argv[1].split(";"):
    sys.argv = ["mnft", *command.split()]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
# Each takes from a tenth of a second to a second to import.
SLOW = {"sklearn", "scipy", "joblib", "pandas", "matplotlib", "onnx", "onnxruntime", "openvino"}
CONFIG = """
data: {root: images, workers: 0, store: store}
model: {name: lenet5, pretrained: false}
train: {epochs: 1, batch_size: 8, class_weights: balanced, device: cpu}
eval: {monitor: macro_f1}
run: {name: run, tensorboard: false}
"""


def test_training_and_prediction_import_nothing_slow(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    make_folder(splits=("train", "val"))
    (tmp_path / "small.yaml").write_text(CONFIG)
    predict = "predict --ckpt runs/run --device cpu images/val/red/000.png"
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, f"train small.yaml;{predict}"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.rpartition("imported: ")[2].split())
    assert {"torch", "timm"} <= imported
    assert not imported & SLOW
