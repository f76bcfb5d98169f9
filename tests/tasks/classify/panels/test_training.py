"""The training curve: what is drawn, where, and that it never fails a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mnft.results import EpochResult
from mnft.runs.folder import RunFolder
from mnft.runs.writer import draw_curve
from mnft.tasks import open_task
from mnft.tasks.classify.panels.training import plot_training

pytestmark = pytest.mark.plots


def result(epoch: int, *, best: bool = False, stage: str = "finetune") -> EpochResult:
    share = 0.5 + 0.04 * epoch
    figures = {
        "train_loss": 2.0 - 0.1 * epoch,
        "train_accuracy": share,
        "val_loss": 1.9 - 0.1 * epoch,
        "val_accuracy": share - 0.05,
        "val_macro_f1": share - 0.1,
    }
    return EpochResult(epoch, 5, figures, 0.001, 100.0, 1.0, best, stage)


CURVE = "training_curve.png"
HEAD = result(0, best=True, stage="head")


@pytest.fixture(name="figures")
def fixture_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        drawn.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def test_loss_and_accuracy_with_the_head_and_the_best_epoch_marked(tmp_path, figures):
    results = [HEAD, result(1), result(2, best=True), result(3)]
    plot_training(results, tmp_path / "x.png", monitor="accuracy")
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > 2 * image.height > 600
    losses, shares = figures[0].axes
    assert losses.get_ylabel() == "loss (cross-entropy in nats)"
    assert shares.get_ylabel() == "accuracy in %"
    assert shares.get_title("left") == ("best by accuracy: epoch 2 (validation accuracy 53.00%)")
    lines = {line.get_label(): line for line in losses.lines}
    assert list(lines["validation"].get_xdata()) == [0, 1, 2, 3]
    assert list(lines["validation"].get_ydata()) == [r.figures["val_loss"] for r in results]
    # The head's training loss is another one than that of the epochs: no line between them.
    assert list(lines["training"].get_xdata()) == [1, 2, 3]
    for axes in (losses, shares):
        assert len(axes.patches) == 1  # the band of the head
        assert any(list(line.get_xdata()) == [2, 2] for line in axes.lines)
        assert axes.xaxis.get_major_formatter()(0) == "head"


def test_other_metrics_and_no_head(tmp_path, figures):
    results = [result(1, best=True), result(2)]
    plot_training(results, tmp_path / "x.png", monitor="macro_f1")
    shares = figures[0].axes[1]
    assert "validation, macro F1" in [line.get_label() for line in shares.lines]
    assert shares.get_title("left").startswith("best by macro F1: epoch 1 ")
    assert not shares.patches
    plot_training([HEAD, result(1)], tmp_path / "x.png", monitor="loss")
    title = figures[1].axes[1].get_title("left")
    assert title.startswith("best by loss: the head stage ")


def test_one_result_is_no_curve(tmp_path):
    draw_curve(RunFolder(tmp_path), open_task(("a", "b")), [HEAD], "accuracy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("x"), MemoryError()])
def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, caplog, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(Figure, "savefig", fail)
    draw_curve(RunFolder(tmp_path), open_task(("a", "b")), [HEAD, result(1)], "accuracy")
    assert f"{CURVE} was not drawn" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_training_draws_its_curve_once_at_its_end(
    run_cli, make_folder, tmp_path, monkeypatch, caplog
):
    make_folder(splits=("train", "val"), per_class=4)
    (tmp_path / "x.yaml").write_text(
        "data: {root: images, img_size: 32, workers: 0}\n"
        "model: {name: lenet5, pretrained: false}\n"
        "train: {epochs: 2, batch_size: 6, device: cpu}\n"
    )
    trained = run_cli("train", "x.yaml")
    assert trained.exit_code == 0, trained.stderr
    with Image.open(tmp_path / "runs/x" / CURVE) as image:
        image.load()
    monkeypatch.setattr(
        Figure, "savefig", lambda *_a, **_k: (_ for _ in ()).throw(OSError(28, "full"))
    )
    again = run_cli("train", "x.yaml")
    assert again.exit_code == 0, again.stderr
    assert "training_curve.png was not drawn" in caplog.text
    assert again.stdout.strip() == str(Path("runs/x-2/best"))
    assert not (tmp_path / "runs/x-2" / CURVE).exists()


def test_training_starts_without_matplotlib():
    code = "import sys, mnft.commands.train; print('matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
