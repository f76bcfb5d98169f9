"""How many threads compute: the load of the machine, the choice, what a run records of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from support.training import Trainer, epochs_of

from mnft.console import TrainingDisplay
from mnft.device.cpu import load as load_module
from mnft.device.cpu import threads as module
from mnft.device.cpu.load import OtherWork
from mnft.device.cpu.threads import Threads, build_step, build_threads, time_threads
from mnft.device.machine import Machine as Where
from mnft.device.ranks.distributed import Ranks
from mnft.host import name_processor
from mnft.results import EpochResult
from mnft.signals import StopRequest

CPU = torch.device("cpu")
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


# The load of the machine


class Machine:
    """A made-up /proc of two cores for this process, and a clock."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc = folder
        self.seconds = 0.0
        self.own = 0.0
        (folder / "self" / "task" / "7").mkdir(parents=True)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(os, "sysconf", lambda _: 100)
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(load_module.os, "times", self._times)
        self.write()

    def _times(self) -> Any:
        return SimpleNamespace(user=self.own, system=0.0, children_user=0.0, children_system=0.0)

    def write(self, *cores: str, children: dict[int, int] | None = None) -> None:
        lines = ["cpu 9 9 9 9 9 9 9 9 0 0", *(f"cpu{i} {line}" for i, line in enumerate(cores))]
        (self.proc / "stat").write_text(
            "\n".join([*lines, "cpu7 9999 0 0 0 0 0 0 0 0 0", "ctxt 1"])
        )
        children = children or {}
        text = " ".join(map(str, children))
        (self.proc / "self" / "task" / "7" / "children").write_text(text)
        for pid, ticks in children.items():
            (self.proc / str(pid)).mkdir(exist_ok=True)
            fields = f"{pid} (a) name) S {' 0' * 10} {ticks} 0 0 0"
            (self.proc / str(pid) / "stat").write_text(fields)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


IDLE = "0 0 0 100 0 0 0 0 0 0"


def test_what_others_took_of_the_cores(machine: Machine) -> None:
    machine.write(IDLE, IDLE)
    work = OtherWork(machine.proc)
    machine.seconds, machine.own = 2.0, 1.5
    # User 2 s, nice 1, system 0.5, idle and iowait, interrupts 0.1, stolen by the host 0.4.
    machine.write("200 100 50 999 999 0 10 40 0 0", IDLE)
    assert work.measure() == pytest.approx((4.0 - 1.5) / 2)
    machine.seconds = 4.0
    assert work.measure() == 0.0  # since the last call


def test_processes_that_load_images_are_own_work(machine: Machine) -> None:
    machine.write(IDLE, IDLE, children={41: 100, 42: 50})
    work = OtherWork(machine.proc)
    machine.seconds = 1.0
    machine.write("150 0 0 0 0 0 0 0 0 0", IDLE, children={41: 180, 42: 90})
    assert work.measure() == pytest.approx(1.5 - 1.2)


def test_a_moment_tells_nothing_and_is_not_lost(machine: Machine) -> None:
    machine.write(IDLE, IDLE)
    work = OtherWork(machine.proc)
    machine.seconds = 0.2
    machine.write("20 0 0 0 0 0 0 0 0 0", IDLE)
    assert work.measure() is None
    machine.seconds = 0.4
    assert work.measure() == pytest.approx(0.5)


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert OtherWork(tmp_path).measure() is None  # no files
    (tmp_path / "stat").write_text("cpu0 what\n")
    assert OtherWork(tmp_path).measure() is None
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS
    assert OtherWork().measure() is None


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="reads /proc")
def test_own_work_does_not_count_as_that_of_others() -> None:
    work = OtherWork()
    own, began = time.process_time(), time.monotonic()
    while time.monotonic() - began < 0.5:
        pass
    share = (time.process_time() - own) / (time.monotonic() - began)
    others = work.measure()
    # Beside other tests the cores may all be busy, but never by more than what is left of them.
    assert others is not None
    assert others < len(os.sched_getaffinity(0)) - share + 0.25


# The choice


