"""The config: loading, overrides, problems with their places, documentation, shipped configs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mnft.config import describe, docs
from mnft.config.data import DataConfig
from mnft.config.load import _OTHER_NAMES, load_config, save_config
from mnft.config.schema import Config
from mnft.config.source import MAX_BYTES, MAX_DEPTH, Source, dump_yaml, parse_value, parse_yaml
from mnft.errors import ConfigError, ModelError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DATA = "data:\n  root: photos\n"


@pytest.fixture
def load(tmp_path: Path):
    """A function (text, *overrides) that gives the config."""

    def load(text: str, *overrides: str) -> Config:
        path = tmp_path / "some.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)[0]

    return load


def refused(load: Any, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return caught.value.message


# --- what is loaded


def test_what_is_not_written_has_its_default(load):
    assert load(DATA) == Config(data=DataConfig(root="photos"))


def test_written_values_arrive_unchanged(load):
    config = load(DATA + "  workers: 3\noptim:\n  lr: 0.25\n  betas: [0.8, 0.9]\n")
    assert (config.data.workers, config.optim.lr, config.optim.betas) == (3, 0.25, [0.8, 0.9])


@pytest.mark.parametrize(
    ("written", "crop_mode", "crop_pct"),
    [
        ("", None, None),
        ("crop_pct: 0.9", None, 0.9),
        ("crop_mode: center", "center", None),
        # These are for seeing all of the image.
        ("crop_mode: squash", "squash", 1.0),
        ("crop_mode: border", "border", 1.0),
        ("crop_mode: border, crop_pct: 0.9", "border", 0.9),
    ],
)
def test_what_replaces_the_preprocessing_of_the_model(load, written, crop_mode, crop_pct):
    data = load(f"data: {{root: photos, {written}}}").data
    expected = dict.fromkeys(("mean", "std", "interpolation"))
    assert data.override_preprocessing() == {
        **expected,
        "crop_mode": crop_mode,
        "crop_pct": crop_pct,
    }


def test_an_empty_section_means_its_defaults(load):
    assert load(DATA + "optim:\ntrain:\n") == load(DATA)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("3E4", 3e4), ("-1e+2", -100.0), ("1.5e-3", 1.5e-3), ("2.e1", 20.0)],
)
def test_an_exponent_makes_a_number(text, value):
    assert parse_value(text) == value
    assert parse_yaml(f"a: {text}\n", Path("x")).values == {"a": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-7", -7), ("1_000", 1000), (".5", 0.5), ("-1.25", -1.25), ("1.", 1.0)],
)
def test_decimal_numbers(text, value):
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))
    assert str(parse_value("-.inf")) == "-inf"


ODD_NUMBERS = ["0x10", "010", "0b11", "1:30", "1:30.5", "-0x1F", "007"]


@pytest.mark.parametrize("text", ODD_NUMBERS)
def test_other_notations_of_numbers_are_texts_for_every_reader(text):
    """Numbers in YAML 1.1: 010 is 8 there, 1:30 is 90. What is saved must not be one elsewhere."""
    assert parse_value(text) == text
    saved = dump_yaml({"name": text})
    assert parse_yaml(saved, Path("x")).values == yaml.safe_load(saved) == {"name": text}


@pytest.mark.parametrize("text", ["1e-3x", "e3", "2026-01-31", "'1e-3'", "1e", "v1e3"])
def test_what_only_looks_like_a_number_is_a_text(text):
    assert parse_value(text) == text.strip("'")


def test_what_a_key_allows_is_said_in_words():
    from mnft.config import describe

    stages = "a list of one or more of head, finetune, interpolate, or empty"
    assert describe.expected("train.stages") == stages
    assert describe.expected("quantize.keep_float") == "a list of texts, or empty"
    assert describe.expected("schedule.decay_milestones") == "a list of integers at least 1"
    for key in describe.key_paths():
        assert "None" not in str(describe.expected(key)), key


def test_a_set_is_not_blamed_for_another_key(load):
    _, source = load_config(None, ["data.root=x", "optim.lr=1"])
    assert source.place(("optim", "lr")) == "--set optim.lr=1"
    assert source.place(("optim",)) == "--set optim.lr=1"
    assert source.place(("optim", "name")) is None
    _, source = load_config(None, ["data.root=x", "optim={lr: 1.0}"])
    assert source.place(("optim", "lr")) == "--set optim={lr: 1.0}"


def test_the_config_is_frozen(load):
    with pytest.raises(ValidationError, match="frozen"):
        load(DATA).optim.lr = 1.0


# --- overrides


def test_an_override_wins_over_the_file_and_the_file_over_the_default(load):
    text = DATA + "optim:\n  lr: 0.5\n  weight_decay: 0.1\n"
    optim = load(text, "optim.lr=2e-2").optim
    assert (optim.lr, optim.weight_decay, optim.momentum) == (0.02, 0.1, 0.9)


def test_the_later_override_wins(load):
    assert load(DATA, "train.epochs=3", "train.epochs=4").train.epochs == 4
    assert load(DATA, "train.epochs=3", "train={epochs: 4, seed: 7}").train.seed == 7


def test_overrides_reach_empty_sections_lists_and_nested_values(load):
    config = load(
        DATA + "optim:\n",
        "optim.lr=1",
        "augment.scale=[0.5, 0.9]",
        "model.kwargs.width=2",
        "model.kwargs.name=a=b",
        "data.img_size=",
    )
    assert config.optim.lr == 1
    assert config.augment.scale == [0.5, 0.9]
    assert config.model.kwargs == {"width": 2, "name": "a=b"}
    assert config.data.img_size is None


def test_an_override_can_stand_for_the_whole_file(load):
    assert load("", "data.root=photos") == load(DATA)


def test_a_replaced_section_forgets_the_lines_of_its_keys(load):
    message = refused(load, DATA + "optim:\n  lr: 1\n", "optim={lr: -1}")
    assert "--set optim={lr: -1}: optim.lr: found -1" in message


@pytest.mark.parametrize(
    "value", ["[" * 5000, "!!int x", "1" * 5000, "{a: 1, a: 2}", "&x [*x]", "\x1b", "!x y", "a: b:"]
)
def test_a_value_that_cannot_be_read_is_refused_with_its_override(load, value):
    assert refused(load, DATA, f"run.name={value}").startswith(f"--set run.name={value}: ")


@pytest.mark.parametrize("override", ["", "=", "optim.lr", ".lr=1", "optim.=1", "=3"])
def test_an_override_without_key_or_value_is_refused(load, override):
    assert "expected section.key=value" in refused(load, DATA, override)


# --- problems


def test_all_problems_are_told_at_once_in_the_order_of_their_lines(load):
    text = (
        "data:\n  root: 7\n  rot: x\noptim:\n  lr: -1\nshedule:\n  name: cosine\n"
        "model:\n  pretrained: 3\n"
    )
    lines = refused(load, text, "train.epoch=1").splitlines()
    assert lines[0].endswith("some.yaml has 6 problems")
    assert lines[1:] == [
        "  line 2: data.root: found 7, expected a text; a text that looks like something else "
        "needs quotes",
        "  line 3: data.rot: unknown key; did you mean data.root?",
        "  line 5: optim.lr: found -1, expected a number above 0",
        "  line 6: shedule: unknown key; did you mean schedule?",
        "  line 9: model.pretrained: found 3, expected true or false, or a text; a text that "
        "looks like something else needs quotes",
        "  --set train.epoch=1: train.epoch: unknown key; did you mean train.epochs?",
    ]


def test_a_union_that_fails_in_all_branches_is_one_problem(load):
    message = refused(load, DATA + "  workers: many\nmodel:\n  freeze: 1.5\n")
    assert message.count("data.workers") == message.count("model.freeze") == 1
    assert "expected an integer from 0 to 256, or 'auto'" in message


@pytest.mark.parametrize(
    ("written", "suggested"),
    [
        ("learning_rate: 1", "; did you mean optim.lr?"),
        ("zzz: 1", ""),
        ("weight_decay: 1", "; did you mean optim.weight_decay?"),
        ("train: {lr: 1}", "; did you mean optim.lr?"),
        ("train: {batchsize: 1}", "; did you mean train.batch_size?"),
        ("eval: {bach_size: 1}", "; did you mean eval.batch_size?"),
        ("trian: {}", "; did you mean train?"),
    ],
)
def test_unknown_keys_suggest_what_was_meant(load, written, suggested):
    assert refused(load, DATA + written + "\n").endswith(f"unknown key{suggested}")


def test_a_long_value_is_shown_shortened(load):
    assert len(refused(load, DATA + f"train:\n  epochs: {'x' * 5000}\n")) < 300


def test_problems_without_a_file_say_so(load):
    assert refused(load, DATA, "optim.lr=x").startswith("the command line has a problem")


# --- files that are no configs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x 1\nb: *x\n", "line 1: configs may not contain aliases"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key a is given twice, first in line 1"),
        ("a:\n  b: 1\n  b: 1\n", "line 3: the key a.b is given twice, first in line 2"),
        ("a: " + "{b: " * MAX_DEPTH + "1" + "}" * MAX_DEPTH, "such deep nesting"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("- a\n", "line 1: found a list, expected sections such as `data:`"),
        ("# c\nhello\n", "line 2: found 'hello', expected sections"),
        ("? [a]\n: b\n", "line 1: keys must be plain words"),
        ("a: 1\n---\nb: 1\n", "line 2: not valid YAML"),
        ("a: 1\nb: {\n", "line 3: not valid YAML"),
        ("a: 1\nb: \x1b\n", r"line 2: not valid YAML: the character '\x1b' is not allowed"),
        ("a: !!int x\n", "line 1: 'x' cannot be read as a value"),
        ("a: " + "1" * 5000, "cannot be read as a value"),
        ("a: !x {b: 1}\n", "line 1: configs may not contain the tag !x"),
        ("a: !!python/name:os.system ''\n", "the tag !!python/name:os.system"),
    ],
)
def test_yaml_that_configs_may_not_contain_is_refused(text, says):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, Path("some.yaml"))
    assert caught.value.message.startswith("some.yaml")
    assert says in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_nesting_up_to_the_limit_is_read():
    depth = MAX_DEPTH - 1
    assert parse_yaml("a: " + "{b: " * depth + "1" + "}" * depth, Path("x")).values["a"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"data: \xff\n", "not a text file, expected YAML in UTF-8"),
        (b"#" * (MAX_BYTES + 1), "too large"),
    ],
)
def test_files_that_are_no_text_or_too_large(tmp_path, content, says):
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_config(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "flowers.yaml").write_text(DATA)
    with pytest.raises(ConfigError, match="no such config file") as caught:
        load_config(tmp_path / "flower.yml")
    assert caught.value.hint == f"did you mean {tmp_path / 'flowers.yaml'}?"


# --- saving


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optim.lr=1e-5", "optim.betas=[0.9, 0.999]", "train.seed=9223372036854775807"),
        ("model.kwargs={a: [1, 2.5, x], b: {c: null, d: true}}", "model.pretrained=false"),
        ("augment.ratio=[0.7, 1.4142135623730951]", "schedule.decay_milestones=[]"),
    ],
)
def test_a_saved_config_is_the_same_config(load, tmp_path, overrides):
    config = load(DATA, *overrides)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml")[0] == config


NAMES = [
    *(
        "1e3",
        "1e-3",
        "7",
        "true",
        "null",
        "~",
        "no",
        "2026-01-31",
        "a...",
        "...",
        "12:30:45",
        "- a",
    ),
    *(
        "",
        " a ",
        "a: b",
        "a #b",
        "'",
        '"',
        "a\nb",
        "\x1b[31m",
        "żółć",
        "🌸",
        "a\u2028b",
        "&a",
        "*a",
    ),
    *("0x1f", "0o17", "=", "<<", "!x", "x" * 3000, "word " * 700),
]


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_look_like_something_else_are_saved_as_texts(tmp_path, name):
    config = Config(data=DataConfig(root=name))
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml")[0] == config
    assert parse_value(dump_yaml(name, one_line=True)) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_rendered_config_loads_with_its_values(load, name):
    values = {"data": {"root": name}, "optim": {"lr": 1e-5}, "train": {"epochs": 3}}
    text = docs.render_config(values, [f"images: {name}"])
    assert text.splitlines()[0].startswith("# images: ")
    config = load(text)
    assert (config.data.root, config.optim.lr, config.train.epochs) == (name, 1e-5, 3)
    assert config.model == Config(data=DataConfig(root="x")).model


def test_a_rendered_config_shows_every_key_with_its_default(load):
    text = docs.render_config({"data": {"root": "x"}}, [])
    shown = "\n".join(
        line.replace("  # ", "  ", 1) if line.split(":")[0].removeprefix("  # ").isidentifier()
        else line
        for line in text.splitlines()
    )  # fmt: skip
    assert load(shown) == load("data: {root: x}\n")
    assert shown.count("\n  lr: ") == 1


# --- places


def test_an_error_that_names_a_key_gets_its_place():
    source = parse_yaml("data:\n  root: x\nmodel:\n  name: y\n", Path("some.yaml"))
    source.override(("optim", "name"), "z", "--set optim.name=z")
    places = {
        "model.name": "some.yaml, line 4, model.name: no",
        "model.kwargs": "some.yaml, line 3, model.kwargs: no",
        "optim.name": "--set optim.name=z: no",
        "train.device": "some.yaml, default value, train.device: no",
    }
    for key, message in places.items():
        with pytest.raises(ModelError) as caught, source.locating():
            raise ModelError("no", hint="do", key=key)
        assert (caught.value.message, caught.value.hint) == (message, "do")


def test_errors_without_key_and_other_exceptions_pass_as_they_are():
    for error in (ModelError("no"), RuntimeError("bug")):
        with pytest.raises(type(error)) as caught, Source(path=Path("x")).locating():
            raise error
        assert caught.value is error


# --- words and documents


def test_every_key_and_section_has_a_description():
    for name, section in describe.sections().items():
        assert section["description"], name
        for key, field in section["properties"].items():
            assert len(field.get("description", "")) > 15, f"{name}.{key}"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data.img_size", "an integer from 8 to 2048, or empty"),
        ("data.workers", "an integer from 0 to 256, or 'auto'"),
        ("data.val_fraction", "a number above 0 and below 1"),
        ("data.test_fraction", "a number at least 0 and below 1"),
        ("data.mean", "a list of 1 to 3 numbers from 0 to 1, or empty"),
        ("data.crop_mode", "one of center, squash, border, or empty"),
        ("augment.scale", "a list of 2 numbers from 0 to 1"),
        ("model.pretrained", "true or false, or a text"),
        ("model.freeze", "one of none, backbone, or an integer at least 1"),
        ("model.kwargs", "a mapping"),
        ("optim.lr", "a number above 0"),
        ("eval.monitor", "one of accuracy, macro_f1, loss, map, micro_f1"),
        ("run.name", "a text, or empty"),
        ("optim", "a section with keys such as name, lr, weight_decay"),
    ],
)
def test_what_a_key_allows_in_words(key, words):
    assert describe.expected(key) == words


def test_unknown_keys_allow_nothing_and_no_key_is_without_words():
    assert describe.expected("optim.nothing") is describe.expected("nothing") is None
    assert "a value" not in {describe.expected(key) for key in describe.key_paths()}


def test_the_reference_and_the_schema_are_fresh():
    hint = "run: python -m mnft.config.docs"
    assert (ROOT / "docs/configuration.md").read_text("utf-8") == docs.render_reference(), hint
    assert (ROOT / "configs/schema.json").read_text("utf-8") == docs.render_schema(), hint


def test_write_all_writes_both(tmp_path):
    docs.write_all(tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"docs/configuration.md", "configs/schema.json"}


def test_the_reference_names_every_key():
    reference = docs.render_reference()
    for key_path in describe.key_paths():
        assert f"\n| `{key_path.rpartition('.')[2]}` | " in reference


# --- the configs of the repository


def test_there_are_configs():
    assert len(CONFIGS) >= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_of_the_repository(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=schema.json"
    launches = [line for line in lines if line.startswith("# Launch:")]
    assert len(launches) == 1
    words = shlex.split(launches[0].removeprefix("# Launch:"))
    verb = "search" if path.stem.startswith("search_") else "train"
    assert words[:2] == ["mnft", verb]
    assert words[2] == str(path.relative_to(ROOT))
    config, _ = load_config(path, [words[i + 1] for i, w in enumerate(words) if w == "--set"])
    assert config.data.root
    assert bool(config.search.space) == (verb == "search")


@pytest.mark.parametrize(("other", "ours"), sorted(_OTHER_NAMES.items()))
def test_names_of_other_tools_are_understood(tmp_path: Path, other: str, ours: str) -> None:
    assert ours in describe.key_paths()
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {{root: x}}\noptim: {{{other}: 1}}\n")
    with pytest.raises(ConfigError, match=f"optim.{other}: unknown key; did you mean {ours}"):
        load_config(path)
