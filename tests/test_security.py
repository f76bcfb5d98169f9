"""What a hostile data set, archive, weights file or config cannot do, and what mnft never does."""

from __future__ import annotations

import ast
import csv
import html.parser
import io
import json
import os
import pty
import re
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from support.images import MakeFolder, write_image
from typer.testing import Result

from mnft.data.fetch import archive
from mnft.errors import DataError
from mnft.model.bundle import ModelCard, save_bundle
from mnft.preprocessing import Preprocessing

Cli = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "mnft").rglob("*.py"))
# As class folders; a carriage return, an escape sequence, right-to-left, Markdown, a formula.
HOSTILE = ["<script>alert(1)<", "=cmd()", "\x1b[31mred\x07", "a|b `x` [y](z)", "@\rSUM\u202eA"]
LENET = ("model.name=lenet5", "model.pretrained=false", "train.epochs=1", "train.batch_size=8")
FORMULA = re.compile(r"^[=+\-@\t\r]")


def sets(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def settings(root: Path) -> list[str]:
    return sets(
        f"data.root={root}", "data.workers=0", *LENET, "train.device=cpu", "run.tensorboard=false"
    )


# Names that others chose


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Five classes and their files with names that mean something to a program."""
    root = tmp_path / "hostile"
    for number, name in enumerate(HOSTILE):
        colour = tuple((40 * number * part) % 256 for part in (1, 2, 3))
        for index in range(6):
            path = root / name / f"=1+{index}\x1b[2J<b>.png"
            write_image(path, colour, seed=100 * number + index)  # type: ignore[arg-type]
    return root


def assert_harmless_text(result: Result) -> None:
    """No control character reaches the terminal, whatever the names are."""
    for text in (result.stdout, result.stderr):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text), text


def assert_harmless_csv(text: str) -> None:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) > 1
    for cell in (cell for row in rows for cell in row):
        if not re.fullmatch(r"-?\d[\d.e+-]*", cell):
            assert not FORMULA.match(cell), cell
    assert len({len(row) for row in rows}) == 1


@pytest.mark.plots
def test_hostile_names_are_harmless_in_every_output(hostile: Path, run_cli: Cli) -> None:
    """Through check, train, eval, predict and compare: terminal, CSV, JSON and Markdown."""
    done = [run_cli("data", "check", hostile), run_cli("data", "check", hostile, "--json")]
    config = Path("x.yaml")
    config.write_text("data: {root: x}\n")
    done.append(run_cli("train", config, *settings(hostile)))
    best = "runs/x/best"
    done.append(run_cli("eval", "--ckpt", best))
    done.append(run_cli("predict", "--ckpt", best, hostile))
    done.append(run_cli("predict", "--ckpt", best, hostile, "--json"))
    shutil.copytree(best, "<script>|`m`")
    done.append(run_cli("compare", best, "<script>|`m`", "--split", "test", "-o", "out"))
    for number, result in enumerate(done):
        assert result.exit_code == 0, result.stderr
        if number not in {4, 5}:  # predict, see below: these are data for a pipe
            assert_harmless_text(result)
    for line in (*done[1].stdout.splitlines(), *done[5].stdout.splitlines()):
        json.loads(line)
    tables = [*Path("runs").rglob("*.csv"), *Path("out").rglob("*.csv")]
    assert len(tables) >= 4
    for table in tables:
        assert_harmless_csv(table.read_text(encoding="utf-8"))
    assert_harmless_csv(done[4].stdout)
    metrics = json.loads(next(Path("runs").rglob("metrics.json")).read_text())
    assert {row["name"] for row in metrics["per_class"]} == set(HOSTILE)
    page = next(Path("out").rglob("*.md")).read_text(encoding="utf-8")
    assert "script" in page
    assert_no_tags(page)


@pytest.mark.parametrize("form", [[], pytest.param(["--json"], marks=pytest.mark.slow)])
def test_predict_cleans_names_on_a_terminal_only(
    tmp_path: Path, run_cli: Cli, form: list[str]
) -> None:
    """A real terminal, from the pty module, and a pipe."""
    name = "\x1b[31mred\x07\u202e.png"
    write_image(tmp_path / name, (1, 2, 3), seed=0)
    grey = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing((3, 32, 32), grey, grey, "bilinear", 1.0)
    card = ModelCard("lenet5", {}, preprocessing, ("a", "b"), {})
    model = timm.create_model("lenet5", num_classes=2)
    save_bundle(tmp_path / "model", model.state_dict(), card, {})
    arguments = ["predict", "--ckpt", "model", name, *form]
    piped = run_cli(*arguments)
    assert piped.exit_code == 0, piped.stderr
    command = [sys.executable, "-m", "mnft", *arguments]
    main, terminal = pty.openpty()
    subprocess.run(command, cwd=tmp_path, stdout=terminal, stderr=subprocess.DEVNULL, check=True)
    os.close(terminal)
    shown = os.read(main, 10_000)
    os.close(main)
    assert b"red" in shown
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", shown.decode())
    assert "\u202e" in piped.stdout


def assert_no_tags(text: str) -> None:
    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            raise AssertionError(tag)

    Tags().feed(re.sub(r"\\<", "", text))


def test_hostile_names_in_errors(hostile: Path, run_cli: Cli) -> None:
    (hostile / HOSTILE[2] / "\x1b]0;title\x07.jpg").write_bytes(b"\x1b[31m")
    config = Path("x.yaml")
    config.write_text("data: {root: x}\n")
    for result in (
        run_cli("train", config, *settings(hostile)),
        run_cli("data", "check", hostile),
        run_cli("train", config, "--set", "optim.\x1b[31m=1"),
        run_cli("train", "\x1b[31m.yaml"),
        run_cli("eval", "--ckpt", "runs/\x1b[31m"),
    ):
        assert result.exit_code in {1, 2, 3}
        assert_harmless_text(result)


# Files that others made


def test_an_archive_that_unpacks_to_far_more_than_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_MAY_SHRINK_BYTES", 1000)
    for kind, name in (("bomb", "bomb.tgz"), ("plain", "plain.tar")):
        with tarfile.open(tmp_path / name, "w:gz" if kind == "bomb" else "w") as tar:
            member = tarfile.TarInfo("zeros")
            member.size = 5_000_000
            tar.addfile(member, io.BytesIO(bytes(5_000_000)))
    with pytest.raises(DataError, match="unpacks to more than"):
        archive.extract(tmp_path / "bomb.tgz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    archive.extract(tmp_path / "plain.tar", tmp_path / "out")
    assert (tmp_path / "out/zeros").stat().st_size == 5_000_000


class Payload:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("touched"),))


def test_a_payload_works_where_nothing_guards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the tests below can fail."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, "evil.pth")
    torch.load("evil.pth", weights_only=False)
    assert Path("touched").exists()


def test_no_code_runs_from_weights_states_or_stores(make_folder: MakeFolder, run_cli: Cli) -> None:
    root = make_folder(splits=("train", "val"))
    config = Path("x.yaml")
    config.write_text("data: {root: x}\n")
    torch.save({"weight": Payload()}, "evil.pth")
    weights = run_cli("train", config, *settings(root), *sets("model.pretrained=evil.pth"))
    assert weights.exit_code == 1, weights.stderr
    assert run_cli("train", config, *settings(root)).exit_code == 0
    for state in Path("runs/x").glob("resume*.pt"):
        state.write_bytes(Path("evil.pth").read_bytes())
    resumed = run_cli("train", "--resume", "runs/x", "--set", "train.epochs=2")
    assert resumed.exit_code == 1
    assert "damaged resume state" in resumed.stderr
    assert not Path("touched").exists()


# What mnft never does


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def test_no_unsafe_loader_is_called() -> None:
    """Not one of pickle's, joblib's, YAML's full loaders, eval, exec, or a shell."""
    forbidden = re.compile(
        r"^(pickle\.loads?|pickle\.Unpickler|joblib\.load|yaml\.(unsafe_|full_)?load(_all)?|eval|exec"
        r"|os\.system|os\.popen|marshal\.loads?|shelve\.open)$"
    )
    found = [f"{path}:{call.lineno}" for path, call, name in calls() if forbidden.match(name)]
    assert found == []
    for path, call, name in calls():
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"{path}:{call.lineno}"
        assert keywords.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
        assert keywords.get("shell", "False") == "False", f"{path}:{call.lineno}"
    assert "torch.load" in {name for _, _, name in calls()}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the network; every question fails."""
    asked: list[str] = []

    def refuse(*args: object, **_: object) -> object:
        asked.append(str(args[0]))
        raise OSError(101, "Network is unreachable")

    def guard(name: str) -> Callable[..., object]:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, *args: object) -> object:
            # Processes of one machine speak to each other through files.
            return original(self, *args) if self.family == socket.AF_UNIX else refuse(args[-1])

        return connect

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guard(name))
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return asked


def test_nothing_is_asked_of_the_network(
    make_folder: MakeFolder, run_cli: Cli, network: list[str]
) -> None:
    """Every command on local files; formats whose tool-chain is missing are refused locally."""
    root = make_folder(splits=("train", "val", "test"))
    config = Path("x.yaml")
    config.write_text("data: {root: x}\n")
    local = settings(root)
    for words in (
        ["init", root, "-o", "new.yaml"],
        ["data", "check", root],
        ["data", "fetch", "digits"],
        ["data", "fetch", "--list"],
        ["train", config, *local],
        ["train", "--resume", "runs/x", "--set", "train.epochs=2"],
        ["eval", "--ckpt", "runs/x"],
        ["predict", "--ckpt", "runs/x", root / "test"],
        ["models", "mobilenetv2*"],
        ["doctor"],
        ["bench", config, *local, "--batches", 1, "--rounds", 1],
        ["export", "--ckpt", "runs/x"],
        ["quantize", "--ckpt", "runs/x", "--set", "quantize.max_accuracy_drop=1.0"],
        ["compare", "runs/x"],
    ):
        result = run_cli(*words)
        assert result.exit_code == 0, (words, result.stderr)
        assert network == [], words


def test_the_network_test_would_see_a_question(run_cli: Cli, network: list[str]) -> None:
    assert run_cli("data", "fetch", "flowers102").exit_code == 1
    assert len(network) >= 1


def test_run_folders_have_the_usual_permissions(make_folder: MakeFolder, run_cli: Cli) -> None:
    """A colleague of the group reads them; nothing is executable or writable by all."""
    config = Path("x.yaml")
    config.write_text("data: {root: x}\n")
    root = make_folder(splits=("train", "val"))
    assert run_cli("train", config, *settings(root)).exit_code == 0
    entries = [Path("runs"), *Path("runs").rglob("*")]
    modes = {(entry.is_dir(), stat.S_IMODE(entry.stat().st_mode)) for entry in entries}
    assert modes == {(True, 0o755), (False, 0o644)}
    assert len(entries) > 10