class Load:
    """What a test says that others do, and how fast each number of threads is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.others: float | None = 0.0
        self.seconds = {1: 1.0, 2: 1.0, 4: 1.0}
        self.tried: list[set[int]] = []
        self.now = 1000.0
        monkeypatch.setattr(OtherWork, "measure", lambda _: self.others)
        monkeypatch.setattr(module, "time_threads", self._time)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def _time(self, candidates: set[int], _step: object) -> dict[int, float]:
        self.tried.append(set(candidates))
        self.now += 0.5
        torch.set_num_threads(1)
        return {count: self.seconds.get(count, 9.0) for count in candidates}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    return Load(monkeypatch)


def test_a_quiet_machine_gives_all_cores_and_no_trial(load: Load) -> None:
    threads = Threads(4, follows=True)
    for load.others in (0.0, 0.19, None):
        assert threads.choose() == torch.get_num_threads() == 4
    assert load.tried == []


def test_the_fastest_number_is_taken_until_the_machine_is_quiet(load: Load) -> None:
    threads = Threads(4, follows=True)
    load.others, load.seconds = 1.2, {4: 2.0, 3: 1.0, 1: 3.0}
    assert threads.choose() == torch.get_num_threads() == 3
    assert load.tried == [{4, 3, 1}]
    load.others = None  # nothing is known: nothing changes
    assert threads.choose() == 3
    load.others = 0.1
    assert threads.choose() == torch.get_num_threads() == 4
    assert len(load.tried) == 1


@pytest.mark.parametrize(
    ("others", "candidates"),
    [(0.3, {8, 4, 1}), (1.0, {8, 7, 3, 1}), (5.0, {8, 3, 1}), (7.9, {8, 1}), (20.0, {8, 1})],
)
def test_which_numbers_are_tried(load: Load, others: float, candidates: set[int]) -> None:
    load.others = others
    Threads(8, follows=True).choose()
    assert load.tried == [candidates]


def test_other_work_that_does_not_disturb_changes_nothing(load: Load) -> None:
    threads = Threads(2, follows=True)
    load.others, load.seconds = 1.0, {2: 1.05, 1: 1.0}  # within what a trial can tell
    assert threads.choose() == torch.get_num_threads() == 2
    load.now, load.seconds = load.now + 100, {2: 2.0, 1: 1.0}
    assert threads.choose() == 1
    load.now, load.seconds = load.now + 100, {2: 1.0, 1: 1.05}
    assert threads.choose() == 1


def test_trials_take_a_small_share_of_short_epochs(load: Load) -> None:
    threads = Threads(2, follows=True)
    load.others, load.seconds = 1.0, {2: 2.0, 1: 1.0}
    for _ in range(60):  # epochs of a second
        assert threads.choose() == 1
        load.now += 1
    assert 5 <= len(load.tried) <= 7


def test_an_epoch_that_goes_on_keeps_its_number(load: Load) -> None:
    threads = Threads(4, follows=True)
    assert threads.choose(begun_with=2) == torch.get_num_threads() == 2
    assert threads.choose() == 4
    threads.choose(begun_with=1)
    threads.release()
    assert torch.get_num_threads() == 4


def test_a_number_that_was_chosen_stays(load: Load) -> None:
    threads = Threads(2, follows=False)
    load.others, load.seconds = 2.0, {2: 9.0, 1: 1.0}
    assert threads.choose() == threads.choose(begun_with=1) == 2
    assert not Threads(1, follows=True).follows
    assert load.tried == []


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("size", [224, 32])
def test_a_trial_is_short_and_leaves_no_trace(dtype: torch.dtype, size: int) -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=3, drop_rate=0.5).train()
    model = model.to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    step = build_step(model, (3, size, size), Where(CPU, train_dtype=dtype))
    step()
    seconds = time_threads({2, 1}, step)
    assert set(seconds) == {1, 2}
    # Beside other tests, and without the short spin of the command line, two may take very long.
    assert 0 < seconds[1] < 1
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_rate_that_was_seen_counts_more_than_a_trial(load: Load) -> None:
    threads = Threads(2, follows=True)
    load.others, load.seconds = 2.0, {2: 2.0, 1: 1.0}
    assert threads.choose() == 1
    threads.note_rate(380.0)
    load.now, load.seconds = load.now + 100, {2: 1.0, 1: 2.0}
    assert threads.choose() == 2
    threads.note_rate(90.0)
    load.now += 100
    assert threads.choose() == 1
    for _ in range(6):  # what was long ago does not count
        load.now += 100
        number = threads.choose()
    assert number == 2
    load.others = 0.0
    assert threads.choose() == 2
    threads.note_rate(500.0)  # of a quiet machine
    load.others, load.seconds, load.now = 2.0, {2: 2.0, 1: 1.0}, load.now + 100
    assert threads.choose() == 1


def test_a_trial_ends_soon_where_a_number_is_far_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    clock = 0.0

    def piece() -> None:
        nonlocal clock
        calls.append(torch.get_num_threads())
        clock += {1: 0.05, 2: 0.9, 4: 0.04}[calls[-1]]

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock)
    assert time_threads({2, 1}, piece) == pytest.approx({1: 0.05, 2: 0.9})
    assert calls == [1, 2]
    assert time_threads({4, 2, 1}, piece) == pytest.approx({1: 0.05, 2: 0.9, 4: 0.04})
    assert calls[2:] == [1, 2, 4, 1, 4]
    assert time_threads({4, 1}, piece) == pytest.approx({1: 0.05, 4: 0.04})


# Who chooses


def build(monkeypatch: pytest.MonkeyPatch, wanted: Any = "auto", **settings: Any) -> Threads:
    """As on a machine of eight cores; upper-case settings are environment variables."""
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in settings if name.isupper()]:
        monkeypatch.setenv(name, settings.pop(name))
    monkeypatch.setattr(module, "count_cores", lambda: 8)
    torch.set_num_threads(8)
    return build_threads(wanted, **{"device": CPU, "ranks": Ranks(), **settings})


@pytest.mark.parametrize(
    ("settings", "most", "follows"),
    [
        ({}, 8, True),
        ({"wanted": 3}, 3, False),
        ({"wanted": 3, "OMP_NUM_THREADS": "8"}, 3, False),
        ({"OMP_NUM_THREADS": "8"}, 8, False),
        ({"fixed": True}, 8, False),
        ({"device": torch.device("cuda")}, 8, False),
        # Several processes: their share of the machine, unless somebody chose.
        ({"ranks": Ranks(0, 2)}, 4, False),
        ({"ranks": Ranks(0, 16), "LOCAL_WORLD_SIZE": "4"}, 2, False),
        ({"ranks": Ranks(0, 16)}, 1, False),
        ({"ranks": Ranks(0, 2), "TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "1"}, 4, False),
        ({"ranks": Ranks(0, 2), "TORCHELASTIC_RUN_ID": "x"}, 4, False),
        ({"ranks": Ranks(0, 2), "OMP_NUM_THREADS": "8"}, 8, False),
        ({"ranks": Ranks(0, 2), "wanted": 2}, 2, False),
    ],
)
def test_who_chooses(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], most: int, follows: bool
) -> None:
    threads = build(monkeypatch, **settings)
    assert (threads.most, threads.follows, torch.get_num_threads()) == (most, follows, most)


# What a run records


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, load: Load) -> Load:
    """A machine of two cores whose load the test says; nobody chose a number."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    load.others, load.seconds = 1.0, {2: 2.0, 1: 1.0}
    return load


