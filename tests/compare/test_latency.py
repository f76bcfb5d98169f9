"""Latency: turns in alternation, workers that die or hang, and no torch where none is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from mnft.compare import process as latency_process
from mnft.compare.latency import Latency, Plan, compute_ratio, measure, measure_each
from mnft.compare.process import WorkerProcess
from mnft.compare.variants import Variant
from mnft.compare.worker import run_turn
from mnft.errors import ExportError
from mnft.exports.artifact import write_record
from mnft.exports.convert import convert
from mnft.exports.formats import FORMATS
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.preprocessing import Preprocessing
from mnft.reporter import Reporter

CLASSES = ("blue", "green", "red")

# Answers as a worker does, and writes every request to a file; what goes wrong is in the name of
# the folder that it is to open.
STUB = """
import json, os, signal, sys, time
from pathlib import Path
first = json.loads(input())
name = Path(first["folder"]).name
log = Path(first["folder"]).parent / "log"
def answer(**values):
    print(json.dumps(values), flush=True)
if name == "dies":
    print("the reason", file=sys.stderr)
    sys.exit(7)
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "refuses":
    answer(error="no such thing", hint="do this")
    sys.exit(0)
answer(dynamic_batch=name != "single")
turns = 0
while True:
    try:
        request = json.loads(input())
    except EOFError:
        sys.exit(0)
    with log.open("a") as file:
        file.write(json.dumps([name, os.environ["OMP_NUM_THREADS"], request]) + "\\n")
    if "memory" in request:
        answer(peak_bytes=123_000_000)
        continue
    turns += 1
    if name == "hangs" and turns == 2:
        time.sleep(600)
    if name == "dies-later" and turns == 3:
        sys.exit("late")
    one = 0.002 if name == "slow" else 0.001
    answer(seconds=[one * request["batch_size"] / (2 if request["batch_size"] > 1 else 1)]
           * request["calls"])
