"""Properties that hold for any input: splits, metrics, augmentation, model folders."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mnft.config.schema import AugmentConfig, ModelConfig
from mnft.data.batches.augment import choose_params, sample_params
from mnft.data.batches.resample import adjust, resample_on_cpu
from mnft.data.decode import Inspection
from mnft.data.folder import FolderScan, ImageFile
from mnft.data.manifest import Manifest, build_manifest
from mnft.data.splits import choose_fractions, compute_split_counts
from mnft.data.transforms import build_eval_transform, build_train_transform
from mnft.errors import DataError
from mnft.model.bundle import ModelCard, load_bundle, save_bundle
from mnft.model.factory import build_model
from mnft.preprocessing import Preprocessing
from mnft.tasks.classify import metrics
from mnft.tasks.classify.labels import RULES

steady = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=list(HealthCheck),
)

# Splits

SPLITS = ("train", "val", "test")
classes = st.dictionaries(st.sampled_from("abcde"), st.integers(3, 60), min_size=2)
shares = st.tuples(st.floats(0.05, 0.4), st.sampled_from([0.0, 0.1, 0.15, 0.3]))


def make_split(contents: dict[str, str], val: float, test: float, seed: int) -> Manifest:
    """Split files given as class/name -> content."""
    images = tuple(ImageFile(path, path.split("/")[0], None) for path in sorted(contents))
    found = {
        path: Inspection(hashlib.sha256(content.encode()).hexdigest(), (8, 8), None)
        for path, content in contents.items()
    }
    scan = FolderScan(Path("root"), images, (), ())
    return build_manifest(scan, found, RULES, val_fraction=val, test_fraction=test, seed=seed)


def make_files(counts: dict[str, int], copies: int = 0) -> dict[str, str]:
    """Different contents, and some copies within each class."""
    files = {f"{c}/{i}": f"{c}{i}" for c, count in counts.items() for i in range(count)}
    return files | {f"{c}/copy{i}": f"{c}{i}" for c in counts for i in range(min(copies, 3))}


@steady
@given(classes, shares, st.integers(0, 9), st.integers(0, 3))
def test_splits_are_stratified_disjoint_and_complete(
    counts: dict[str, int], shares: tuple[float, float], seed: int, copies: int
) -> None:
    val, test = shares
    fractions = choose_fractions((), val_fraction=val, test_fraction=test)
    wanted = {c: compute_split_counts(n, fractions) for c, n in counts.items()}
    files = make_files(counts, copies)
    if None in wanted.values():
        with pytest.raises(DataError, match="too few to split"):
            make_split(files, val, test, seed)
        return
    manifest = make_split(files, val, test, seed)
    assert sorted(s.path for s in manifest.samples) == sorted(files)  # complete, each file once
    held = {name: {s.sha256 for s in manifest.split(name)} for name in SPLITS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not held[one] & held[other]  # disjoint by content
    different = {(s.label, s.split, s.sha256) for s in manifest.samples}
    found = Counter((c, split) for c, split, _ in different)
    for label, number in counts.items():  # stratified
        for name, share in fractions.items():
            assert found[label, name] == max(1, round(share * number))
        assert found[label, "train"] >= 1


@steady
@given(classes, shares, st.integers(0, 9), st.integers(1, 20))
def test_splits_are_stable_under_adding_files(
    counts: dict[str, int], shares: tuple[float, float], seed: int, added: int
) -> None:
    """Classes without new files stay as they are; in the others only images at the cuts move."""
    val, test = shares
    fractions = choose_fractions((), val_fraction=val, test_fraction=test)
    grown = min(counts)
    before, after = counts[grown], counts[grown] + added
    was, now = compute_split_counts(before, fractions), compute_split_counts(after, fractions)
    assume(all(compute_split_counts(n, fractions) for n in counts.values()))
    assert was is not None
    assert now is not None
    files = make_files(counts)
    more = files | {f"{grown}/new{i}": f"new{i}" for i in range(added)}
    first = {s.path: s.split for s in make_split(files, val, test, seed).samples}
    second = {s.path: s.split for s in make_split(more, val, test, seed).samples}
    moved = [path for path in files if first[path] != second[path]]
    assert all(path.startswith(f"{grown}/") for path in moved)
    # At each cut at most as many images pass as files came, or as the split has grown by.
    names = list(fractions)
    cuts = [sum(c[n] for n in names[: k + 1]) for c in (now, was) for k in range(len(names))]
    growth = [a - b for a, b in zip(cuts[: len(names)], cuts[len(names) :], strict=True)]
    assert len(moved) <= sum(max(added, g) for g in growth)


def test_adding_a_tenth_to_a_class_moves_few_of_its_images() -> None:
    """A figure for the documentation: of 1,000 images, when 100 more come."""
    first, second = (
        {s.path: s.split for s in make_split(make_files(counts), 0.15, 0.15, 0).samples}
        for counts in ({"a": 1000, "b": 9}, {"a": 1100, "b": 9})
    )
    moved = Counter((first[p], second[p]) for p in first if first[p] != second[p])
    print(moved)
    assert sum(moved.values()) <= 30


# Metrics


@st.composite
def outputs(draw_: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits, also with equal ones, and targets, also of few of the classes."""
    seed = draw_(st.integers(0, 2**32))
    num_classes, num_images = draw_(st.integers(2, 30)), draw_(st.integers(1, 300))
    rng = np.random.default_rng(seed)
    scale = draw_(st.sampled_from([0.01, 1.0, 30.0]))
    logits = rng.normal(scale=scale, size=(num_images, num_classes)).astype(np.float32)
    if draw_(st.booleans()):
        logits = np.round(logits)
    present = rng.choice(num_classes, size=draw_(st.integers(1, num_classes)), replace=False)
    return logits, rng.choice(present, size=num_images)


