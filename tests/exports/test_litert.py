"""LiteRT: its environment, the worker's requests, and (slow, where it is set up) conversions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mnft.config.schema import ModelConfig
from mnft.errors import ConfigError, ExportError
from mnft.exports.litert import convert as convert_litert
from mnft.exports.litert import environment as litert_environment
from mnft.exports.litert import worker as litert_worker
from mnft.exports.litert.convert import convert_to_litert
from mnft.exports.litert.environment import TOOLCHAIN, describe, find_folder, find_python, install
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.factory import build_model

NAMES = ("daisy", "rose", "tulip")
# Of the machine, before the tests' own cache takes its place.
REAL_CACHE = os.environ.get("MNFT_CACHE")
VERSIONS = {"litert-torch": "0.10.0", "torch": "2.14.1"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MNFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_environment(**changes):
    """A folder that looks like a whole environment; its Python is this one."""
    folder = find_folder()
    python = litert_environment._python_of(folder)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    marker = {"toolchain": TOOLCHAIN, "requirements": [], "versions": VERSIONS} | changes
    (folder / "complete.json").write_text(json.dumps(marker))
    return folder


def save_model(folder, architecture="lenet5", img_size=32, **args):
    torch.manual_seed(0)
    built = build_model(
        ModelConfig(name=architecture, pretrained=False, **args), num_classes=3, img_size=img_size
    )
    card = ModelCard(
        built.architecture, built.model_args, built.preprocessing, NAMES, built.pretrained_cfg
    )
    save_bundle(folder, built.model.state_dict(), card, {})
    return folder


# --- the environment


def test_without_an_environment_the_command_is_named(cache, tmp_path):
    works, words = describe()
    assert not works
    assert "not set up yet: mnft doctor --install tflite" in words
    with pytest.raises(ExportError, match="not set up yet") as error:
        convert_to_litert(tmp_path, tmp_path / "model.tflite", embed_preprocessing=False)
    assert "mnft doctor --install tflite" in error.value.hint
    assert not (tmp_path / "model.tflite").exists()


def test_a_whole_environment_is_found(cache):
    folder = fake_environment()
    assert find_python() == folder / "bin" / "python"
    assert describe() == (True, "litert-torch 0.10.0, torch 2.14.1")
    assert folder.is_relative_to(cache)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "complete.json").unlink(), "half-made"),
        (lambda folder: (folder / "complete.json").write_text("{"), "half-made"),
        (lambda folder: (folder / "complete.json").write_text("[]"), "half-made"),
        (lambda folder: (folder / "bin" / "python").unlink(), "python is missing"),
    ],
)
def test_what_is_not_whole_is_not_used(cache, spoil, words):
    spoil(fake_environment())
    with pytest.raises(ExportError, match=words):
        find_python()
    assert not describe()[0]


def test_an_environment_with_other_versions_is_not_used(cache):
    fake_environment(toolchain=["litert-torch==0.9.*"])
    with pytest.raises(ExportError, match="of another version of mnft"):
        find_python()


@pytest.fixture
def commands(cache, monkeypatch):
    """Records the commands of an installation, and does what they would leave."""
    seen = []

    def run(step, name, command):
        seen.append((name, command))
        folder = find_folder()
        if name == "venv":
            assert not folder.exists()  # what a half-made one left is gone
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").symlink_to(sys.executable)
        elif name != "pip":
            assert not (folder / "complete.json").exists()
            Path(command[-1]).write_text(json.dumps(VERSIONS))

    monkeypatch.setattr(litert_environment._Step, "run", run)
    monkeypatch.setattr(litert_environment, "_NEEDED_BYTES", 0)
    return seen


def test_installing_makes_tries_and_then_marks_it(commands):
    said = []
    folder = install(on_progress=said.append)
    assert [name for name, _ in commands] == ["venv", "pip", "importing LiteRT"]
    assert describe()[0]
    pip = commands[1][1][5:]
    assert {*TOOLCHAIN} < {*pip}
    assert any(word.startswith("timm") for word in pip)
    assert not any("pytest" in word or "://" in word or word.startswith("mnft") for word in pip)
    install(on_progress=said.append)
    assert len(commands) == 3
    assert said[-1] == f"{folder} is there already"


def test_a_half_made_environment_is_made_again(commands):
    folder = fake_environment()
    (folder / "complete.json").unlink()
    (folder / "left_over").touch()
    install(on_progress=lambda _: None)
    assert describe()[0]
    assert not (folder / "left_over").exists()


def test_an_environment_without_a_new_requirement_is_made_again(commands):
    fake_environment(requirements=["torch"])
    install(on_progress=lambda _: None)
    assert len(commands) == 3


def test_a_failing_command_shows_the_end_of_its_output(cache, monkeypatch):
    monkeypatch.setattr(litert_environment, "_NEEDED_BYTES", 0)
    script = (
        "import sys; print('WARNING: x'); print('ERROR: No matching distribution'); sys.exit(3)"
    )
    monkeypatch.setattr(litert_environment, "_own_requirements", list)
    real = litert_environment._Step.run

    def run(step, name, command):
        real(step, name, [sys.executable, "-c", script])

    monkeypatch.setattr(litert_environment._Step, "run", run)
    with pytest.raises(ExportError) as error:
        install(on_progress=lambda _: None)
    assert "venv failed with exit code 3\nERROR: No matching distribution" in error.value.message
    log = find_folder().with_suffix(".setup.log")
    assert str(log) in error.value.hint
    assert "WARNING: x" in log.read_text()
    assert not find_folder().exists()


def test_what_cannot_be_imported_is_not_marked(cache, monkeypatch):
    """A real venv, in which pip installs nothing: LiteRT is missing at the end."""
    monkeypatch.setattr(litert_environment, "_NEEDED_BYTES", 0)
    real = litert_environment._Step.run

    def run(step, name, command):
        if name == "venv":
            command = [*command, "--without-pip"]
        if name != "pip":
            real(step, name, command)

    monkeypatch.setattr(litert_environment._Step, "run", run)
    with pytest.raises(ExportError, match="importing LiteRT failed with exit code 1") as error:
        install(on_progress=lambda _: None)
    assert "ModuleNotFoundError" in error.value.message
    assert not find_folder().exists()


def test_a_full_disk_is_told_before_the_work(cache, monkeypatch):
    monkeypatch.setattr(litert_environment, "_NEEDED_BYTES", 1 << 62)
    with pytest.raises(ExportError, match="GB are free") as error:
        install(on_progress=lambda _: None)
    assert "MNFT_CACHE" in error.value.hint


def test_progress_shows_large_downloads_only(cache, tmp_path):
    lines = [
        "Downloading torch-2.14.1-cp311.whl (539.1 MB)",
        "Downloading six-1.0.whl (11 kB)",
        "Looking in indexes: https://someone@registry.example/simple",
        "Installing collected packages: a, b, c",
    ]
    said = []
    with (tmp_path / "log").open("w") as log:
        step = litert_environment._Step(log, tmp_path / "log", said.append)
        step.run("x", [sys.executable, "-c", f"print({chr(10).join(lines)!r})"])
    assert said == [lines[0], "Installing collected packages"]


def test_two_installations_do_not_run_at_once(commands, monkeypatch):
    said = []

    class Taken(litert_environment.FileLock):
        def acquire(self, timeout=None, **kwargs):
            if timeout == 0:
                fake_environment(requirements=[*TOOLCHAIN, *litert_environment._own_requirements()])
                raise litert_environment.Timeout(self.lock_file)
            return super().acquire(**kwargs)

    monkeypatch.setattr(litert_environment, "FileLock", Taken)
    install(on_progress=said.append)
    assert "waiting" in said[0]
    assert commands == []  # the other one did it


def test_doctor_installs(commands, run_cli, monkeypatch, capsys):
    from mnft.commands import doctor

    doctor.install("tflite")
    assert capsys.readouterr().out.strip() == str(find_folder())
    with pytest.raises(ConfigError, match="found 'onnx', expected tflite"):
        doctor.install("onnx")


# --- the worker


def request(tmp_path, **values):
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    whole = {
        "model_folder": str(tmp_path / "model"),
        "target": str(folder / "model.tflite"),
        "answer": str(folder / "answer.json"),
    } | values
    (folder / "request.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": 1}, "wrong keys: colour"),
    ],
)
def test_a_wrong_request_is_answered_in_words(tmp_path, values, words):
    folder = request(tmp_path, **values)
    assert litert_worker.main(str(folder / "request.json")) == 1
    assert words in json.loads((folder / "answer.json").read_text())["error"]


def test_the_worker_imports_little_of_mnft():
    """The rest need not work with the older torch of its environment."""
    code = "import sys; from mnft.exports.litert import worker; "
    code += "worker.load_activation('classify'); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    packages = {name.split(".")[1] for name in modules if name.startswith("mnft.")}
    single = {"errors", "failures", "files", "host", "preprocessing", "reporter", "text"}
    assert packages - single == {"exports", "model", "tasks"}
    tasks = {name for name in modules if name.startswith("mnft.tasks.")}
    light = {"activation", "classify", "classify.activation", "folding"}
    light |= {"classify.decision", "classify.decision.record"}
    assert tasks == {f"mnft.tasks.{name}" for name in light}


def test_a_request_without_a_model_is_wrong():
    with pytest.raises(ExportError, match="wrong keys: answer, target"):
        litert_worker.read_request({"model_folder": "x"})


def test_a_named_model_answers_as_the_network():
    network = torch.nn.Linear(4, 3)
    named = litert_worker.NamedModel(network, "logits")
    x = torch.randn(1, 4)
    assert torch.equal(named(image=x)["logits"], network(x))
    assert not hasattr(named, "graph")  # torch.export of 2.14 fails on an attribute of that name


# --- the process around the worker, with this Python in place of the environment's


def bootstrap(monkeypatch, script):
    monkeypatch.setattr(convert_litert, "_BOOTSTRAP", script)


def test_a_failing_worker_shows_the_end_of_its_log(cache, tmp_path, monkeypatch):
    fake_environment()
    bootstrap(monkeypatch, "for i in range(99): print('line', i)\nraise ValueError('no such op')")
    target = tmp_path / "model.tflite"
    target.write_text("older")
    with pytest.raises(ExportError, match="exit code 1") as error:
        convert_to_litert(tmp_path, target, embed_preprocessing=False)
    assert "ValueError: no such op" in error.value.message
    assert "line 98" in error.value.message
    assert "line 5\n" not in error.value.message
    assert target.read_text() == "older"
    assert not list(tmp_path.glob(".model*"))


def test_a_killed_worker_is_named(cache, tmp_path, monkeypatch):
    fake_environment()
    bootstrap(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ExportError, match="killed by signal 9") as error:
        convert_to_litert(tmp_path, tmp_path / "model.tflite", embed_preprocessing=False)
    assert "(it said nothing)" in error.value.message


def test_a_worker_that_ends_well_without_an_answer_failed(cache, tmp_path, monkeypatch):
    fake_environment()
    bootstrap(monkeypatch, "pass")
    with pytest.raises(ExportError, match="exit code 0"):
        convert_to_litert(tmp_path, tmp_path / "model.tflite", embed_preprocessing=False)
    assert not (tmp_path / "model.tflite").exists()


def test_the_worker_gets_the_request_and_its_answer_comes_back(cache, tmp_path, monkeypatch):
    fake_environment()
    script = (
        "import json, sys\n"
        "r = json.load(open(sys.argv[2]))\n"
        "open(r['target'], 'w').write('tflite')\n"
        "json.dump(r | {'mnft': sys.argv[1]}, open(r['answer'], 'w'))\n"
    )
    bootstrap(monkeypatch, script)
    target = tmp_path / "out" / "model.tflite"
    facts = convert_to_litert(Path("model"), target, embed_preprocessing=True)
    assert target.read_text() == "tflite"
    assert Path(facts["model_folder"]).is_absolute()
    assert Path(facts["mnft"], "exports", "litert", "worker.py").is_file()
    litert_worker.read_request({key: value for key, value in facts.items() if key != "mnft"})


def test_the_worker_is_that_of_this_mnft_alone(cache, tmp_path, monkeypatch):
    """Neighbours of an installed mnft, a newer torch among them, must not be found."""
    fake_environment()
    site = tmp_path / "site-packages"
    package = site / "mnft" / "exports" / "litert"
    package.mkdir(parents=True)
    (site / "torch.py").write_text("raise SystemExit('not this one')")
    (site / "mnft" / "__init__.py").write_text("VALUE = 5")
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    (package / "worker.py").write_text(
        "import importlib.util, json, sys\n"
        "from mnft import VALUE\n"
        "assert __name__ == '__main__'\n"
        "answer = json.load(open(sys.argv[1]))['answer']\n"
        "found = importlib.util.find_spec('torch')\n"
        "json.dump({'value': VALUE, 'torch': found and found.origin}, open(answer, 'w'))\n"
    )
    monkeypatch.setattr(convert_litert.mnft, "__file__", str(site / "mnft" / "__init__.py"))
    monkeypatch.setenv("PYTHONPATH", str(site))
    facts = convert_to_litert(tmp_path, tmp_path / "m.tflite", embed_preprocessing=False)
    assert facts["value"] == 5
    assert not (facts["torch"] or "").startswith(str(site))


# --- the real thing


@pytest.fixture
def real_environment(monkeypatch):
    """LiteRT's environment in the machine's own cache; skips where it is not set up."""
    if REAL_CACHE:
        monkeypatch.setenv("MNFT_CACHE", REAL_CACHE)
    else:
        monkeypatch.delenv("MNFT_CACHE")
    works, words = describe()
    if not works:
        pytest.skip(f"LiteRT: {words}")


def run_file(path, images):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    outputs = [next(iter(runner(image=image[None]).values())).copy() for image in images]
    return np.concatenate(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["lenet5", "mobilenetv2_035", "mobilenetv3_small_050"])
def test_a_file_answers_as_the_model(real_environment, tmp_path, architecture):
    folder = save_model(tmp_path / "model", architecture)
    bundle = load_bundle(folder)
    target = tmp_path / "model.tflite"
    facts = convert_to_litert(folder, target, embed_preprocessing=False)
    assert facts["input"] == {"shape": [1, 32, 32, 3], "dtype": "float32"}
    assert facts["signature"] == {"inputs": ["image"], "outputs": ["logits"]}
    images = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        expected = bundle.model(images).numpy()
    found = run_file(target, images.permute(0, 2, 3, 1).contiguous().numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_pixels_go_in_and_probabilities_come_out(real_environment, tmp_path):
    folder = save_model(tmp_path / "model", img_size=28)
    bundle = load_bundle(folder)
    target = tmp_path / "model.tflite"
    facts = convert_to_litert(folder, target, embed_preprocessing=True)
    assert facts["input"] == {"shape": [1, 28, 28, 3], "dtype": "uint8"}
    pixels = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
    shape = (-1, 1, 1)
    mean, std = (
        torch.tensor(values).view(shape)
        for values in (bundle.preprocessing.mean, bundle.preprocessing.std)
    )
    normal = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        expected = bundle.model(normal).softmax(1).numpy()
    np.testing.assert_allclose(run_file(target, pixels), expected, atol=1e-5)


@pytest.mark.slow
def test_errors_of_the_true_worker_come_back(real_environment, tmp_path):
    with pytest.raises(ExportError, match="not a model folder"):
        convert_to_litert(tmp_path, tmp_path / "m.tflite", embed_preprocessing=False)
