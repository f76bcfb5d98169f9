"""The console: cleaned text, unwrapped tables, JSON, the log, the training display."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from mnft import console
from mnft.errors import Interrupted, MnftError
from mnft.results import EpochResult, StepProgress

NASTY = "\x1b[31mred\x07\x9b\u202e\r\udcff"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A colour terminal of 80 columns; tests redirect stderr to it."""
    stream = Terminal()
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def epoch_result(epoch: int = 3, *, is_best: bool = False) -> EpochResult:
    return EpochResult(
        epoch=epoch,
        epochs=10,
        train_loss=1.25,
        train_accuracy=0.5,
        val_loss=1.5,
        val_accuracy=0.4321,
        val_macro_f1=0.42,
        lr=0.001,
        images_per_s=123.4,
        seconds=6.54,
        is_best=is_best,
        data_wait=0.004,
        peak_memory_mb=3412.0,
    )


# --- messages


def test_an_error_and_its_hint_have_lines_of_their_own(capsys):
    console.show_error(MnftError("no such file", hint="look"))
    console.show_error(MnftError("no hint"))
    console.show_error(Interrupted(130, "by Ctrl-C"))
    expected = "error: no such file\nhint: look\nerror: no hint\nstopped: by Ctrl-C\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize(
    "show",
    [
        lambda text: console.show_error(MnftError(text, hint=text)),
        console.warn,
        console.note,
        console.done,
        console.show_data,
        lambda text: console.show_facts({text: text}),
        lambda text: console.show_table([text], [[text]], title="t"),
        lambda text: console.show_table([text], [[text]], to_stderr=True),
    ],
)
def test_control_characters_are_cleaned(capsys, show):
    show(NASTY)
    output = "".join(capsys.readouterr())
    assert "\N{REPLACEMENT CHARACTER}[31mred" in output
    assert not set(NASTY) & set(output) - set("[31mred")
    output.encode("utf-8")


@pytest.mark.parametrize(
    "show",
    [
        console.show_data,
        lambda text: console.show_facts({"name": text}),
        lambda text: console.show_table(["name"], [[text]]),
    ],
)
def test_a_name_with_a_line_break_stays_in_its_line(capsys, show):
    show("red\n  roses")
    assert r"red\n  roses" in capsys.readouterr().out


def test_a_name_with_a_line_break_is_no_message_of_its_own(capsys):
    for say in (console.warn, console.note, lambda text: console.show_error(MnftError(text))):
        say("red\nerror: of classes:\n  a\n  b\nc")
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].endswith(r"red\nerror: of classes:")
        assert lines[1:] == ["  a", r"  b\nc"]


def test_markup_and_emoji_codes_are_plain_text(capsys):
    console.note("[bold]x[/bold] [/] :smile:")
    console.show_table(["a"], [["[red]x[/red]"]])
    out, err = capsys.readouterr()
    assert err == "[bold]x[/bold] [/] :smile:\n"
    assert out.splitlines()[1].rstrip() == "[red]x[/red]"


def test_long_messages_are_not_wrapped_off_a_terminal(capsys):
    console.warn("word " * 1000)
    assert capsys.readouterr().err.count("\n") == 1


# --- JSON


def test_json_is_one_line_that_reads_back(capsys):
    value = {"name": NASTY, "ż": [1, 2.5, None, True, "🌸\n"]}
    console.show_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert out.count("\n") == 1
    assert not set("\x1b\x07\x9b\u202e\r\udcff") & set(out)
    assert "ż" in out


def test_json_refuses_numbers_that_it_does_not_have():
    with pytest.raises(ValueError, match="JSON"):
        console.show_json({"loss": float("nan")})


# --- tables


