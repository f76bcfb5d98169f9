"""The command line itself: start-up, help, completion, JSON on stdout, exit codes, bugs."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import mnft
from mnft.cli.app import app
from mnft.cli.starting import starting
from mnft.errors import GateError, Interrupted, MnftError

RunCli = Callable[..., Result]
HEAVY = ("torch", "torchvision", "timm", "numpy", "sklearn", "PIL", "matplotlib")
VERBS = [
    *("init", "train", "eval", "predict", "models", "doctor"),
    *("data fetch", "data check"),
]


def commands() -> list[str]:
    """All verbs, as Typer knows them."""
    groups = [
        ("", app),
        # A group without a name adds its verbs to the others.
        *(
            (f"{group.name} " if isinstance(group.name, str) else "", group.typer_instance)
            for group in app.registered_groups
        ),
    ]
    return [
        prefix + (command.name or command.callback.__name__.replace("_", "-"))
        for prefix, group in groups
        for command in group.registered_commands
    ]


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )


# --- start-up and help


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(argv):
    code = (
        f"import sys; sys.argv = ['mnft', *{argv!r}]\n"
        "from mnft.cli.app import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = python(code)
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "HEAVY []"


SLOW = ("torch", "torchvision", "timm", "sklearn", "matplotlib")  # to import
CONFIG = "data: {root: images}\nmodel: {name: lenet5, pretrained: false}\n"
EARLY_ERRORS = [  # what is typed, exit code, what is said
    ("train", 2, "neither a config nor --resume"),
    ("train a.yaml --resume runs/x", 2, "both a config and --resume"),
    ("train --resume auto", 2, "--resume auto needs a config"),
    ("train --resume nothing", 1, "nothing does not exist"),
    ("train --resume runs/x --set optim.lrr=1", 2, "did you mean optim.lr?"),
    ("train nothing.yaml", 2, "no such config file"),
    ("train bad.yaml", 2, "not valid YAML"),
    ("train a.yaml --set optim.lrr=1", 2, "did you mean optim.lr?"),
    ("train a.yaml --set data.root=nothing", 1, "nothing: no such folder"),
    ("train a.yaml --find-lr --set optim.lr=x", 2, "expected a number"),
    ("distill a.yaml", 2, "found no teacher"),
    ("bench nothing.yaml", 2, "no such config file"),
    ("init nothing", 1, "nothing: no such folder"),
    ("data check nothing", 1, "nothing: no such folder"),
    ("data check nothing.yaml", 2, "no such config file"),
    ("data check images --ckpt nothing", 1, "nothing does not exist"),
    ("data fetch nothing", 2, "unknown data set"),
    ("eval --ckpt nothing", 1, "nothing does not exist"),
    ("eval --ckpt runs/x --split tests", 2, "did you mean test?"),
    ("eval --ckpt runs/x --data nothing", 1, "nothing: no such folder"),
    ("predict --ckpt nothing a.png", 1, "nothing does not exist"),
    ("export --ckpt nothing", 1, "nothing does not exist"),
    ("export --ckpt runs/x --format onyx", 2, "expected one of onnx"),
    ("quantize --ckpt runs/x --set quantize.image=1", 2, "did you mean quantize.images?"),
    ("prune --ckpt nothing", 1, "nothing does not exist"),
    ("compare runs/x nothing", 1, "nothing does not exist"),
    ("doctor --install nothing", 2, "expected tflite"),
]


def test_errors_of_the_command_line_do_not_wait_for_torch(tmp_path):
    """All in one process: a single one that imports torch fails the test, and is named."""
    (tmp_path / "images").mkdir()
    (tmp_path / "a.yaml").write_text(CONFIG)
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/config.yaml").write_text(CONFIG)
    (tmp_path / "runs/x/split.json").write_text("{}")
    code = f"""
import json, os, sys
from typer.testing import CliRunner
from mnft.cli.app import app
os.chdir({str(tmp_path)!r})
for argv, code, says in {EARLY_ERRORS!r}:
    result = CliRunner().invoke(app, argv.split())
    heavy = [name for name in {SLOW!r} if name in sys.modules]
    print(json.dumps([argv, result.exit_code, says in result.stderr or result.stderr, heavy]))
