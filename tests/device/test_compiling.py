"""torch.compile: whether it pays and works, and what is left where it fails."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import yaml
from support.images import MakeFolder
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from typer.testing import Result

from mnft.device import compiling
from mnft.device.compiling import Compiled, choose_compile
from mnft.device.ranks.distributed import Ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ONE = Ranks()
Wanted = bool | Literal["auto"]
compile_really = torch.compile


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """What torch has compiled in another test would be taken for what this one compiles."""
    torch.compiler.reset()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What mnft has said; torch's compiler writes a log of its own."""
    own = [record for record in caplog.records if record.name.startswith("mnft")]
    assert all(record.levelno == logging.WARNING for record in own)
    return [record.getMessage() for record in own]


# Whether to compile


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The programs of this machine, to be changed by a test; compiling itself works."""
    present = {"triton", "gcc", "g++"}
    (tmp_path / "Python.h").touch()

    def has(name: str) -> str | None:
        return name if name in present else None

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    replaced = {
        "sys": SimpleNamespace(platform="linux"),
        "shutil": SimpleNamespace(which=has),
        "importlib": SimpleNamespace(util=SimpleNamespace(find_spec=has)),
        "sysconfig": SimpleNamespace(
            get_default_scheme=lambda: "posix_local",
            get_paths=lambda scheme: {"include": tmp_path if scheme == "posix_prefix" else "/"},
        ),
        "_try_to_compile": lambda _: None,
    }
    for name, stand_in in replaced.items():
        monkeypatch.setattr(compiling, name, stand_in)
    return present


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("wanted", "device", "updates", "chosen", "reason"),
    [
        (False, CUDA, 10**6, False, "not asked for"),
        ("auto", CPU, 10**6, False, "training on cpu gains nothing from compiling"),
        ("auto", CUDA, 9_999, False, "9,999 updates are too few to pay for compiling"),
        ("auto", CUDA, 10_000, True, "10,000 updates pay for compiling"),
        (True, CUDA, 1, True, "asked for"),
        (True, CPU, 1, True, "asked for"),
    ],
)
def test_whether_to_compile(
    wanted: Wanted, device: torch.device, updates: int, chosen: bool, reason: str
) -> None:
    assert choose_compile(wanted, device, updates=updates, ranks=ONE) == (chosen, reason)


@pytest.mark.parametrize(
    ("wanted", "device", "missing", "problem"),
    [
        (True, CUDA, "g++", None),  # Triton needs none
        (True, CUDA, "gcc", "Triton finds no C compiler (gcc or clang)"),
        ("auto", CUDA, "gcc", "Triton finds no C compiler (gcc or clang)"),
        ("auto", CUDA, "Python.h", "python3-dev"),
        ("auto", CUDA, "triton", "triton is not installed"),
        (True, CPU, "g++", "no C++ compiler (g++) is installed"),
        (True, CPU, "gcc", None),
        (True, CPU, "Python.h", None),
        (True, CPU, "triton", None),
    ],
)
def test_a_missing_tool_is_named_in_a_warning(
    tools: set[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wanted: Wanted,
    device: torch.device,
    missing: str,
    problem: str | None,
) -> None:
    tools.discard(missing)
    (tmp_path / missing).unlink(missing_ok=True)
    chosen, why = choose_compile(wanted, device, updates=10**6, ranks=ONE)
    assert chosen == (problem is None)
    if problem is None:
        assert warnings_of(caplog) == []
    else:
        assert why.startswith("it cannot be compiled: ")
        assert problem in why
        [said] = warnings_of(caplog)
        assert said.startswith("training continues without torch.compile: ")
        assert problem in said


def test_compilers_that_the_environment_names(
    tools: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(device: torch.device) -> bool:
        return choose_compile(True, device, updates=1, ranks=ONE)[0]

    tools ^= {"gcc", "g++", "clang", "ccache"}
    assert works(CUDA)  # clang
    assert not works(CPU)
    monkeypatch.setenv("CXX", "ccache clang++ -w")
    monkeypatch.setenv("CC", "missing")
    assert works(CPU)
    assert not works(CUDA)


def test_one_process_that_cannot_compile_keeps_all_from_it(
    tools: set[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [None, "triton is not installed"]
    monkeypatch.setattr(compiling, "gather", lambda _ranks, own: answers)
    for rank in (1, 0):
        assert warnings_of(caplog) == []
        chosen, why = choose_compile(True, CUDA, updates=1, ranks=Ranks(rank, 2))
        assert (chosen, why) == (False, "it cannot be compiled: triton is not installed")
    assert len(warnings_of(caplog)) == 1


def test_a_compiler_that_fails_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """torch's real compiler, with a C++ compiler that is there and does nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_find_missing_tool", lambda _: None)
    with torch._inductor.config.patch("cpp.cxx", (None, "/bin/false")):
        chosen, why = choose_compile(True, CPU, updates=1, ranks=ONE)
    assert not chosen
    assert "No working C++ compiler" in why
    assert "No working C++ compiler" in warnings_of(caplog)[0]
    assert "\n" not in why


