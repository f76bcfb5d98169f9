"""The golden run: what two short trainings, an export and every wrong input give, to the bit.

    python tests/golden/golden.py write RECORD.json      before a change that must change nothing
    python tests/golden/golden.py compare RECORD.json    after it

The record holds SHA-256 of all weights, the log without times, the metrics, the parity of an ONNX
file and the exit code and message of each row of tests/cli/test_wrong_input.py. Bits depend on the
processor and on the versions of torch and timm, so a record compares only where these are equal,
and none is shipped. With MNFT_ASSETS a MobileNetV2 from ImageNet weights is trained on flowers as
well. It takes about a minute; everything runs on one thread.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TIMES = {"seconds", "images_per_s", "data_wait", "peak_memory_mb", "store"}


def mnft(*words: str, cwd: Path) -> str:
    """Run `mnft` as a user would, from this checkout; gives stdout."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "MNFT_CACHE": str(cwd / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mnft", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"mnft {' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without(values: Any, names: set[str]) -> Any:
    """The same, without these keys at any depth."""
    if isinstance(values, dict):
        return {k: without(v, names) for k, v in values.items() if k not in names}
    return [without(v, names) for v in values] if isinstance(values, list) else values


def train(config: Path, here: Path, *overrides: str) -> dict[str, Any]:
    """What a training of two epochs, its evaluation and its ONNX file come to."""
    common = ["train.epochs=2", "train.device=cpu", "run.tensorboard=false", "run.name=golden"]
    sets = [word for text in (*common, *overrides) for word in ("--set", text)]
    mnft("train", str(config), *sets, cwd=here)
    run = here / "runs" / "golden"
    mnft("eval", "--ckpt", str(run), cwd=here)
    mnft("export", "--ckpt", str(run), "--format", "onnx", cwd=here)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    weights = sorted(run.glob("*/model.safetensors"))
    (parity,) = run.glob("exports/**/parity.json")
    return {
        "weights": {path.parent.name: sha256(path) for path in weights},
        "log": without(log, TIMES),
        "metrics": without(json.loads((run / "eval" / "metrics.json").read_text()), TIMES),
        "parity": without(json.loads(parity.read_text()), TIMES),
    }


def read_messages(here: Path) -> Any:
    """Exit code and stderr of each row of the table of wrong input."""
    record = here / "messages.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    subprocess.run(
        [*command, "tests/cli/test_wrong_input.py"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "MNFT_GOLDEN_MESSAGES": str(record)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return [json.loads(line) for line in record.read_text().splitlines()]


def make_record() -> dict[str, Any]:
    found: dict[str, Any] = {
        "environment": {
            "processor": platform.processor() or platform.machine(),
            "cpu": _processor(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "timm", "onnxruntime")},
            "assets": bool(os.environ.get("MNFT_ASSETS")),
        }
    }
    with tempfile.TemporaryDirectory() as place:
        (digits := Path(place, "digits")).mkdir()
        found["digits"] = train(REPOSITORY / "configs" / "digits.yaml", digits)
        if assets := os.environ.get("MNFT_ASSETS"):
            (flowers := Path(place, "flowers")).mkdir()
            config = flowers / "flowers.yaml"
            config.write_text(
                f"data: {{root: {assets}/data/flowers, img_size: 96}}\n"
                f"model: {{name: 'local-dir:{assets}/weights/mobilenetv2_035_tf'}}\n"
            )
            found["flowers"] = train(config, flowers)
        found["messages"] = read_messages(Path(place))
        # Folders of this run are in messages and log.
        text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
        return json.loads(text.replace(place, "PLACE"))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


def main() -> None:
    verb, path = sys.argv[1], Path(sys.argv[2])
    found = make_record()
    if verb == "write":
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
        print(f"written: {path}")
        return
    expected = json.loads(path.read_text())
    if expected["environment"] != found["environment"]:
        raise SystemExit(f"another environment: {expected['environment']}, {found['environment']}")
    before, after = (
        json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True).splitlines()
        for record in (expected, found)
    )
    changes = list(difflib.unified_diff(before, after, "before", "after", lineterm="", n=1))
    print("\n".join(changes) or "equal to the bit")
    raise SystemExit(bool(changes))


if __name__ == "__main__":
    main()