"""
    result = python(code)
    assert result.stderr == ""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found == [[argv, code, True, []] for argv, code, _ in EARLY_ERRORS]


def test_only_the_main_process_of_several_says_what_is_wrong(run_cli: RunCli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = run_cli("train", "nothing.yaml")
    assert (result.exit_code, result.output) == (2, "")
    monkeypatch.setenv("RANK", "0")
    assert "no such config file" in run_cli("train", "nothing.yaml").stderr


def test_a_config_that_can_be_read_once_is_left_to_the_training(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with starting(config=tmp_path / "pipe"):
        pass  # where it was opened, this would wait for a writer for ever


LIGHT_COMMANDS = {"mnft.commands.fetch", "mnft.commands.doctor"}


@pytest.mark.parametrize("name", ["app", "data", "edge"])
def test_a_spinner_is_shown_while_a_command_is_imported(name):
    tree = ast.parse((Path(mnft.__file__).parent / "cli" / f"{name}.py").read_text())
    waited, imported = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and "starting" in ast.unparse(node.items[0]):
            waited |= {ast.unparse(statement) for statement in node.body}
        if isinstance(node, ast.ImportFrom) and node.module == "mnft.commands":
            imported.add(ast.unparse(node))
    light = {f"from mnft.commands import {name[14:]} as command" for name in LIGHT_COMMANDS}
    assert imported
    assert imported - light == waited


def test_the_check_for_heavy_imports_can_fail():
    code = f"import sys, numpy; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code).stdout == "['numpy']\n"


def test_the_verbs_are_those_that_are_tested():
    assert set(VERBS) <= set(commands())


@pytest.mark.parametrize("verb", commands())
def test_every_command_has_help_with_an_example(run_cli: RunCli, verb: str):
    result = run_cli(*verb.split(), "--help")
    text = re.sub(r"[\s\u2500-\u257f]+", " ", result.stdout)
    assert result.exit_code == 0
    assert f"Usage: mnft {verb} " in text or f"Usage: root {verb} " in text
    assert re.search(rf"Examples?: (find .* )?mnft {verb}\b", text), text


def test_help_names_all_commands(run_cli: RunCli):
    text = run_cli("--help").stdout + run_cli("data", "--help").stdout
    for verb in commands():
        assert f" {verb.split()[-1]} " in text


def test_no_arguments_show_the_help(run_cli: RunCli):
    result = run_cli()
    assert result.exit_code == 2
    assert "Usage:" in result.output


def test_version(run_cli: RunCli):
    result = run_cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"mnft {mnft.__version__}\n")


def test_the_module_runs_as_the_command_does():
    result = subprocess.run(
        [sys.executable, "-m", "mnft", "--version"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, f"mnft {mnft.__version__}\n")


def test_completion_for_bash():
    code = "import sys; sys.argv = ['mnft']; from mnft.cli.app import main; main()"
    script = python(code, _MNFT_COMPLETE="source_bash").stdout
    assert "complete -o default -F _mnft_completion mnft" in script
    words = {"_MNFT_COMPLETE": "complete_bash", "COMP_WORDS": "mnft tr", "COMP_CWORD": "1"}
    assert python(code, **words).stdout.split() == ["train"]


# --- wrong usage


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["tran"], "No such command 'tran'. Did you mean 'train'?"),
        (["data", "fech"], "No such command 'fech'. Did you mean 'fetch'?"),
        (["train", "--resum", "x"], "No such option: --resum (Possible options: --resume)"),
        (["doctor", "--jsno"], "No such option: --jsno"),
        (["doctor", "extra"], "extra"),
    ],
)
def test_unknown_words_end_in_2(run_cli: RunCli, argv, says):
    result = run_cli(*argv)
    assert result.exit_code == 2
    assert says in re.sub(r"[\s\u2500-\u257f]+", " ", result.stderr)
    assert result.stdout == ""


# --- stdout is data


@pytest.mark.parametrize(
    ("argv", "keys"),
    [
        (["doctor", "--json"], {"mnft", "torch", "device", "problems"}),
        (["models", "mobilenetv1_0*", "--json"], {"models"}),
        (["data", "fetch", "--list", "--json"], {"datasets"}),
    ],
)
def test_json_is_one_object_and_all_of_stdout(run_cli: RunCli, argv, keys):
    result = run_cli(*argv)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert set(json.loads(result.stdout)) >= keys


def test_json_and_table_hold_the_same_models(run_cli: RunCli):
    entries = json.loads(run_cli("models", "mobilenetv1_0*", "--json").stdout)["models"]
    table = run_cli("models", "mobilenetv1_0*").stdout.splitlines()
    assert [entry["name"] for entry in entries] == [line.split()[0] for line in table[1:]]
    assert len(entries) == 3


def test_data_goes_to_stdout_and_words_to_stderr(run_cli: RunCli, make_folder, tmp_path):
    make_folder("photos")
    result = run_cli("init", "photos", "-o", "my.yaml")
    assert result.stdout == "my.yaml\n"
    assert "24 images of 3 classes" in result.stderr
    assert run_cli("init", "photos", "-o", "my.yaml").exit_code == 2
    assert run_cli("init", "photos", "-o", "my.yaml", "--force").exit_code == 0


# --- escapes


@pytest.mark.parametrize("name", ["\x1b[31mred\x1b[0m", "a\x9bb", "a\rb"])
def test_escapes_in_names_do_not_come_out(run_cli: RunCli, make_folder, tmp_path, name):
    (make_folder("photos") / "red").rename(tmp_path / "photos" / name)
    argvs = (["init", "photos"], ["data", "check", "photos"], ["data", "check", name], [name])
    outputs = [run_cli(*argv).output for argv in argvs]
    assert [("\N{REPLACEMENT CHARACTER}" in output) for output in outputs[1:3]] == [True, True]
    assert not set("\x1b\x9b\r") & set("".join(outputs))
    written = (tmp_path / "photos.yaml").read_text(encoding="utf-8")
    assert not set("\x1b\x9b\r") & set(written)


def test_a_config_for_a_strange_folder_names_it_exactly(run_cli: RunCli, make_folder):
    from pathlib import Path

    from mnft.config.load import load_config

    for name in ("1e3", "photos...", "a: b # c", "- x", "żółte kwiaty"):
        make_folder(name, per_class=1)
        assert run_cli("init", f"./{name}", "-o", "x.yaml", "--force").exit_code == 0
        assert load_config(Path("x.yaml"))[0].data.root == name


# --- exit codes


def replace_models(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from mnft.commands import models

    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(models, "run", fail)


@pytest.mark.parametrize(
    ("error", "exit_code", "stderr"),
    [
        (MnftError("it broke", hint="mend it"), 1, "error: it broke\nhint: mend it\n"),
        (GateError("too bad"), 3, "error: too bad\n"),
        (Interrupted(143, "by SIGTERM"), 143, "stopped: by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "stopped: by Ctrl-C\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            1,
            "error: a: Permission denied\n",
        ),
        (OSError(errno.ENOSPC, "No space left", "a", None, "b"), 1, "error: b: No space left\n"),
    ],
)
def test_errors_become_messages_and_exit_codes(
    run_cli: RunCli, monkeypatch, error, exit_code, stderr
):
    replace_models(monkeypatch, error)
    result = run_cli("models")
    assert (result.exit_code, result.stderr, result.stdout) == (exit_code, stderr, "")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["models"], None),
        (["eval", "runs/x"], "smaller values of --batch-size and --workers need less"),
        (["train", "x.yaml"], "lower train.batch_size, eval.batch_size, data.img_size or"),
    ],
)
def test_too_little_memory_names_what_the_command_has(
    run_cli: RunCli, monkeypatch, tmp_path: Path, argv: list[str], hint: str | None
):
    from mnft.commands import evaluate, models, train

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "x.yaml").write_text("data: {root: images}\n")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise MemoryError

    for command in (evaluate, models, train):
        monkeypatch.setattr(command, "run", fail)
    result = run_cli(*argv)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: this machine has too little memory\n")
    assert ("hint" in result.stderr) == (hint is not None)
    assert (hint or "") in result.stderr


@pytest.mark.parametrize("verb", commands())
def test_help_refers_to_nothing_that_is_not_there(run_cli: RunCli, verb: str):
    text = run_cli(*verb.split(), "--help").stdout
    assert "see below" not in re.sub(r"[\s\u2500-\u257f]+", " ", text)


@pytest.mark.parametrize("bug", [RuntimeError("a bug"), OSError(errno.EBADF, "Bad descriptor")])
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    replace_models(monkeypatch, bug)
    result = CliRunner().invoke(app, ["models"])
    assert result.exception is bug
    assert "error:" not in result.stderr


def test_a_bug_shows_its_traceback():
    code = (
        "import sys; sys.argv = ['mnft', 'doctor']\n"
        "import types; command = types.ModuleType('mnft.commands.doctor')\n"
        "def run(**_): raise RuntimeError('a bug')\n"
        "command.run = run; sys.modules['mnft.commands.doctor'] = command\n"
        "import mnft.commands; mnft.commands.doctor = command\n"
        "from mnft.cli.app import main; main()\n"
    )
    result = python(code)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1] == "RuntimeError: a bug"


@pytest.mark.parametrize(
    "argv", [["data", "fetch", "--list"], ["data", "fetch", "--list", "--json"]]
)
def test_a_reader_that_goes_away_ends_it_quietly(argv):
    code = f"import sys; sys.argv = ['mnft', *{argv!r}]; from mnft.cli.app import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


def test_commands_have_no_pretty_exceptions_and_are_guarded():
    assert isinstance(app, typer.Typer)
    assert not app.pretty_exceptions_enable
    for group in (app, *(entry.typer_instance for entry in app.registered_groups)):
        for command in group.registered_commands:
            assert hasattr(command.callback, "__wrapped__"), command.callback


def test_the_module_calls_itself_mnft(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnft", "train", "x.yaml", "--epochs", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error: mnft train has no option --epochs" in done.stderr
    assert "hint: mnft train x.yaml --set train.epochs=3" in done.stderr