def test_what_can_be_compiled_is_found_out_by_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compile_by(monkeypatch, "aot_eager")
    assert compiling._try_to_compile(CPU) is None
    assert calls == [{"dynamic": False}]
    compile_by(monkeypatch, fails_backward())
    assert "no kernel for the backward pass" in str(compiling._try_to_compile(CPU))


# The way back


def compile_by(monkeypatch: pytest.MonkeyPatch, backend: Any) -> list[dict[str, Any]]:
    """Let torch.compile use another compiler; what it is called with."""
    calls = []

    def compile_so(model: Any, **options: Any) -> Any:
        calls.append(options)
        return compile_really(model, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_so)
    return calls


def fails(_graph: object, _inputs: object) -> Callable[..., Any]:
    raise ImportError("no such compiler\nand so on")


def fails_backward() -> Any:
    def give_up(_graph: object, _inputs: object) -> Any:
        raise ValueError("no kernel for the backward pass")

    return aot_autograd(fw_compiler=lambda graph, _inputs: graph, bw_compiler=give_up)


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())


def learn(model: nn.Module, forward: nn.Module, *sizes: int) -> list[Tensor]:
    """Outputs and gradients of batches of some sizes, and the statistics in the end."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for size in sizes:
        out = forward(torch.randn(size, 4, generator=generator))
        out.square().sum().backward()
        found += [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return [*found, *model.buffers()]


@pytest.mark.parametrize("backend", [fails, fails_backward()], ids=["forward", "backward"])
def test_what_cannot_be_compiled_is_trained_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, backend: Any
) -> None:
    compile_by(monkeypatch, backend)
    model = build_model()
    plain = copy.deepcopy(model)
    found = learn(model, Compiled(model), 8, 8, 5)
    for ours, expected in zip(found, learn(plain, plain, 8, 8, 5), strict=True):
        assert torch.equal(ours, expected)
    [said] = warnings_of(caplog)
    assert said.startswith("torch.compile failed, training continues without it: ")
    assert said.endswith((": no such compiler", ": no kernel for the backward pass"))


def test_other_processes_are_quiet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_by(monkeypatch, fails)
    model = build_model()
    learn(model, Compiled(model, quiet=True), 8)
    assert warnings_of(caplog) == []


def test_a_smaller_last_batch_does_not_make_the_others_dynamic(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batches: list[Any] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        batches.extend(i.shape[0] for i in inputs if isinstance(i, Tensor) and i.ndim == 2)
        assert all(isinstance(i, Tensor) for i in inputs)
        return graph

    compile_by(monkeypatch, look)
    model = build_model()
    plain = copy.deepcopy(model)
    sizes = [32, 32, 10, 32, 32, 10]
    found = learn(model, Compiled(model), *sizes)
    for ours, expected in zip(found, learn(plain, plain, *sizes), strict=True):
        torch.testing.assert_close(ours, expected)
    assert [int(size) for size in batches if size in sizes] == [32, 10]
    assert all(type(size) is int for size in batches)
    assert warnings_of(caplog) == []


class Moody(nn.Module):
    """Fails in a call of a given number."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__()
        self.calls, self.number, self.error = 0, number, error

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.number:
            raise self.error
        return images


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (1, torch.OutOfMemoryError("CUDA out of memory")),  # for the loop, which cuts the batch
        (2, RuntimeError("Connection closed by peer")),  # what has worked is not to blame
        (1, ValueError("expected more than 1 value per channel")),  # the model's own
    ],
)
def test_errors_that_compiling_has_not_made(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    error: Exception,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    forward = Compiled(Moody(number, error))
    for _ in range(number - 1):
        forward(torch.ones(2, 3))
    with pytest.raises(type(error), match=str(error)):
        forward(torch.ones(2, 3))
    assert warnings_of(caplog) == []
    assert torch.equal(forward(torch.ones(2, 3)), torch.ones(2, 3))


def test_a_run_whose_model_cannot_be_compiled_is_the_run_without(
    run_cli: Callable[..., Result],
    make_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """The tiny function can be compiled, the model's backward pass cannot."""
    compile_by(monkeypatch, fails_backward())
    monkeypatch.setattr(compiling, "_find_missing_tool", lambda _: None)
    monkeypatch.setattr(compiling, "_try_to_compile", lambda _: None)
    config = tmp_path / "c.yaml"
    values = {
        "data": {"root": str(make_folder()), "workers": 0},
        "model": {"name": "lenet5", "pretrained": False},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"},
    }
    config.write_text(yaml.safe_dump(values))
    losses = []
    for compiled in ("true", "false"):
        sets = ("--set", f"train.compile={compiled}", "--set", f"run.name=c-{compiled}")
        done = run_cli("train", config, *sets)
        assert done.exit_code == 0, done.stderr
        [said] = warnings_of(caplog)
        assert said.endswith("ValueError: no kernel for the backward pass")
        log = (tmp_path / "runs" / f"c-{compiled}" / "log.jsonl").read_text().splitlines()
        epochs = [entry for entry in map(json.loads, log) if entry["event"] == "epoch"]
        losses.append([entry["train_loss"] for entry in epochs])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
