"""`mnft predict`: a row for each image, in order, whatever the files are called or hold."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from mnft.config.schema import ModelConfig
from mnft.data.decode import decode
from mnft.data.transforms import build_eval_transform, normalize
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.factory import build_model

Cli = Callable[..., Result]
NAMES = ("blue", "green, dark", "red")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "best"
    torch.manual_seed(0)
    built = build_model(ModelConfig(name="lenet5", pretrained=False), num_classes=3, img_size=32)
    card = ModelCard(
        built.architecture, built.model_args, built.preprocessing, NAMES, built.pretrained_cfg
    )
    save_bundle(folder, built.model.state_dict(), card, {})
    return folder


@pytest.fixture
def predict(model: Path, run_cli: Cli) -> Cli:
    def run(*args: object, stdin: str | None = None) -> Result:
        return run_cli("predict", "--ckpt", model, "--device", "cpu", *args, stdin=stdin)

    return run


def image(path: str, seed: int = 0) -> str:
    """Write an image into the current folder; gives its path."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    with file.open("wb") as stream:
        Image.fromarray(values).save(stream, "PNG")
    return path


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def paths(result: Result) -> list[str]:
    return [row["path"] for row in rows(result.stdout)]


# What the rows say


def test_probabilities_are_those_of_the_model(predict: Cli, model: Path) -> None:
    names = [image(f"{n}.png", n) for n in range(5)]
    result = predict(*names, "--top-k", 3)
    assert result.exit_code == 0
    bundle = load_bundle(model)
    transform = build_eval_transform(bundle.preprocessing)
    batch = torch.stack([transform(decode(Path(name))) for name in names])
    with torch.inference_mode():
        expected = bundle.model(normalize(batch, bundle.preprocessing)).softmax(dim=1)
    for row, values in zip(rows(result.stdout), expected, strict=True):
        found = {row[f"class_{k}"]: float(row[f"probability_{k}"]) for k in (1, 2, 3)}
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert row["error"] == ""
        for name, value in zip(NAMES, values.tolist(), strict=True):
            assert found[name] == pytest.approx(value, abs=2e-6)


def test_columns(predict: Cli) -> None:
    name = image("a.png")
    assert predict(name).stdout.splitlines()[0] == "path,class_1,probability_1,error"
    two = "path,class_1,probability_1,class_2,probability_2,error"
    assert predict(name, "--top-k", 2).stdout.splitlines()[0] == two
    # There are three classes.
    assert predict(name, "--top-k", 99).stdout == predict(name, "--top-k", 3).stdout


def test_json_lines(predict: Cli) -> None:
    image("ü 花.png")
    Path("bad.jpg").write_bytes(b"")
    result = predict("ü 花.png", "bad.jpg", "--json", "--top-k", 2)
    good, bad = (json.loads(line) for line in result.stdout.splitlines())
    assert good["path"] == "ü 花.png"
    assert good["error"] is None
    assert len(good["predictions"]) == 2
    assert good["predictions"][0].keys() == {"class", "probability"}
    assert bad == {"path": "bad.jpg", "predictions": [], "error": "the file is empty"}
    table = rows(predict("ü 花.png", "--top-k", 2).stdout)[0]
    assert good["predictions"][0]["class"] == table["class_1"]
    assert good["predictions"][1]["probability"] == float(table["probability_2"])


def test_the_batch_size_does_not_matter(predict: Cli) -> None:
    names = [image(f"{n}.png", n) for n in range(7)]
    Path("3.png").write_bytes(b"bad")
    tables = [rows(predict(*names, "--batch-size", n).stdout) for n in (1, 3, 32)]
    for table in tables:
        assert [row["path"] for row in table] == names
        assert [row["class_1"] for row in table] == [row["class_1"] for row in tables[0]]
        for row, first in zip(table, tables[0], strict=True):
            if row["path"] != "3.png":
                expected = pytest.approx(float(first["probability_1"]), abs=2e-6)
                assert float(row["probability_1"]) == expected


def test_workers(predict: Cli) -> None:
    names = [image(f"{n}.png", n) for n in range(5)]
    alone = predict(*names, "--batch-size", 2, "--workers", 0).stdout
    assert predict(*names, "--batch-size", 2, "--workers", 1).stdout == alone