"""


@pytest.fixture
def variants(tmp_path, monkeypatch):
    """A function (*names) that makes variants whose workers are the stub."""
    (tmp_path / "stub_worker.py").write_text(STUB)
    monkeypatch.setattr(latency_process, "_MODULE", "stub_worker")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda *names: [Variant(name, tmp_path / name) for name in names]


def read_log(tmp_path: Path) -> list[tuple[str, str, dict[str, int]]]:
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


def test_the_models_take_turns_forwards_and_backwards(variants, tmp_path):
    plan = Plan(threads=3, rounds=4, calls=5, batch_size=8)
    results = measure_each(variants("slow", "fast"), plan)
    log = read_log(tmp_path)
    timed = [name for name, _, request in log if request.get("calls") == 5]
    assert len(timed) == 8
    for at in range(0, 8, 2):
        assert set(timed[at : at + 2]) == {"slow", "fast"}
    # Each is first in every second round.
    assert [timed[at] for at in range(0, 8, 2)] == ["slow", "fast"] * 2
    assert {threads for _, threads, _ in log} == {"3"}
    slow, fast = results
    assert isinstance(slow, Latency)
    assert isinstance(fast, Latency)
    assert (slow.label, slow.threads, slow.batch_size) == ("slow", 3, 8)
    assert slow.median_ms == slow.p95_ms == pytest.approx(2.0)
    assert slow.rounds_ms == pytest.approx((2.0,) * 4)
    assert slow.images_per_s == pytest.approx(1000)  # 8 images in 8 ms
    assert slow.peak_memory_mb == 123.0
    assert compute_ratio(fast, slow) == pytest.approx(0.5)


def test_memory_is_read_before_the_large_batches(variants, tmp_path):
    measure_each(variants("fast"), Plan(threads=1, rounds=2, calls=1, batch_size=8))
    requests = [request for _, _, request in read_log(tmp_path)]
    at = requests.index({"memory": True})
    assert all(request["batch_size"] == 1 for request in requests[:at])
    assert {request["batch_size"] for request in requests[at + 1 :]} == {8}


def test_a_file_of_one_image_at_a_time_gets_no_batches(variants, tmp_path):
    (single,) = measure(variants("single"), Plan(threads=1, rounds=2, calls=2, batch_size=8))
    assert single.batch_size == 1
    assert single.images_per_s == pytest.approx(1000)
    assert {r["batch_size"] for _, _, r in read_log(tmp_path) if "memory" not in r} == {1}


def test_one_that_fails_does_not_stop_the_others(variants):
    names = ("dies", "refuses", "fast", "dies-later", "killed")
    dies, refuses, fast, later, killed = measure_each(
        variants(*names), Plan(threads=1, rounds=3, calls=1)
    )
    assert isinstance(fast, Latency)
    assert str(dies) == "dies: the process that ran it ended with exit code 7\n  the reason"
    assert isinstance(refuses, ExportError)
    assert (refuses.message, refuses.hint) == ("refuses: no such thing", "do this")
    assert "ended with exit code 1\n  late" in str(later)
    assert "ended by SIGKILL: too little memory?" in str(killed)


def test_a_worker_that_does_not_answer_is_given_up_and_ended(variants, monkeypatch):
    started = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    (variant,) = variants("hangs")
    worker = WorkerProcess("it", {"folder": str(variant.folder)}, 1)
    assert worker.read_answer(60) == {"dynamic_batch": True}
    turn = {"batch_size": 1, "untimed": 0, "calls": 1}
    assert worker.ask(turn, 60) == {"seconds": [0.001]}
    with pytest.raises(ExportError, match=r"it: no answer within 0\.2 s"):
        worker.ask(turn, 0.2)
    worker.stop()
    assert started[0].poll() is not None


def test_no_process_is_left(variants, monkeypatch):
    stopped = []
    stop = WorkerProcess.stop
    monkeypatch.setattr(WorkerProcess, "stop", lambda self: (stop(self), stopped.append(self)))

    class Interrupting(Reporter):
        def track(self, description):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_each(variants("fast", "slow"), Plan(threads=1), Interrupting())
    assert len(set(stopped)) == 2


def test_measure_raises_the_first_failure(variants):
    with pytest.raises(ExportError, match="dies: "):
        measure(variants("fast", "dies"), Plan(threads=1, rounds=1, calls=1, batch_size=1))


def test_nothing_is_measured_of_nothing():
    assert measure_each([], Plan()) == []


def test_untimed_calls_are_not_among_the_seconds():
    calls = []
    assert len(run_turn(lambda: calls.append(1), untimed=3, calls=2)) == 2
    assert len(calls) == 5


def latency(*rounds: float) -> Latency:
    return Latency("x", 1, 1.0, 1.0, rounds, 1.0, 1, None)


def test_the_ratio_pairs_rounds():
    # A machine that gets busy in the middle: medians over all calls would say otherwise.
    ours, reference = latency(1, 1, 1, 10, 10), latency(2, 2, 20, 20, 20)
    assert compute_ratio(ours, reference) == 0.5
    assert compute_ratio(reference, reference) == 1
    with pytest.raises(ValueError, match="longer"):
        compute_ratio(latency(1), latency(1, 2))


# --- real models


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """LeNet-5 as a model folder and in three formats."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = timm.create_model("lenet5", num_classes=3)
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing((3, 32, 32), half, half, "bilinear", 1.0)
    card = ModelCard("lenet5", {}, preprocessing, CLASSES, model.pretrained_cfg)
    save_bundle(root / "best", model.state_dict(), card, {})
    bundle = load_bundle(root / "best")
    for name in ("onnx", "openvino", "torchscript"):
        (root / name).mkdir()
        artifact = convert(bundle, FORMATS[name], root / name, embed=name == "openvino")
        write_record(root / name, artifact)
    return root


def test_torch_and_files_are_measured(folders):
    names = ("best", "onnx", "torchscript")
    results = measure(
        [Variant(name, folders / name) for name in names],
        Plan(threads=1, rounds=2, calls=2, batch_size=4),
    )
    assert [result.label for result in results] == list(names)
    for result in results:
        assert 0 < result.median_ms <= result.p95_ms
        assert len(result.rounds_ms) == 2
        assert result.images_per_s > 0
        assert result.batch_size == 4
    if sys.platform == "linux":
        torch_mb, onnx_mb, _ = (result.peak_memory_mb for result in results)
        assert 10 < onnx_mb < torch_mb / 2  # importing torch alone takes more


def test_a_file_that_cannot_be_opened_says_why(folders, tmp_path):
    shutil.copytree(folders / "onnx", tmp_path / "onnx")
    (tmp_path / "onnx/model.onnx").write_bytes(b"something else")
    (result,) = measure_each([Variant("it", tmp_path / "onnx")], Plan(threads=1))
    assert isinstance(result, ExportError)
    assert result.message.startswith(f"it: {tmp_path}/onnx/model.onnx: not the file that model.js")
    assert result.hint == "export the model again"


def test_the_worker_imports_torch_for_torch_alone(folders):
    code = """
import sys
from mnft.compare.process import WorkerProcess
from mnft.compare.worker import load, run_turn
for name in ("onnx", "openvino"):
    request = {"folder": f"{sys.argv[1]}/{name}", "exported": True, "compiled": False, "threads": 1}
    loaded = load(request)
    for batch_size in (1, 3):
        run_turn(loaded.prepare(batch_size), untimed=0, calls=1)
heavy = {"torch", "timm", "torchvision", "matplotlib", "sklearn", "pydantic"}
sys.exit(f"imported: {heavy & set(sys.modules)}" if heavy & set(sys.modules) else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
