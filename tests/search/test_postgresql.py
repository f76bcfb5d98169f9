"""Two machines, which share no folder, search in one PostgreSQL database."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from mnft.cli.app import app  # noqa: F401 - imported before any user is changed

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def database() -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """The URL of a new database, the folder of its server, and a function that ends it."""
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    as_user: list[str] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            if not shutil.which("runuser"):
                pytest.skip("PostgreSQL does not run as root, and there is no runuser")
            user = next((u for u in ("postgres", "nobody") if _exists(u)), None)
            if user is None:
                pytest.skip("PostgreSQL does not run as root, and there is no other user")
            as_user = ["runuser", "-u", user, "--"]
            shutil.chown(folder, user)
            folder.chmod(0o755)

        def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            command = [*as_user, str(BINARIES[-1] / program), *arguments]
            output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            if program == "pg_ctl":  # the server keeps the streams that it is given
                output = dict.fromkeys(output, subprocess.DEVNULL)
            return subprocess.run(command, text=True, cwd=folder, timeout=120, **output)

        data = str(folder / "data")
        made = call("initdb", "-D", data, "-A", "trust", "-U", "mnft", "-N")
        if made.returncode:
            pytest.skip(f"initdb failed: {made.stdout.strip()[-200:]}")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        server = call("pg_ctl", "-D", data, "-w", "-o", options, "-l", data + "/log", "start")
        if server.returncode:
            log = Path(data, "log")
            reason = log.read_text()[-200:] if log.exists() else "pg_ctl failed"
            pytest.skip(f"PostgreSQL does not start: {reason}")

        def stop() -> None:
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")

        try:
            yield f"postgresql+psycopg://mnft@/postgres?host={folder}", folder, stop
        finally:
            stop()


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def test_two_machines_share_the_trials_of_a_search(database, train, run_cli, tmp_path):
    url, _, _ = database
    config = yaml.safe_load(train.config.read_text())
    config["train"] |= {"epochs": 1}
    config["search"] = {"seeds": 0, "trials": 4, "name": "shared", "storage": url}
    config["search"]["space"] = {"optim.lr": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]}
    train.config.write_text(yaml.safe_dump(config))

    def search(machine: str, trials: int) -> tuple[list[str], str]:
        sets = ["--set", f"search.dir={machine}", "--set", f"search.trials={trials}"]
        result = run_cli("search", train.config, *sets)
        assert result.exit_code == 0, result.stderr
        return sorted(
            p.name for p in (tmp_path / machine / "shared").glob("trial-*")
        ), result.stderr

    assert search("one", 2)[0] == ["trial-0000", "trial-0001"]
    runs, said = search("two", 4)
    assert runs == ["trial-0002", "trial-0003"]
    assert "the best of 4 trials" in said
    record = json.loads((tmp_path / "two" / "shared" / "result.json").read_text())
    assert ("the same command there tests it" in said) == (record["trial"] < 2)


def test_a_database_that_is_gone_is_one_clear_error(database, train, run_cli):
    url, folder, _ = database
    gone = url.replace(str(folder), str(folder / "nobody"))
    result = run_cli(
        "search",
        train.config,
        "--set",
        "search.space.optim.lr=[1e-3, 1e-2]",
        "--set",
        f"search.storage={gone}",
    )
    assert result.exit_code == 2
    assert sum(line.startswith("error:") for line in result.stderr.splitlines()) == 1
    assert "cannot be opened" in result.stderr


def test_a_database_that_ends_during_a_search_is_one_clear_error(
    database, train, run_cli, monkeypatch, tmp_path
):
    from mnft.search import worker

    url, _, stop = database
    train_run = worker.train_run

    def train_and_stop(*args, **more):
        outcome = train_run(*args, **more)
        stop()
        return outcome

    monkeypatch.setattr(worker, "train_run", train_and_stop)
    sets = ("search.space.optim.lr=[1e-3, 1e-2]", f"search.storage={url}", "search.seeds=0")
    options = [part for value in sets for part in ("--set", value)]
    result = run_cli("search", train.config, *options)
    assert result.exit_code == 1
    assert sum(line.startswith("error:") for line in result.stderr.splitlines()) == 1
    assert "is gone" in result.stderr
    assert (tmp_path / "searches" / "small" / "trial-0000" / "best").is_dir()