def test_long_lists_are_done_in_chunks(predict: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnft.commands import predict as command

    names = [image(f"{n}.png", n) for n in range(7)]
    Path("5.png").write_bytes(b"bad")
    whole = predict(*names).stdout
    monkeypatch.setattr(command, "_CHUNK", 3)
    assert predict(*names).stdout == whole


@pytest.mark.parametrize(
    ("to_pipe", "args", "events"),
    [
        (
            False,
            (),
            ["bar 0/7", "gone", "rows", "bar 3/7", "gone", "rows", "bar 6/7", "gone", "rows"],
        ),
        (True, (), ["bar 0/7", "gone", "rows", "rows", "rows"]),
        (True, ("-o", "out.csv"), 3 * ["bar", "gone", "rows"]),
    ],
)
def test_the_bar_is_gone_when_rows_are_written(
    predict: Cli, monkeypatch: pytest.MonkeyPatch, to_pipe: bool, args: Any, events: list[str]
) -> None:
    from mnft.commands import predict as command

    seen: list[str] = []

    @contextmanager
    def progress(description: str) -> Iterator[Callable[[int, int], None]]:
        reports: list[str] = []
        yield lambda done, total: reports.append(f"bar {done}/{total}")
        seen.extend([reports[0], "gone"])
        assert reports[-1] == f"bar {min(len(names), 3 * seen.count('gone'))}/7"

    def give(*given: Any) -> Iterator[dict[str, Any]]:
        seen.append("rows")
        return rows_of(*given)

    rows_of = command._rows
    names = [image(f"{n}.png", n) for n in range(7)]
    monkeypatch.setattr(command.console.REPORTER, "track", progress)
    monkeypatch.setattr(command, "_CHUNK", 3)
    monkeypatch.setattr(command, "_rows", give)
    monkeypatch.setattr(command, "_is_pipe", lambda _stream: to_pipe, raising=False)
    assert predict(*names, *args).exit_code == 0
    assert [event[: len(want)] for event, want in zip(seen, events, strict=True)] == events


def test_a_pipe_is_told_from_a_file(tmp_path: Path) -> None:
    from mnft.commands.predict import _is_pipe

    ends = os.pipe()
    with open(ends[0]), open(ends[1], "w") as pipe, (tmp_path / "x").open("w") as file:
        assert _is_pipe(pipe)
        assert not _is_pipe(file)
    assert not _is_pipe(io.StringIO())


# Which images


def test_rows_follow_the_list_with_its_repetitions(predict: Cli) -> None:
    for name in "cab":
        image(f"{name}.png")
    assert paths(predict("c.png", "a.png", "b.png", "a.png")) == [
        "c.png",
        "a.png",
        "b.png",
        "a.png",
    ]


def test_folders(predict: Cli) -> None:
    for name in ("d/b.png", "d/sub/A.PNG", "d/a.png", "d/.hidden.png", "d/.x/1.png", "e.png"):
        image(name)
    image("d/__MACOSX/1.png")
    Path("d/notes.txt").write_text("x")
    Path("d/link.png").symlink_to("../e.png")
    Path("d/circle").symlink_to("..", target_is_directory=True)
    found = paths(predict("d"))
    assert found == ["d/a.png", "d/b.png", "d/circle/e.png", "d/link.png", "d/sub/A.PNG"]
    assert paths(predict("e.png", "d/sub")) == ["e.png", "d/sub/A.PNG"]


def test_globs(predict: Cli) -> None:
    for name in ("x/2.png", "x/1.png", "x/y/3.png", "[1].png"):
        image(name)
    assert paths(predict("x/*.png")) == ["x/1.png", "x/2.png"]
    assert paths(predict("x/**/*.png")) == ["x/1.png", "x/2.png", "x/y/3.png"]
    assert paths(predict("x/*")) == ["x/1.png", "x/2.png", "x/y/3.png"]
    assert paths(predict("[1].png")) == ["[1].png"]
    result = predict("z*.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "z*.png: matches no file" in result.stderr


def test_standard_input(predict: Cli) -> None:
    for name in ("b.png", "a b.png", "ü.png"):
        image(name)
    listed = predict("-", stdin="b.png\n\na b.png\r\nü.png")
    assert paths(listed) == ["b.png", "a b.png", "ü.png"]
    assert paths(predict("ü.png", "-", stdin="b.png\n")) == ["ü.png", "b.png"]
    # A line is a name and never a pattern or an option.
    assert rows(predict("-", "b.png", stdin="*.png\n-\n").stdout)[0]["error"] != ""


def test_a_null_byte_in_the_list(predict: Cli) -> None:
    result = predict("-", image("a.png"), stdin="a.png\0b.png\n")
    assert result.exit_code == 0
    assert "null byte" in rows(result.stdout)[0]["error"]


def test_no_images(predict: Cli) -> None:
    Path("empty").mkdir()
    for arguments, stdin in [(("empty",), None), (("-",), "")]:
        result = predict(*arguments, stdin=stdin)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "found no images" in result.stderr


def test_an_empty_name_is_not_the_current_folder(predict: Cli) -> None:
    image("a.png")
    result = predict("")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "empty file name" in result.stderr


# Files that cannot be read


def test_a_bad_image_gets_a_row(predict: Cli) -> None:
    Path("bad.jpg").write_bytes(b"<html>")
    result = predict(image("a.png"), "bad.jpg", "gone.jpg", "x" * 300, image("b.png"))
    assert result.exit_code == 0
    table = rows(result.stdout)
    assert [row["error"] for row in table] == [
        "",
        "not an image of a known type",
        "cannot be read: No such file or directory",
        "cannot be read: File name too long",
        "",
    ]
    assert (table[1]["class_1"], table[1]["probability_1"]) == ("", "")
    assert "warning: 3 of 5 images could not be read" in result.stderr


@pytest.mark.parametrize("option", [[], ["--json"], ["-o", "out.csv"]])
def test_nothing_but_bad_images(predict: Cli, option: list[str]) -> None:
    Path("bad.jpg").write_bytes(b"")
    result = predict("bad.jpg", "gone.jpg", *option)
    assert result.exit_code == 1
    assert "none of the 2 images could be read" in result.stderr
    text = Path("out.csv").read_text() if "-o" in option else result.stdout
    assert text.count("the file is empty") == 1


# Names


def test_names_with_commas_quotes_and_line_ends(predict: Cli) -> None:
    names = [
        "a,b.png",
        'say "x".png',
        "two\nlines.png",
        "cr\rx.png",
        " lead.png",
        "-x.png",
        "é.png",
    ]
    for number, name in enumerate(names):
        image(name, number)
    result = predict("--", *names)
    assert result.exit_code == 0
    # A spreadsheet would run what begins with a minus; --json has the names as they are.
    assert paths(result) == [f"'{name}" if name == "-x.png" else name for name in names]
    assert {row["class_1"] for row in rows(result.stdout)} <= set(NAMES)
    lines = predict("--json", "--", *names).stdout.splitlines()
    assert [json.loads(line)["path"] for line in lines] == names


def test_names_that_are_not_utf8(predict: Cli) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        image(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for option in ([], ["--json"]):
        result = predict(name, *option)
        assert result.exit_code == 0
    assert paths(predict(name)) == ["caf\\xe9.png"]


# The output file


def test_output_file(predict: Cli) -> None:
    names = [image("a.png"), image("b\n.png")]
    result = predict(*names, "-o", "deep/out.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "written to deep/out.csv" in result.stderr
    with Path("deep/out.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == names
    assert Path("deep/out.csv").read_bytes().decode() == predict(*names).stdout
    assert [file.name for file in Path("deep").iterdir()] == ["out.csv"]


def test_output_file_is_written_whole_or_not_at_all(
    predict: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnft.commands import predict as command

    names = [image("a.png"), image("b.png")]
    Path("deep").mkdir()
    Path("deep/out.csv").write_text("old")

    def fail(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "_write", fail)
    result = predict(*names, "-o", "deep/out.csv")
    assert result.exit_code == 1
    assert "deep/out.csv: cannot be written: No space left on device" in result.stderr
    assert Path("deep/out.csv").read_text() == "old"
    assert [file.name for file in Path("deep").iterdir()] == ["out.csv"]


def test_output_that_is_a_folder(predict: Cli) -> None:
    Path("folder").mkdir()
    result = predict(image("a.png"), "-o", "folder")
    assert result.exit_code == 1
    assert "folder: is a folder" in result.stderr
    result = predict("a.png", "-o", "a.png/out.csv")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_no_model(run_cli: Cli) -> None:
    result = run_cli("predict", "--ckpt", "nowhere", image("a.png"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nowhere does not exist" in result.stderr


def test_a_pipe_as_output_stays_a_pipe(predict: Cli, tmp_path: Path) -> None:
    image("a.png")
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as reader:
        text = reader.submit((tmp_path / "pipe").read_text)
        predict("a.png", "-o", tmp_path / "pipe")
        assert text.result(timeout=30).splitlines()[1].startswith("a.png,")
    assert (tmp_path / "pipe").is_fifo()