@steady
@given(outputs())
def test_metrics_equal_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = case
    labels = np.arange(logits.shape[1])
    predictions = logits.argmax(axis=1)
    result = metrics.compute_evaluation(logits, targets, [f"c{i}" for i in labels])
    assert result.accuracy == accuracy_score(targets, predictions)
    assert result.confusion == confusion_matrix(targets, predictions, labels=labels).tolist()
    expected = precision_recall_fscore_support(
        targets, predictions, labels=labels, average=None, zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [getattr(row, name) for row in result.per_class] == pytest.approx(values)
    for average in ("macro", "weighted"):
        wanted = precision_recall_fscore_support(
            targets, predictions, labels=np.unique(targets), average=average, zero_division=0
        )
        found = getattr(result, average)
        assert (found.precision, found.recall, found.f1) == pytest.approx(wanted[:3])
    epoch = metrics.compute_epoch_metrics(logits, targets)
    macro = f1_score(
        targets, predictions, labels=np.unique(targets), average="macro", zero_division=0
    )
    assert epoch.macro_f1 == pytest.approx(macro)
    assert epoch.accuracy == result.accuracy
    probabilities = metrics.softmax(logits)
    if probabilities.min() > 1e-12:  # scikit-learn clips below
        assert epoch.loss == pytest.approx(log_loss(targets, probabilities, labels=labels))


@steady
@given(outputs(), st.integers(1, 6))
def test_top_k_equals_scikit_learn(case: tuple[np.ndarray, np.ndarray], k: int) -> None:
    logits, targets = case
    num_classes = logits.shape[1]
    assume(k < num_classes)
    assume(num_classes > 2)  # of two classes scikit-learn wants one score
    # Among equal logits scikit-learn has another order than argmax.
    assume(all(len(np.unique(row)) == len(row) for row in logits))
    expected = top_k_accuracy_score(targets, logits, k=k, labels=np.arange(num_classes))
    assert metrics.compute_top_k(logits, targets, k=k) == pytest.approx(expected)


# Augmentation

SQUARE = Preprocessing((3, 64, 64), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875)
augmentations = st.builds(
    AugmentConfig,
    scale=st.sampled_from([[0.01, 1.0], [0.35, 1.0], [1.0, 1.0], [0.08, 0.3]]),
    ratio=st.sampled_from([[0.75, 1.33], [1.0, 1.0], [0.1, 10.0]]),
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    vflip=st.sampled_from([0.0, 1.0]),
    color_jitter=st.sampled_from([0.0, 0.4, 1.0]),
    random_erasing=st.sampled_from([0.0, 1.0]),
)
sides = st.integers(1, 90)


@steady
@given(augmentations, st.lists(st.tuples(sides, sides), min_size=1, max_size=5), st.integers())
def test_draws_stay_within_the_image(
    augment: AugmentConfig, sizes: list[tuple[int, int]], seed: int
) -> None:
    seeds = [(seed + number) % 2**63 for number in range(len(sizes))]
    shapes = np.array(sizes, dtype=np.int64)
    for kind in (augment, "centre", None):
        params = choose_params(kind, seeds, shapes, SQUARE)
        top, left, height, width = params.boxes.numpy().T
        assert params.boxes.dtype == torch.int64
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (height >= 1).all()
        assert (width >= 1).all()
        assert (top + height <= shapes[:, 0]).all()
        assert (left + width <= shapes[:, 1]).all()
        assert (params.erase >= 0).all()
        assert (params.erase[:, :2] + params.erase[:, 2:] <= 1 + 1e-9).all()
        assert (params.jitter >= 0).all()
        assert (params.jitter <= 2).all()


@steady
@given(
    augmentations,
    st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    st.integers(0, 2**62),
    st.sampled_from([1, 3]),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
def test_batches_keep_shape_type_and_range(
    augment: AugmentConfig,
    sizes: list[tuple[int, int]],
    seed: int,
    channels: int,
    interpolation: str,
) -> None:
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (h, w, channels), dtype=np.uint8) for h, w in sizes]
    copies = [image.copy() for image in images]
    params = sample_params([seed + n for n in range(len(sizes))], np.array(sizes), augment)
    pixels = resample_on_cpu(images, params, (20, 24), interpolation)
    assert pixels.shape == (len(sizes), channels, 20, 24)
    assert pixels.dtype == torch.uint8
    for number, (top, left, height, width) in enumerate(params.boxes.tolist()):
        if interpolation == "bilinear":  # which never goes beyond what it averages
            crop = images[number][top : top + height, left : left + width]
            assert pixels[number].min() >= crop.min()
            assert pixels[number].max() <= crop.max()
    varied = adjust(pixels, params, augment, (0.5,) * channels)
    assert varied.shape == pixels.shape
    assert varied.dtype == pixels.dtype
    real = adjust(pixels.float(), params, augment, (0.5,) * channels)
    assert real.min() >= 0
    assert real.max() <= 255
    assert all(np.array_equal(a, b) for a, b in zip(images, copies, strict=True))


