"""What the tests share: tiny image folders, the real assets, and the command line in-process."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.images import COLOURS, MakeFolder, write_image
from typer.testing import CliRunner, Result

# Read when torch is loaded, here and in the processes that tests start. One thread each: the tests
# run in parallel, beside other work, and equal bits need equal numbers of threads; and a number
# that the environment gives is never changed by the load of the machine.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """One thread a test process: the tests run in parallel, and sums keep their order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A store of the tests' own, also for the processes that they start."""
    os.environ["MNFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


_draw = Figure.savefig


def _save_blank(_figure: Figure, target: Any, **_: Any) -> None:
    Image.new("RGB", (1, 1)).save(target, "PNG")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw plots only for tests that are marked `plots`.

    In a training of the tests the plot takes two thirds of the time. This is set before fixtures
    are, as some of them train.
    """
    marked = item.get_closest_marker("plots") is not None
    Figure.savefig = _draw if marked else _save_blank  # type: ignore[method-assign]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A function (name, splits, per_class) that makes an image folder of three plain classes.

    Without splits the class folders lie in the root.
    """

    def make(name: str = "images", *, splits: tuple[str, ...] = (), per_class: int = 8) -> Path:
        root = tmp_path / name
        for part, split in enumerate(splits or ("",)):
            for number, (label, colour) in enumerate(COLOURS.items()):
                for index in range(per_class):
                    seed = 10_000 * part + 1_000 * number + index
                    write_image(root / split / label / f"{index:03d}.png", colour, seed=seed)
        return root

    return make


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `mnft ...` in this process, in an empty folder of its own."""
    from mnft.cli.app import app

    monkeypatch.chdir(tmp_path)

    def run(*args: object, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def train(run_cli: Callable[..., Result], make_folder: MakeFolder, tmp_path: Path) -> Any:
    """On 24 training and 24 val images of three plain colours."""
    from support.training import Trainer

    return Trainer(run_cli, tmp_path, make_folder(splits=("train", "val")))


@pytest.fixture
def gpu_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A function that imports a script of benchmarks/gpu by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks" / "gpu")
    return importlib.import_module


@pytest.fixture
def assets() -> Path:
    """The folder of real images and weights; skips where there is none."""
    folder = os.environ.get("MNFT_ASSETS")
    if not folder:
        pytest.skip("MNFT_ASSETS does not name a folder of real images and weights")
    return Path(folder)


@pytest.fixture(scope="session")
def warm() -> Iterator[Any]:
    """The process that starts `mnft` processes without importing torch anew; see faults/warm.py."""
    from faults_support import Warm

    process = Warm()
    yield process
    process.close()


@pytest.fixture(scope="session")
def fault_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder that no fault test may change."""
    from faults_support import write_images

    return write_images(tmp_path_factory.mktemp("faults") / "images")


# Of tests/faults, what the default suite runs: one of each kind of fault, together under a minute.
QUICK_FAULTS = (
    "test_killed_anywhere_and_resumed_equals_uninterrupted[plain-3]",
    "test_a_signal_stops_within_seconds_and_loses_nothing[SIGTERM-143-epoch]",
    "test_files_may_not_grow[200000]",
    "test_the_log_cannot_be_written",
    "test_a_training_with_closed_output_ends_well",
    "test_the_run_folder_is_deleted",
    "test_an_image_that_changes[train-another picture]",
    "test_a_store_that_is_cut_off_in_use",
    "test_the_newest_states_are_damaged[1]",
    "test_the_best_model_is_damaged[a flipped bit]",
    "test_a_loading_process_is_killed",
    "test_memory_runs_out[12]",
    "test_two_runs_of_one_name_at_the_same_moment",
    "test_memory_runs_out_in_one",
    "test_a_signal_to_one[1]",
    "test_another_worker_resumes_the_trial_of_a_killed_one",
    "test_a_failure_of_both_is_said_once",
    "test_the_main_process_cannot_hear_of_it[signal]",
)


def pytest_collection_finish() -> None:
    """Take what is imported and collected by now out of all later garbage collections."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give it back: extensions complain at the end of what was never collected."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the other faults to `make test-all`."""
    for item in items:
        if item.path.parent.name == "faults" and item.name not in QUICK_FAULTS:
            item.add_marker("slow")
