"""The space of a search: what it reads, what it refuses with its line, and how points are drawn."""

from __future__ import annotations

import random

import pytest

from mnft.config.load import load_config
from mnft.errors import ConfigError
from mnft.search.points.checks import build_space
from mnft.search.points.space import Dimension, Space, list_overrides

HEAD = "data:\n  root: photos\nsearch:\n  method: {method}\n  space:\n"


@pytest.fixture
def read(tmp_path):
    """A function (lines of the space, method, more) that gives the space."""

    def read(*lines: str, method: str = "random", more: str = "", sets: tuple[str, ...] = ()):
        path = tmp_path / "some.yaml"
        text = HEAD.format(method=method) + "".join(f"    {line}\n" for line in lines) + more
        path.write_text(text, encoding="utf-8")
        return build_space(*load_config(path, sets))

    return read


def test_lists_and_ranges_are_read(read):
    space = read(
        "model.name: [lenet5, mobilenetv2_100]",
        "optim.lr: {low: 1e-4, high: 1e-2, log: true}",
        "train.epochs: {low: 2, high: 4}",
        "augment.mixup: {low: 0, high: 0.3, step: 0.1}",
    )
    name, lr, epochs, mixup = space.dimensions
    assert name.choices == ("lenet5", "mobilenetv2_100")
    assert (lr.low, lr.high, lr.log, lr.integer) == (1e-4, 1e-2, True, False)
    assert epochs.integer
    assert mixup.choices == (0.0, 0.1, 0.2, 0.3)
    assert space.size is None


def test_whole_bounds_of_a_real_key_leave_it_real(read):
    (dimension,) = read("optim.weight_decay: {low: 0, high: 1}").dimensions
    assert not dimension.integer


def test_set_names_a_key_of_the_space(read):
    space = read("optim.lr: [1e-3]", sets=("search.space.train.epochs=[1, 2]",))
    assert [dimension.key for dimension in space.dimensions] == ["optim.lr", "train.epochs"]


STAGES = "train:\n  stages: [head]\n"
PLAIN = "recipe: plain\n"


@pytest.mark.parametrize(
    ("line", "method", "more", "words"),
    [
        ("optim.rl: [1]", "random", "", ("line 6", "optim.rl", "unknown key")),
        ("optim.lr: [0.1, -1]", "random", "", ("line 6: optim.lr", "-1", "above 0")),
        ("optim.lr: {low: -1, high: 1}", "random", "", ("line 6: optim.lr", "-1")),
        ("optim.lr: {low: 0, high: 1, log: true}", "random", "", ("line 6", "more than 0")),
        ("optim.lr: {low: 1, high: 0.1}", "random", "", ("line 6", "low below high")),
        ("optim.lr: {low: 1, top: 2}", "random", "", ("line 6", "{low: 1e-4")),
        ("optim.lr: 0.1", "random", "", ("line 6", "expected a list")),
        ("optim.lr: []", "random", "", ("line 6", "empty list")),
        ("optim.lr: [0.1, 0.1]", "random", "", ("line 6", "0.1 twice")),
        ("optim.lr: {low: 0.1, high: 1}", "grid", "", ("line 6", "step")),
        ("train.epochs: [1.5]", "random", "", ("line 6: train.epochs", "1.5", "integer")),
        ("train.seed: [1, 2]", "random", "", ("line 6", "search.seeds")),
        ("data.val_fraction: [0.1, 0.2]", "random", "", ("line 6", "the same images")),
        ("quantize.images: [1, 2]", "random", "", ("line 6", "no effect on a training")),
        ("search.trials: [1, 2]", "random", "", ("line 6", "no effect on a training")),
        ("optim.lr: [0.1, 0.2]", "random", STAGES, ("line 6", "train.stages is [head]")),
        ("train.epochs: [1, 2]", "random", STAGES, ("line 6", "train.stages is [head]")),
        ("augment.mixup: [0, 0.2]", "random", STAGES, ("line 6", "train.stages is [head]")),
        ("distill.temperature: [1, 2]", "random", "", ("line 6", "distill.teacher is empty")),
        ("augment.magnitude: [1, 2]", "random", "", ("line 6", "augment.policy")),
        ("schedule.decay_rate: [0.1, 0.2]", "random", "", ("line 6", "schedule.name is cosine")),
        ("schedule.min_lr: [0, 1e-5]", "random", PLAIN, ("line 6", "schedule.name is none")),
        ("optim.momentum: [0.8, 0.9]", "random", "", ("line 6", "betas")),
        (
            "schedule.warmup_epochs: [1, 5]",
            "random",
            "train:\n  epochs: 3\n",
            ("line 6: schedule.warmup_epochs", "less than train.epochs (3)"),
        ),
    ],
)
def test_what_cannot_be_tried_is_refused_with_its_line(read, line, method, more, words):
    with pytest.raises(ConfigError) as caught:
        read(line, method=method, more=more)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_all_problems_are_told_at_once(read):
    with pytest.raises(ConfigError) as caught:
        read("optim.lr: [-1]", "train.seed: [1]", "train.epoch: [1]")
    assert [f"line {n}:" in caught.value.message for n in (6, 7, 8)] == [True] * 3
    assert "3 problems" in caught.value.message


