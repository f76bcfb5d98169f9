"""Mutated configs through the loader and the command line: understood or refused, never a bug."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import Result

from mnft.config.load import load_config
from mnft.errors import ConfigError

pytestmark = pytest.mark.faults
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
Cli = Callable[..., Result]

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**30), 1e308, 1e-320, 0.1, 1.5),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "null", "auto", "none", "off", "true"),
    *("1e-3", "1_000", "0x10", "nan", "..", "/", "~", "~nobody/x", "a\0b", "ä", "日本", "\u202e"),
    *(
        "<script>",
        "=cmd()",
        "\x1b[31m",
        "x" * 5_000,
        "../" * 50,
        "2026-01-31",
        "!!x",
        "*a",
        "\ud800",
    ),
    *([], {}, [None], [[]], [1, 2, 3], [0.5], [1, 0], ["a", 1], [float("nan")] * 2, {"a": 1}),
    *({"": None}, {1: 2}, {None: 1}, {"a": {"b": {"c": []}}}, list(range(300)), (1, 2), {3, 4}),
    *(b"bytes", [[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]),
]
KEYS: list[Any] = [
    "",
    "x",
    "lr",
    "optim",
    "train",
    "model.name",
    "ü",
    "a b",
    1,
    None,
    True,
    "=",
    "1.0",
]
LINES = [
    "&a [*a]",
    "a: &x {b: *x}",
    "<<: {optim: {lr: 1}}",
    "optim: !!python/object/apply:os.system [ls]",
    "? [1, 2]\n: 3",
    "\tdata: 1",
    "---",
    "...",
    "%YAML 9.9",
    "data: {root: [",
    "'",
    '"\\x',
    "- 1",
    "train: {epochs: 1, epochs: 2}",
    "{" * 200,
    "[" * 3000,
    "optim: {lr: .inf}",
    "data: |\n  text\n more",
    "!!binary aaaa",
    "a: 0o17",
    "a: 1:30:00",
    "\ufeffdata: {}",
]


def mutate(rng: random.Random) -> bytes:
    """A config of the repository, changed in its values, its lines or its bytes."""
    text = rng.choice(CONFIGS).read_text(encoding="utf-8")
    kind = rng.choice(("values", "values", "values", "lines", "bytes"))
    if kind == "values":
        values = copy.deepcopy(_parse(text))
        for _ in range(rng.choice((1, 1, 2, 5))):
            values = _change(rng, values)
        return _dump(values)
    if kind == "lines":
        lines = text.splitlines()
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.randrange(len(lines))
            new = rng.choice((lines[place], rng.choice(LINES), lines[place] * 2, ""))
            lines[place : place + rng.randrange(2)] = [new]
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    content = bytearray(text.encode())
    for _ in range(rng.choice((1, 2, 10, 50))):
        start = rng.randrange(len(content))
        size = rng.choice((0, 1, 1, 1, 30))
        new = bytes(rng.randrange(256) for _ in range(rng.choice((0, 1, 1, 5))))
        content[start : start + size] = new
        content = content or bytearray(b"x")
    return bytes(content)


@functools.cache
def _parse(text: str) -> Any:
    return yaml.safe_load(text)


def _change(rng: random.Random, values: Any) -> Any:
    """One value, key or section replaced, taken away, added or put elsewhere."""
    if not isinstance(values, dict) or not values or rng.random() < 0.01:
        return copy.deepcopy(rng.choice(VALUES))
    section = rng.choice(list(values))
    inner = values[section]
    at = inner if isinstance(inner, dict) and inner and rng.random() < 0.85 else values
    key = rng.choice(list(at))
    what = rng.randrange(6)
    if what == 0:
        del at[key]
    elif what == 1:
        at[rng.choice(KEYS)] = at.pop(key)
    elif what == 2:
        at[str(key)[:-1] + rng.choice("aeiou_")] = copy.deepcopy(rng.choice(VALUES))
    elif what == 3:
        at[key] = values  # an alias to the whole
    else:
        at[key] = copy.deepcopy(rng.choice(VALUES))
    return values


def _dump(values: Any) -> bytes:
    text: str = yaml.dump(values, allow_unicode=True, default_flow_style=None)
    return text.encode("utf-8", "surrogatepass")


def check(content: bytes, path: Path, cli: Cli, seen: dict[str, int]) -> None:
    """The loader refuses what it does not understand; the command line says so in one message."""
    path.write_bytes(content)
    problem = None
    try:
        load_config(path)
    except ConfigError as error:
        problem = error.message
    assert problem is None or str(path) in problem
    result = cli("train", path)
    seen["refused" if problem else "understood"] += 1
    if problem:
        assert result.exit_code == 2, result.stderr
        assert result.stderr.count("error: ") >= 1
        assert path.name in result.stderr
    else:
        # A model or a device that does not exist is found by what looks for it.
        assert result.exit_code in (0, 1, 2), result.stderr
        assert result.exit_code == 0 or "error: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("count", [100, pytest.param(2_500, marks=pytest.mark.slow)])
def test_mutated_configs(
    count: int, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise typer.Exit(0)

    monkeypatch.setattr("mnft.runs.begin.begin_training", stop)
    seen = {"refused": 0, "understood": 0}
    contents: set[bytes] = set()

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64))
    def run(seed: int) -> None:
        content = mutate(random.Random(seed))
        contents.add(content)
        check(content, tmp_path / "mutated.yaml", run_cli, seen)

    run()
    print(f"{len(contents)} different configs: {seen}")
    assert len(contents) >= 0.8 * count
    assert min(seen.values()) > 0.05 * count