def test_a_piped_table_has_one_line_a_row(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    console.show_table(["name", "what"], [["n" * 700, "word " * 400], ["b", "c"]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "n" * 700, "b"]
    assert lines[1].rstrip().endswith("word " * 399 + "word")


def test_numbers_are_right_aligned_and_words_left(capsys):
    console.show_table(["name", "size"], [["a", "5 MB"], ["long", "500 MB"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name    size", "a       5 MB", "long  500 MB"]


COLUMNS = ("model", "accuracy (95%)", "macro-F1", "params M", "RAM MB", "ms", "images/s", "Pareto")
ROWS = [
    ["flowers torch", "83.33% (78.14 to 88.25)", "0.8312", "1.02", "797", "15.14", "1893.4", "-"],
    ["a model of a name " * 4, "91.25% (87.1 to 94.2)", "-", "2.23", "87", "0.40", "7.5", "size"],
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_a_terminal_cuts_no_figure_of_a_table(terminal, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stdout(terminal):
        console.show_table(COLUMNS, ROWS, title="title")
    lines = terminal.getvalue().splitlines()
    assert "…" not in terminal.getvalue()
    assert max(map(len, lines)) <= width
    for cell in [*ROWS[0], *ROWS[1][1:]]:
        assert any(cell in line for line in lines), cell
    assert terminal.getvalue().count("title") == 1


def test_columns_without_room_follow_below_with_the_names_again(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stdout(terminal):
        console.show_table(["name", "a", "b"], [["x", "1" * 20, "2" * 20]])
    assert [line.split() for line in terminal.getvalue().splitlines()] == [
        ["name", "a"],
        ["x", "1" * 20],
        [],
        ["name", "b"],
        ["x", "2" * 20],
    ]


def test_long_texts_of_a_table_are_wrapped_before_columns_move(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stdout(terminal):
        console.show_table(["name", "n", "what"], [["x", "123456", "word " * 20]])
    lines = terminal.getvalue().splitlines()
    assert lines[0].split() == ["name", "n", "what"]
    assert terminal.getvalue().count("word") == 20
    assert max(map(len, lines)) <= 40


def test_a_figure_that_is_wider_than_the_terminal_is_wrapped(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stdout(terminal):
        console.show_table(["n"], [["1234567890" * 3]])
    assert "".join(terminal.getvalue().split()[1:]) == "1234567890" * 3


# --- the log


def test_the_log_is_plain_lines(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    console.setup_logging(verbose=False)
    logging.getLogger("mnft.x").warning("left out: %s [b]", NASTY)
    logging.getLogger("mnft.x").info("hidden")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("warning: left out: \N{REPLACEMENT CHARACTER}[31mred")
    assert err.endswith(" [b]\n")
    assert err.count("\n") == 1

    root.handlers.clear()
    console.setup_logging(verbose=True)
    logging.getLogger("mnft.x").info("shown")
    assert capsys.readouterr().err == "shown\n"


# --- colour


def test_colour_on_a_terminal_and_none_with_no_color(terminal, monkeypatch):
    with redirect_stderr(terminal):
        console.warn("careful")
    assert "\x1b[" in terminal.getvalue()
    terminal.seek(0)
    terminal.truncate()
    monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stderr(terminal):
        console.warn("careful")
        console.show_error(MnftError("x", hint="y"))
        console.done("z")
    assert terminal.getvalue() == "warning: careful\nerror: x\nhint: y\nz\n"


# --- progress


def test_progress_off_a_terminal_says_nothing(capsys):
    with console.progress("checking") as on_progress:
        on_progress(1, 2)
        on_progress(2, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_a_bar(terminal):
    with redirect_stderr(terminal), console.progress("checking \x1b[31m") as on_progress:
        on_progress(0, 0)
        on_progress(1, 2)
    assert "checking \N{REPLACEMENT CHARACTER}[31m" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()


def test_a_total_that_is_not_known_is_not_shown_as_a_question_mark(terminal):
    with redirect_stderr(terminal), console.progress("counting") as on_progress:
        on_progress(0, 0)
        on_progress(7, 0)
    assert re.search(r"counting .*7 ", terminal.getvalue())
    assert "?" not in terminal.getvalue().replace("\x1b[?25", "")


def test_messages_stand_above_the_bar(terminal):
    with redirect_stderr(terminal), console.progress("checking") as on_progress:
        on_progress(1, 2)
        console.note("a note")
    # The line of the bar is erased first.
    assert "\x1b[2Ka note\n" in terminal.getvalue()


def test_a_bar_within_a_bar_is_not_drawn(terminal):
    with redirect_stderr(terminal), console.progress("outer"), console.progress("inner") as inner:
        inner(1, 2)
    assert "outer" in terminal.getvalue()
    assert "inner" not in terminal.getvalue()


@pytest.mark.parametrize("width", [30, 50, 70])
def test_a_bar_cuts_no_figure(terminal, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with redirect_stderr(terminal), console.progress("decoding") as on_progress:
        on_progress(12_345, 23_456)
    assert "…" not in terminal.getvalue()
    assert ("12,345/23,456" in terminal.getvalue()) == (width > 30)


def test_a_spinner_while_torch_is_imported(terminal, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with redirect_stderr(terminal), console.loading():
        pass
    assert "loading torch" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")


def test_no_spinner_off_a_terminal_or_when_torch_is_there(terminal, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    with redirect_stderr(terminal), console.loading():
        pass
    assert terminal.getvalue() == ""
    monkeypatch.delitem(sys.modules, "torch")
    with console.loading():
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [36, 40, 60, 80, 100, 109, 120])
def test_an_epoch_has_one_line_of_the_terminal(terminal, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with redirect_stderr(terminal), console.TrainingDisplay() as display:
        display.on_epoch(epoch_result(9))
        display.on_epoch(epoch_result(10, is_best=True))
    first, second = terminal.getvalue().splitlines()
    assert len(first) <= len(second) <= width
    assert first.startswith("epoch  9/10  ")
    assert first.endswith("val_acc 43.21%") or width > 80
    assert "val_acc 43.21%" in second
    assert second.endswith("  best")
    assert ("loss 1.2500" in first) == (width >= 60)
    assert ("val_loss 1.5000" in first) == (width >= 80)
    assert ("img/s" in first) == (width >= 100)
    assert ("GB" in first) == (width >= 109)
    assert ("wait" in first) == (width == 120)


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_the_bar_of_a_training_cuts_no_figure(terminal, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with redirect_stderr(terminal), console.TrainingDisplay() as display:
        display.on_step(StepProgress(10, 20, 99, 160, 1.234, 0.5, 12345.0))
    assert "…" not in terminal.getvalue()
    assert "99/160" in terminal.getvalue() or width == 30


def test_training_off_a_terminal_prints_one_line_an_epoch_and_nothing_else(capsys):
    with console.TrainingDisplay() as display:
        for epoch in (1, 2):
            for step in range(3):
                display.on_step(StepProgress(epoch, 2, step, 3, 1.0, 0.5, 100.0))
            display.on_epoch(epoch_result(epoch, is_best=epoch == 2))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch  1/10  loss 1.2500  acc 50.00%  val_loss 1.5000")
    assert "val_acc 43.21%  123 img/s  0.4% wait  3.4 GB  6.5 s" in lines[0]
    assert not lines[0].endswith("best")
    assert lines[1].endswith("  best")
    assert "\r" not in err
    assert "\x1b" not in err


def test_training_on_a_terminal_shows_a_bar_with_loss_speed_and_time(terminal):
    with redirect_stderr(terminal), console.TrainingDisplay() as display:
        display.on_step(StepProgress(10, 20, 98, 160, 1.234, 0.5, 1234.0))
        display.on_step(StepProgress(10, 20, 99, 160, 1.111, 0.5, 1234.0))
        display.on_epoch(epoch_result())
    shown = terminal.getvalue().replace("\n", "")
    for word in ("epoch 10/20", "99/160", "loss 1.111", "acc 50.0%", "1234 img/s", "left"):
        assert word in shown, word
    assert "val_acc 43.21%" in shown


# --- messages on a terminal: breaks between words


def shown(terminal: Terminal, *, width: int) -> list[str]:
    """The lines that were printed, without colours; none may be wider than the terminal."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert all(len(line) <= width for line in lines), lines
    return lines


RECIPE = "recipe   train.epochs: 20  (few images: more epochs than the usual ten are needed here)"
MESSAGES = [
    (console.note, RECIPE, 9),
    (console.note, "a note without a column that is longer than the line of a narrow terminal", 2),
    (console.warn, "12 of 340 images could not be read; their rows in the file say why", 9),
    (
        console.done,
        "the best model is runs/garden-flowers/best, after twelve epochs of training",
        2,
    ),
]


@pytest.mark.parametrize("width", [30, 40, 60, 79])
@pytest.mark.parametrize(("say", "message", "indent"), MESSAGES)
def test_a_terminal_breaks_messages_between_words(
    terminal, monkeypatch, width, say, message, indent
):
    monkeypatch.setenv("COLUMNS", str(width))
    with redirect_stderr(terminal):
        say(message)
    lines = shown(terminal, width=width)
    assert " ".join(lines).split() == [*["warning:"] * (say == console.warn), *message.split()]
    margins = {len(line) - len(line.lstrip()) for line in lines[1:]}
    assert margins <= {min(indent, width // 4)}


def test_an_error_and_its_hint_hang_below_their_labels(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    error = MnftError("found 3 classes, expected those of the run:\n  red\n  green " + "x " * 20)
    error.hint = "name other images, or train on these"
    with redirect_stderr(terminal):
        console.show_error(error)
    assert shown(terminal, width=40) == [
        "error: found 3 classes, expected those",
        "       of the run:",
        "  red",
        "  green x x x x x x x x x x x x x x x x",
        "    x x x x",
        "hint: name other images, or train on",
        "      these",
    ]


@pytest.mark.parametrize(
    ("message", "copied"),
    [
        ("by Ctrl-C after 3 epochs; resume with: mnft train --resume runs/flowers", None),
        ("next: mnft init data/digits, or mnft data check data/digits", "mnft data check"),
        ("a fine-tuned model is in /a/path/that/is/long/but/fits in", "/a/path/that/is/long"),
        ("give the run another learning rate with --set optim.lr=0.0003", "--set optim.lr=0.0003"),
        ("bring the images first: `mnft data fetch flowers102 --to x` does", "--to x`"),
    ],
)
def test_what_a_person_copies_is_not_broken(terminal, monkeypatch, message, copied):
    monkeypatch.setenv("COLUMNS", "46")
    with redirect_stderr(terminal):
        console.note(message)
    lines = shown(terminal, width=46)
    assert len(lines) > 1
    assert any((copied or "mnft train --resume runs/flowers") in line for line in lines)


def test_a_path_that_is_longer_than_a_line_is_left_to_the_terminal(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a" * 40
    with redirect_stderr(terminal):
        console.note(f"written to {path} at last")
    assert path in terminal.getvalue()


def test_facts_hang_in_their_column(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with redirect_stdout(terminal):
        console.show_facts({"accuracy": "90.00%  (95% Wilson interval 88% to 92%)", "loss": "0.1"})
    assert shown(terminal, width=40) == [
        "accuracy  90.00%  (95% Wilson interval",
        "          88% to 92%)",
        "loss      0.1",
    ]


@pytest.mark.parametrize("width", [79, 80])
def test_a_narrow_terminal_shows_no_details(terminal, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with redirect_stderr(terminal):
        console.note("recipe   train.epochs: 20", detail="(few images)")
    expected = "recipe   train.epochs: 20" + "  (few images)" * (width == 80)
    assert shown(terminal, width=width) == [expected]


def test_off_a_terminal_details_are_shown(capsys):
    console.note("recipe   train.epochs: 20", detail="(few images)")
    assert capsys.readouterr().err == "recipe   train.epochs: 20  (few images)\n"