def threads_of(run: Path) -> list[tuple[int, int]]:
    return [(epoch["threads"], epoch["max_threads"]) for epoch in epochs_of(run)]


def test_each_epoch_records_its_threads(train: Trainer, shared: Load) -> None:
    assert train(name="busy").exit_code == 0
    assert threads_of(train.run("busy")) == [(1, 2), (1, 2)]
    assert torch.get_num_threads() == 2  # what follows has all of them again
    shared.others = 0.0
    assert train(name="quiet").exit_code == 0
    assert threads_of(train.run("quiet")) == [(2, 2), (2, 2)]
    for sets in ("train.threads=2", "train.deterministic=true"):
        shared.others = 1.0
        assert train(sets, name=sets).exit_code == 0
        assert threads_of(train.run(sets)) == [(2, 2), (2, 2)]
        torch.use_deterministic_algorithms(False)


def test_the_rest_of_an_epoch_keeps_its_threads(
    train: Trainer,
    shared: Load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "pending", property(lambda _: next(asked)))
        patch.setattr(StopRequest, "raise_if_pending", interrupt)
        assert train(name="cut").exit_code == 130
    run = train.run("cut")
    content = torch.load(run / "resume.pt", weights_only=True)
    assert content["threads"] == 1
    assert content["partial"]["updates"] == 2
    shared.others = 0.0  # the other work is over
    torch.set_num_threads(2)
    assert train.resume("cut").exit_code == 0
    assert threads_of(run) == [(1, 2), (2, 2)]


def interrupt(_: StopRequest) -> None:
    raise KeyboardInterrupt


def test_a_state_of_a_version_that_knew_no_threads(train: Trainer) -> None:
    assert train(name="old").exit_code == 0
    path = train.run("old") / "resume.pt"
    content = torch.load(path, weights_only=True)
    del content["threads"]
    for result in [*content["history"], content["best"]]:
        del result["threads"], result["max_threads"]
    torch.save(content, path)
    assert train.resume("old", "train.epochs=3", "train.threads=1").exit_code == 0
    assert threads_of(train.run("old"))[2:] == [(1, 1)]


def test_the_epochs_line_names_fewer_threads_only(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": 1.0,
        "val_accuracy": 0.5,
        "val_macro_f1": 0.5,
    }
    for threads, most, words in ((1, 2, "1 of 2 threads"), (2, 2, ""), (0, 0, "")):
        result = EpochResult(1, 2, figures, 0.1, 9.0, 1.0, True, threads=threads, max_threads=most)
        with TrainingDisplay() as display:
            display.on_epoch(result)
        line = capsys.readouterr().err
        assert ("threads" in line) == bool(words)
        assert words in line


# The processor


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "cpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon: A\n\nmodel name: B\n",
            "Xeon: A (family 6, model 143)",
        ),
        ("model name\t: POWER9\n", "POWER9"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "implementer 0x41, part 0xd40"),
    ],
)
def test_the_name_of_the_processor(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert name_processor(tmp_path / "cpuinfo").endswith(name)


def test_a_system_without_cpuinfo_still_has_a_name(tmp_path: Path) -> None:
    assert name_processor(tmp_path / "none")