@pytest.mark.parametrize(
    "lines",
    [
        ("train.stages: [[head], [head, finetune]]", "optim.lr: [0.1, 0.2]"),
        ("optim.name: [sgd, adamw]", "optim.momentum: [0.8, 0.9]"),
        ("schedule.name: [none, step]", "schedule.decay_rate: [0.1, 0.2]"),
        ("distill.teacher: [null, large]", "distill.temperature: [1, 2]"),
    ],
)
def test_a_key_that_another_one_wakes_is_allowed(read, lines):
    assert len(read(*lines).dimensions) == 2


def test_a_wrong_value_is_found_among_more_combinations_than_are_tried(read):
    lines = [f"{key}: [0, 0.1, 0.2, 0.3, 0.4]" for key in ("augment.hflip", "augment.vflip")]
    lines += ["augment.mixup: [0, 0.1, 0.2, 0.3, 0.4]", "augment.cutmix: [0, 1, 2, 3, -4]"]
    with pytest.raises(ConfigError, match=r"line 9: augment.cutmix: found -4"):
        read(*lines)


def test_an_empty_space_is_refused(read):
    with pytest.raises(ConfigError) as caught:
        build_space(*load_config(None, ["data.root=photos"]))
    assert caught.value.key == "search.space"


def test_values_survive_their_storage(read):
    space = read("augment.scale: [[0.1, 1], [0.5, 1.0]]", "model.pretrained: [true, weights.pt]")
    for index in range(4):
        point = space.point(index)
        assert space.decode(space.encode(point)) == point
        assert list_overrides(point)[0].startswith("augment.scale=[")
    assert len({str(space.point(index)) for index in range(4)}) == 4


def test_draws_lie_in_their_range():
    generator = random.Random(0)
    log = Dimension("optim.lr", "", None, 1e-4, 1e-2, log=True)
    values = [log.draw(generator) for _ in range(2_000)]
    assert min(values) >= 1e-4
    assert max(values) <= 1e-2
    # Even in the logarithm: half lie below the geometric mean.
    assert 0.46 < sum(value < 1e-3 for value in values) / len(values) < 0.54
    whole = Dimension("train.epochs", "", None, 1, 4, integer=True)
    assert {whole.draw(generator) for _ in range(200)} == {1, 2, 3, 4}
    whole = Dimension("train.epochs", "", None, 1, 4, integer=True, log=True)
    assert {whole.draw(generator) for _ in range(200)} == {1, 2, 3, 4}
    assert Space((whole,)).size == 4