@steady
@given(
    augmentations,
    st.sampled_from(["none", "rand_augment", "trivial_augment", "aug_mix"]),
    sides,
    sides,
    st.sampled_from([1, 3]),
    st.sampled_from(["center", "squash", "border"]),
)
def test_transforms_keep_shape_and_type(
    augment: AugmentConfig, policy: str, height: int, width: int, channels: int, crop_mode: str
) -> None:
    augment = AugmentConfig.model_validate(augment.model_dump() | {"policy": policy})
    preprocessing = Preprocessing(
        (channels, 16, 16), (0.5,) * channels, (0.5,) * channels, "bilinear", 0.875, crop_mode
    )
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for transform in (
        build_train_transform(augment, preprocessing),
        build_eval_transform(preprocessing),
    ):
        made = transform(image)
        assert made.shape == (channels, 16, 16)
        assert made.dtype == torch.uint8
    assert np.array_equal(np.asarray(image), pixels)


# Model folders

SMALL = {
    "mobilenetv1_025",
    "mobilenetv2_035",
    "mobilenetv3_small_035",
    "mobilenetv4_conv_small_035",
}


def list_mobilenets() -> list[str]:
    """All of timm and, as they register with it, of mnft."""
    import mnft.model.widths  # noqa: F401

    return timm.list_models("*mobilenet*")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in SMALL else [pytest.mark.slow]) for n in list_mobilenets()],
)
def test_the_model_folder_of_every_mobilenet_round_trips(name: str, tmp_path: Path) -> None:
    names = ("blue", "green", "red")
    torch.manual_seed(0)
    config = ModelConfig(name=name, pretrained=False)
    built = build_model(config, num_classes=3, img_size=64)
    card = ModelCard(
        built.architecture, built.model_args, built.preprocessing, names, built.pretrained_cfg
    )
    save_bundle(tmp_path / "model", built.model.state_dict(), card, {})
    opened = load_bundle(tmp_path / "model")
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert opened.labels == names
    assert opened.preprocessing == built.preprocessing
    images = torch.randn(2, *built.preprocessing.input_size)
    with torch.inference_mode():
        expected = built.model.eval()(images)
        if not name.endswith("_enc"):  # an encoder has no classes
            assert expected.shape == (2, 3)
        assert expected.isfinite().all()
        assert torch.equal(opened.model(images), expected)
        assert torch.equal(plain(images), expected)


def test_all_mobilenets_are_tried() -> None:
    assert len(list_mobilenets()) >= 50
    assert set(list_mobilenets()) >= SMALL
