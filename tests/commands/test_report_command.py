"""`mnft report`: what is there is shown as it is, what is missing is named with its command."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from support.images import COLOURS, MakeFolder, draw, write_image
from support.runs import CLASSES, record_split, save_model
from typer.testing import Result

Cli = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, make_folder: MakeFolder) -> Path:
    """A run folder with three splits of 15 images, and a random model."""
    root = make_folder(splits=("train", "val", "test"), per_class=5)
    noise = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        colour = tuple(int(value) for value in noise.integers(0, 256, 3))
        write_image(path, colour, seed=int(noise.integers(10_000)))  # type: ignore[arg-type]
    folder = tmp_path / "runs" / "colours"
    save_model(folder / "best")
    record_split(folder, root)
    return folder


@pytest.fixture
def evaluate(run_cli: Cli) -> Callable[..., None]:
    def evaluate(run: Path, *options: object) -> None:
        result = run_cli("eval", run, "--device", "cpu", "--workers", 0, *options)
        assert result.exit_code == 0, result.stderr

    return evaluate


def read(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    text = Path(result.stdout.strip()).read_text(encoding="utf-8")
    return html.unescape(text)


def commands(text: str) -> list[str]:
    return re.findall(r'<code class="command">(mnft [^<]*)</code>', text)


def test_the_page_shows_the_figures_of_the_evaluation(
    run: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    evaluate(run)
    page = read(run_cli("report", run))
    metrics = json.loads((run / "eval/metrics.json").read_text())
    assert f'<span class="value">{metrics["accuracy"]:.1%}</span>' in page
    low, high = metrics["accuracy_interval"]["low"], metrics["accuracy_interval"]["high"]
    assert f"95% interval {low:.1%} to {high:.1%}" in page
    mistakes = 15 - round(15 * metrics["accuracy"])
    assert page.count('<li class="shot"') == mistakes > 3
    # Each with its two nearest training images, as pictures, and a heat map.
    assert page.count('alt="training image train/') == 2 * mistakes
    assert page.count('<img class="heat"') == mistakes
    assert "blurring the quarter that a map marks" in page
    for row in metrics["per_class"]:
        assert f'<td class="num" data-v="{row["f1"]}">' in page


def test_what_is_missing_is_named_with_a_command(
    run: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    result = run_cli("report", run)
    page = read(result)
    assert "was not evaluated on test" in page
    assert f"mnft eval {run} --split test" in commands(page)
    assert "mnft eval" in result.stderr
    assert "<h2" in page
    assert 'id="mistakes"' not in page
    assert 'id="data"' in page
    evaluate(run)
    found = commands(read(run_cli("report", run)))
    for start in ("eval", "data check", "export"):
        assert any(command.startswith(f"mnft {start} ") for command in found), start
    assert any(command.endswith("--robustness") for command in found)
    assert any("--unknown" in command for command in found)


def test_the_check_s_findings_are_shown(
    run: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    evaluate(run)
    root = Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["root"])
    shutil.copy(root / "test/blue/000.png", root / "train/blue/copy.png")
    checked = run_cli("data", "check", run / "config.yaml", "-o", run / "check.json")
    assert checked.exit_code == 3  # and the file is written all the same
    page = read(run_cli("report", run))
    assert "test/blue/000.png" in page
    assert "lie in two splits: see Data" in page
    assert "nobody looked for leaks" not in page


def test_the_model_card_has_the_hub_s_front_matter(
    run: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    evaluate(run)
    assert run_cli("report", run).exit_code == 0
    card = (run / "best/README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    metrics = json.loads((run / "eval/metrics.json").read_text())
    assert values["library_name"] == "timm"
    assert values["pipeline_tag"] == "image-classification"
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    assert result["metrics"][0] == {
        "type": "accuracy",
        "value": round(metrics["accuracy"], 6),
    }
    assert f"**accuracy {metrics['accuracy']:.1%}**" in body
    assert "| class | images |" in body
    # The folder still opens, and the card is written again by the next report.
    assert run_cli("predict", "--ckpt", run, run / "../../images/test/blue/000.png").exit_code == 0
    (run / "best/README.md").write_text(card.replace("colours", "other"))
    assert run_cli("report", run).exit_code == 0
    assert (run / "best/README.md").read_text(encoding="utf-8") == card


def test_what_a_person_wrote_is_not_replaced(
    run: Path, run_cli: Cli, evaluate: Callable[..., None], tmp_path: Path
) -> None:
    evaluate(run)
    (run / "best/README.md").write_text("mine\n")
    result = run_cli("report", run)
    assert result.exit_code == 0
    assert (run / "best/README.md").read_text() == "mine\n"
    assert "your own" in result.stderr
    other = tmp_path / "page.html"
    other.write_text("<p>mine</p>")
    refused = run_cli("report", run, "-o", other)
    assert refused.exit_code == 2
    assert "not an earlier report" in refused.stderr
    assert other.read_text() == "<p>mine</p>"


def test_a_newer_model_and_another_split_are_said(
    run: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    evaluate(run)
    evaluate(run, "--split", "val")
    page = read(run_cli("report", run, "--split", "val"))
    assert "these are val images" in page
    assert (run / "report-val.html").is_file()
    save_model(run / "best")
    assert "trained on after this evaluation" in read(run_cli("report", run))


def test_an_image_that_changed_is_not_shown(
    run: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    evaluate(run)
    root = Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["root"])
    before = read(run_cli("report", run)).count('class="frame gone"')
    for path in (root / "test").rglob("*.png"):
        write_image(path, COLOURS["red"], seed=77)
    page = read(run_cli("report", run))
    assert before == 0
    assert page.count('class="frame gone"') == page.count('<li class="shot"') > 3


def test_robustness_is_shown_where_it_was_measured(
    run: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    evaluate(run)
    levels = [{"level": n, "amount": n, "value": 0.5, "low": 0.4, "high": 0.6} for n in (1, 2, 3)]
    found = {
        "figure": "accuracy", "num_images": 15, "clean": {"value": 0.6, "low": 0.4, "high": 0.8},
        "mean": 0.5, "drop": 0.1, "drop_interval": {"low": 0.0, "high": 0.2, "level": 0.95},
        "worst": ["blur"], "advice": "train with blur",
        "corruptions": [{"name": "blur", "unit": "pixels", "mean": 0.5, "levels": levels}],
    }  # fmt: skip
    (run / "eval/robustness.json").write_text(json.dumps(found))
    page = read(run_cli("report", run))
    assert "10.0 points less" in page
    assert "train with blur" in page
    assert not any(command.endswith("--robustness") for command in commands(page))


def test_unknown_images_and_robustness_as_eval_writes_them(
    run: Path, run_cli: Cli, evaluate: Callable[..., None], tmp_path: Path
) -> None:
    for index in range(6):
        write_image(tmp_path / "street" / f"{index}.png", (9, 9, 40 * index), seed=index)
    evaluate(run, "--unknown", tmp_path / "street")
    evaluate(run, "--robustness")
    found = json.loads((run / "eval-street/metrics.json").read_text())["unknown"]
    robustness = json.loads((run / "eval/robustness.json").read_text())
    page = read(run_cli("report", run))
    low, high = found["accepted_interval"]["low"], found["accepted_interval"]["high"]
    assert f"{low:.1%} to {high:.1%}" in page
    assert f"{found['auroc']:.3f}" in page
    assert f"{100 * robustness['drop']:.1f} points less" in page
    assert all(corruption["name"] in page for corruption in robustness["corruptions"])
    assert not any("--unknown" in c or "--robustness" in c for c in commands(page))


def test_hostile_names_and_200_pictures_fit_in_3_mb(
    tmp_path: Path, run_cli: Cli, evaluate: Callable[..., None]
) -> None:
    """Names that are markup or formulas, right-to-left and CJK; the size that is promised."""
    classes = tuple(sorted(["<script>alert(1)", "=1+1", "وردة", "花", "&amp;"]))
    for number, name in enumerate(classes):
        for split, count in (("train", 2), ("test", 60)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draw(1000 * number + index + len(split), (320, 240)).save(folder / f"{index}.png")
    run = tmp_path / "runs" / "hostile"
    save_model(run / "best", classes)
    record_split(run, tmp_path / "images", classes)
    evaluate(run)
    result = run_cli("report", run)
    page = read(result)
    assert page.count('<li class="shot"') == 200
    assert "more are left out here" in page
    assert Path(result.stdout.strip()).stat().st_size < 3_000_000
    raw = Path(result.stdout.strip()).read_text(encoding="utf-8")
    assert "<script>alert(1)" not in raw
    assert "&lt;script&gt;alert(1)" in raw
    assert page.count('class="frame gone"') == 0  # every path was found again
    targets = set(re.findall(r'href="#(group-[^"]+)"', raw))
    assert targets
    assert targets <= set(re.findall(r'id="(group-[^"]+)"', raw))
    few = read(run_cli("report", run, "--images", 10, "-o", "few.html"))
    assert few.count('<li class="shot"') == 10


def test_a_trained_run_has_curves_and_provenance(train: Any, run_cli: Cli) -> None:
    assert train(name="small").exit_code == 0
    run = train.run("small")
    page = read(run_cli("report", run))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [entry for entry in log if entry["event"] == "epoch"]
    for entry in epochs:
        assert f'<td class="num">{entry["val_loss"]:.4g}</td>' in page
    assert f"mnft train {run / 'written.yaml'} --set run.name=again" in commands(page)
    record = json.loads((run / "best/mnft.json").read_text())
    assert record["sha256"] in page
    assert "model.name" in page


def test_a_run_without_a_test_split_says_so(train: Any, run_cli: Cli) -> None:
    assert train(name="small").exit_code == 0
    run = train.run("small")
    assert run_cli("eval", run, "--device", "cpu").exit_code == 0
    page = read(run_cli("report", run))
    assert "There is no test split" in page
    assert "these are val images" in page


def test_wrong_input(run: Path, run_cli: Cli, tmp_path: Path) -> None:
    for args, code, words in [
        ((), 2, "found no model"),
        ((tmp_path / "none",), 1, "does not exist"),
        ((run, "--split", "tset"), 2, "did you mean test"),
        ((run, "-o", tmp_path), 2, "is a folder"),
    ]:
        result = run_cli("report", *args)
        assert result.exit_code == code
        assert words in " ".join(result.stderr.split())
    shutil.copytree(run / "best", tmp_path / "alone")
    result = run_cli("report", tmp_path / "alone")
    assert result.exit_code == 1
    assert "does not lie in a run" in " ".join(result.stderr.split())
    (run / "eval").mkdir()
    (run / "eval/metrics.json").write_text("{")
    assert run_cli("report", run).exit_code == 1


def test_predict_explains_each_answer(run: Path, run_cli: Cli, tmp_path: Path) -> None:
    images = [tmp_path / f"images/test/{name}/000.png" for name in CLASSES]
    result = run_cli("predict", "--ckpt", run, "--explain", "why", *images, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4
    written = sorted(path.name for path in Path("why").iterdir())
    answers = [line.split(",")[1] for line in result.stdout.splitlines()[1:]]
    assert len(written) == 3  # all are called 000.png, and none is lost
    for name in written:
        assert name.split("-")[1].removesuffix(".png") in answers
        with Image.open(Path("why") / name) as image:
            assert image.size == (2 * 24 + 8, 24)
    missing = run_cli("predict", "--ckpt", run, "--explain", "why", tmp_path / "no.png")
    assert missing.exit_code == 1


@pytest.mark.slow  # each model is measured in a process of its own
def test_compare_writes_a_page_of_several_models(run: Path, run_cli: Cli) -> None:
    shutil.copytree(run / "best", run / "last")
    result = run_cli("compare", run / "best", run / "last", "--html", "-o", "out", "--rounds", 1)
    assert result.exit_code == 0, result.stderr
    page = html.unescape(Path("out/comparison.html").read_text(encoding="utf-8"))
    record = json.loads(Path("out/comparison.json").read_text())
    for model in record["models"]:
        assert model["model"] in page
        assert f'data-v="{model["latency_median_ms"]}"' in page
    assert page.count(">100.0%<") + page.count("<bdi>100.0%</bdi>") >= 4  # the same model twice
    again = run_cli("compare", run / "best", run / "last", "-o", "out", "--rounds", 1)
    assert again.exit_code == 0, again.stderr
    assert not Path("out/comparison.html").exists()
