"""Tables of labels: columns, splits, groups, several labels, and rows that cannot be used."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mnft.config.data import DataConfig
from mnft.data import readers
from mnft.data.check.report import check_dataset
from mnft.data.folder import FolderScan, ImageFile
from mnft.data.prepare import prepare_manifest
from mnft.errors import ConfigError, DataError
from mnft.tasks.classify.labels import RULES

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table, and an image for each path in its first column that is not there yet."""

    def write(
        header: str, *rows: str, name: str = "labels.csv", images: Sequence[str] | None = None
    ) -> Path:
        table = tmp_path / name
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        first = [row.split(",")[0].strip() for row in rows]
        for number, path in enumerate(first if images is None else images):
            file = table.parent / path
            if path and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number * 7 % 256, number % 256, 99)).save(file)
        return table

    return write


def read(table: Path, **config: Any) -> FolderScan:
    return readers.read(DataConfig(root=str(table), **config))


def labels(scan: FolderScan) -> dict[str, str]:
    return {image.path: image.label for image in scan.images}


def reasons(scan: FolderScan) -> list[str]:
    return [f"{row.path}: {row.reason}" for row in scan.unusable]


@pytest.mark.parametrize(
    "header", ["path,label", "file_name,class", "filename, Label", "IMAGE,Class"]
)
def test_columns_with_usual_names(write: Write, header: str) -> None:
    table = write(header, "b.png, cat", "./a/c.png,dog ")
    scan = read(table)
    assert scan.images == (
        ImageFile("a/c.png", "dog", None, line=3),
        ImageFile("b.png", "cat", None, line=2),
    )
    assert (scan.root, scan.table, scan.task) == (table.parent, table, "classify")
    assert (scan.unusable, scan.names, scan.splits) == ((), (), ())


def test_columns_by_the_config(write: Write) -> None:
    table = write("shot,label,kind,part,film", "a.png,x,cat,Training,f1", "b.png,x,dog,valid,f2")
    columns = {"path": "shot", "label": "kind", "split": "part", "group": "film"}
    scan = read(table, columns=columns)
    assert [(i.label, i.split, i.group) for i in scan.images] == [
        ("cat", "train", "f1"),
        ("dog", "val", "f2"),
    ]
    for what in ("path", "label", "split", "group"):
        with pytest.raises(DataError, match="no column 'nothing'; found shot, label") as error:
            read(table, columns=columns | {what: "nothing"})
        assert error.value.key == f"data.columns.{what}"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"lable": "x"}, "found 'lable', expected some of path, label"),
        ({"label": ["x"]}, "expected the name of one column"),
        ({"labels": "x"}, "expected a list of columns"),
        ({"label": "a", "labels": ["b"]}, "expected one of them"),
    ],
)
def test_columns_that_cannot_be(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(root="x", columns=columns)


def test_tables_of_excel_and_tabs(write: Write, tmp_path: Path) -> None:
    paths = ["a.png", "b.png"]
    table = write("path;label", "a.png;1,5", "b.png;2", images=paths)
    assert labels(read(table)) == {"a.png": "1,5", "b.png": "2"}
    table = write("path\tlabel", "a.png\tone; two", name="labels.tsv", images=paths)
    assert labels(read(table, separator="")) == {"a.png": "one; two"}
    (tmp_path / "labels.csv").write_bytes("\ufeffpath,label\r\na.png,cat\r\n".encode())
    assert labels(read(tmp_path / "labels.csv")) == {"a.png": "cat"}
    (tmp_path / "labels.csv").write_bytes("path,label\na.png,Stra\xdfe\n".encode("latin-1"))
    with pytest.raises(DataError, match="not text in UTF-8") as error:
        read(tmp_path / "labels.csv")
    assert "Excel" in str(error.value.hint)
    (tmp_path / "labels.csv").write_text('path,label\na.png,"cat\n')
    with pytest.raises(DataError, match=r"labels.csv, line \d: "):
        read(tmp_path / "labels.csv")


def test_a_name_in_two_forms_of_unicode_is_one_label(write: Write) -> None:
    scan = read(write("path,label", "a.png,caf\u00e9", "b.png,cafe\u0301"))
    assert set(labels(scan).values()) == {"caf\u00e9"}


def test_lines_are_those_of_an_editor(write: Write) -> None:
    table = write("path,label,note", 'a.png,cat,"two', 'lines"', "", "x.png,dog,", images=["a.png"])
    scan = read(table)
    assert [image.line for image in scan.images] == [2]
    assert reasons(scan) == ["x.png: labels.csv, line 5: no such file"]


def test_rows_that_cannot_be_used(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    table = write(
        "path,label,split",
        "a.png,cat,train",
        "b.png,dog,dev2",
        ",dog,train",
        "c.png,dog",
        "d.png,dog,train,more",
        "missing.png,dog,train",
        "folder,dog,train",
        "e.png,,train",
        "f.png,cat,",
        images=[f"{name}.png" for name in "abcdef"],
    )
    scan = RULES.apply(read(table))
    assert labels(scan) == {"a.png": "cat"}
    assert reasons(scan) == [
        "b.png: labels.csv, line 3: split 'dev2', expected train, val or test",
        "labels.csv: labels.csv, line 4: no path",
        "c.png: labels.csv, line 5: found 2 cells, expected 3",
        "d.png: labels.csv, line 6: found 4 cells, expected 3",
        "missing.png: labels.csv, line 7: no such file",
        "folder: labels.csv, line 8: not a file",
        "f.png: labels.csv, line 10: split '', expected train, val or test",
        "e.png: labels.csv, line 9: no class",
    ]


def test_a_path_that_stands_there_twice(write: Write) -> None:
    rows = [
        "a.png,cat,g1",
        "b.png,cat,g1",
        "./a.png,cat,g1",
        "b.png,dog,g1",
        "c.png,x,g1",
        "c.png,x,g2",
    ]
    scan = read(write("path,label,group", *rows))
    assert labels(scan) == {"a.png": "cat"}
    assert reasons(scan) == [
        "b.png: labels.csv, lines 3 and 5: the same path with another label",
        "c.png: labels.csv, lines 6 and 7: the same path with another split or group",
    ]


def test_windows_paths_and_paths_elsewhere(write: Write, tmp_path: Path) -> None:
    table = write("path,label", name="tables/labels.csv", images=["a/b.png"])
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    table.write_text(f"path,label\na\\b.png,cat\n../c.png,dog\n{tmp_path}/c.png,dog\n")
    assert list(labels(read(table))) == ["../c.png", f"{tmp_path}/c.png", "a/b.png"]


def test_several_labels_in_a_cell(write: Write) -> None:
    table = write("path,labels", "a.png,hat; beard", "b.png,beard;beard", "c.png,", "d.png,hat")
    scan = read(table)
    assert labels(scan) == {"a.png": "beard;hat", "b.png": "beard", "c.png": "", "d.png": "hat"}
    assert (scan.task, scan.names) == ("multilabel", ())
    with pytest.raises(DataError, match="its labels are for task: multilabel") as error:
        RULES.apply(scan)
    assert error.value.key == "task"
    table.write_text("path,labels\na.png,hat|beard\n")
    assert labels(read(table, separator="|")) == {"a.png": "beard;hat"}


def test_a_column_for_each_label(write: Write) -> None:
    """Roboflow's form: blanks after commas; a cell that is empty, -1 or NaN is not known."""
    table = write(
        "filename, beard, hat, age, when",
        "a.png, 1, 0, 33, 0",
        "b.png, 0, 0, 20, 2",
        "c.png, , True, 5, 1",
        "d.png, 1.0, -1, 6, 1",
    )
    scan = read(table)
    assert (scan.task, scan.names) == ("multilabel", ("beard", "hat"))
    assert labels(scan) == {
        "a.png": "beard",
        "b.png": "",
        "c.png": "?beard;hat",
        "d.png": "beard;?hat",
    }
    chosen = read(table, columns={"labels": ["hat", "when"]})
    assert chosen.names == ("hat", "when")
    assert reasons(chosen) == ["b.png: labels.csv, line 3: when is '2', expected 0, 1 or nothing"]


def test_one_hot_columns_are_classes(write: Write) -> None:
    scan = read(write("path,cat,dog", "a.png,1,0", "b.png,0,1"))
    assert (scan.task, scan.names) == ("classify", ("cat", "dog"))
    assert labels(scan) == {"a.png": "cat", "b.png": "dog"}


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("where,label", "a.png,x", "no column for the path of the image; found where, label"),
        (
            "path,kind",
            "a.png,x",
            "no column for the label, nor columns of 0 and 1; found path, kind",
        ),
        ("path,label,label", "a.png,x,y", "two columns are called label"),
        ("path,label", "", "found no rows below the names of the columns"),
    ],
)
def test_tables_without_what_is_needed(write: Write, header: str, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(header, row))


def test_metadata_of_hugging_face_beside_the_images(write: Write, tmp_path: Path) -> None:
    write("file_name,label", "a.png,cat", "sub/b.png,dog", name="images/metadata.csv")
    scan = read(tmp_path / "images")
    assert labels(scan) == {"a.png": "cat", "sub/b.png": "dog"}
    assert scan.root == tmp_path / "images"


@pytest.mark.parametrize("name", ["metadata.csv", "_classes.csv"])
def test_a_table_in_each_split_folder(write: Write, tmp_path: Path, name: str) -> None:
    write("file_name,label", "a.png,cat", name=f"images/train/{name}")
    write("file_name,label", "a.png,dog", name=f"images/valid/{name}")
    scan = read(tmp_path / "images")
    assert [(i.path, i.label, i.split) for i in scan.images] == [
        ("train/a.png", "cat", "train"),
        ("valid/a.png", "dog", "val"),
    ]


def test_parquet(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    write("path", "a.png", "b.png")
    columns = {"path": ["a.png", "b.png"], "hat": [True, None], "age": [3, 4]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    assert labels(read(tmp_path / "labels.parquet")) == {"a.png": "hat", "b.png": "?hat"}
    (tmp_path / "labels.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path / "labels.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "labels.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="Parquet needs pyarrow") as error:
        read(tmp_path / "labels.parquet")
    assert "pip install pyarrow" in str(error.value.hint)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,a,b", "x.png,1,-1", "y.png,-1,1"], "have 1 and -1, and no 0"),
        (["path,a;b", "x.png,1", "y.png,0"], "'a;b' cannot be a label"),
        (["path,?a", "x.png,1", "y.png,0"], "'\\?a' cannot be a label"),
        ([""], "is empty"),
    ],
)
def test_columns_that_would_be_misunderstood(write: Write, rows: list[str], message: str) -> None:
    table = write(*rows, images=["x.png", "y.png"])
    if rows == [""]:
        table.write_text("")
    with pytest.raises(DataError, match=message):
        read(table)


def test_cells_that_would_be_misunderstood(write: Write) -> None:
    scan = read(write("path,labels", "a.png,?", "b.png,x;?", "c.png,x;?y"))
    assert labels(scan) == {"c.png": "?y;x"}
    assert (
        reasons(scan)[0] == "a.png: labels.csv, line 2: '?' cannot be a label; leave the cell empty"
    )


def test_a_column_where_nothing_is_known_is_a_label_beside_others(write: Write) -> None:
    scan = read(write("path,a,b", "x.png,1,", "y.png,0,"))
    assert scan.names == ("a", "b")
    assert labels(scan) == {"x.png": "a;?b", "y.png": "?b"}


def test_a_split_column_without_splits_says_nothing(write: Write) -> None:
    assert read(write("path,label,split", "x.png,a,", "y.png,b,")).splits == ()


def test_names_as_a_mac_writes_them_and_names_too_long(write: Write, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "cafe\u0301.png")
    table = write("path,label", "caf\u00e9.png,a", f"{'x' * 5000}.png,b", images=[])
    scan = read(table)
    assert labels(scan) == {"cafe\u0301.png": "a"}
    assert "File name too long" in scan.unusable[0].reason
    assert len(scan.unusable[0].path) < 100


def test_a_split_folder_without_its_table(write: Write, tmp_path: Path) -> None:
    write("file_name,label", "a.png,cat", name="images/train/metadata.csv")
    (tmp_path / "images" / "test").mkdir()
    with pytest.raises(DataError, match=r"test: no metadata.csv, which .*train has"):
        read(tmp_path / "images")


def test_metadata_without_labels_among_class_folders(write: Write, tmp_path: Path) -> None:
    write("file_name,text", "a.png,hello", name="images/metadata.csv")
    with pytest.raises(DataError, match="no column for the label") as error:
        read(tmp_path / "images")
    assert "where folders are the classes, move metadata.csv away" in str(error.value.hint)


def test_an_absolute_path_is_the_same_as_a_relative_one(write: Write, tmp_path: Path) -> None:
    table = write("path,label", "a.png,cat")
    table.write_text(f"path,label\na.png,cat\n{tmp_path}/a.png,cat\n")
    assert labels(read(table)) == {"a.png": "cat"}


def test_exclude_leaves_out_rows_too(tmp_path: Path) -> None:
    table = film(tmp_path, 5)
    (tmp_path / "7.png").unlink()
    (tmp_path / "out.txt").write_text("7.png\n")
    config = DataConfig(root=str(table), exclude=str(tmp_path / "out.txt"))
    manifest = prepare_manifest(config, RULES, lambda _done, _total: None)
    assert [entry.path for entry in manifest.left_out] == ["7.png"]


def test_the_check_refuses_what_a_training_would_refuse(tmp_path: Path) -> None:
    table = film(tmp_path, 5)
    config = DataConfig(root=str(table), group="^([0-2])")  # each image in one of three groups
    assert "cannot_split" not in findings(config)
    two = DataConfig(root=str(table), group="([0-9]?)[.]png$", split_seed=0)
    assert "group_shares" in findings(two)
    lines = table.read_text().splitlines()
    few = [line.rpartition(",")[0] + f",g{n % 2}" for n, line in enumerate(lines[1:])]
    table.write_text("\n".join([lines[0], *few]) + "\n")
    (what,) = findings(DataConfig(root=str(table)))["cannot_split"]
    assert what == "found 2 groups, too few to split into train, val, test"


def test_training_warns_of_groups_in_two_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(root=str(film(tmp_path, 4, splits=("train", "train", "train", "val"))))
    prepare_manifest(config, RULES, lambda _done, _total: None)
    assert "12 groups stand in two splits, such as film 0" in caplog.text


# Groups


def test_a_group_by_the_path(write: Write, make_folder: Callable[..., Path]) -> None:
    table = write("path,label", "f1_1.png,cat", "f1_2.png,cat", "f2_1.png,dog", "x.png,dog")
    scan = read(table, group=r"^(f\d+)_")
    assert [image.group for image in scan.images] == ["f1", "f1", "f2", None]
    folder = make_folder(per_class=4)
    assert {image.group for image in read(folder, group=r"/00(\d)").images} == set("0123")


def test_a_column_comes_before_an_expression(write: Write) -> None:
    table = write("path,label,group,film", "a.png,cat,g,f1", "b.png,cat,g,f2")
    assert [image.group for image in read(table).images] == ["g", "g"]
    assert [image.group for image in read(table, group="film").images] == ["f1", "f2"]
    assert [image.group for image in read(table, group="(.)[.]").images] == ["a", "b"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("flim", "has 0 brackets, expected one"),
        ("(a", "not a regular expression"),
        ("(a)(b)", "has 2 brackets"),
        ("^(zzz)", "matches no path, such as a.png"),
    ],
)
def test_groups_that_cannot_be(write: Write, group: str, message: str) -> None:
    table = write("path,label,film", "a.png,cat,f1")
    with pytest.raises(ConfigError, match=message) as error:
        read(table, group=group)
    assert error.value.key == "data.group"
    assert "a column of labels.csv" in str(error.value.hint)


def test_a_column_of_groups_that_is_empty(write: Write) -> None:
    table = write("path,label,film", "a.png,cat,", "b.png,dog,")
    with pytest.raises(ConfigError, match=r"the column 'film' of .*labels.csv is empty"):
        read(table, group="film")


def film(tmp_path: Path, per_film: int, splits: Sequence[str] = ()) -> Path:
    """Twelve films in two classes; with splits, each image of a film in another split."""
    rows = [["path", "label", "group", *(["split"] if splits else [])]]
    for number in range(12 * per_film):
        group = number // per_film
        path = f"{number}.png"
        Image.effect_noise((16, 16), 99).convert("RGB").save(tmp_path / path)
        given = [splits[number % len(splits)]] if splits else []
        rows.append([path, "ab"[group % 2], f"film {group}", *given])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "labels.csv"


def test_a_run_keeps_films_whole(tmp_path: Path) -> None:
    manifest = prepare_manifest(
        DataConfig(root=str(film(tmp_path, 5))), RULES, lambda _done, _total: None
    )
    assert set(manifest.splits) == {"train", "val", "test"}
    splits: dict[str | None, set[str]] = {}
    for sample in manifest.samples:
        splits.setdefault(sample.group, set()).add(sample.split)
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())
    for split in manifest.splits:  # stratified: both classes in each split
        assert {sample.label for sample in manifest.split(split)} == {"a", "b"}


def findings(config: DataConfig) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in check_dataset(config, RULES, lambda _done, _total: None).report.findings:
        found.setdefault(finding.kind, []).append(finding.message)
    return found


def test_the_check_names_groups_in_two_given_splits(tmp_path: Path) -> None:
    table = film(tmp_path, 4, splits=("train", "train", "train", "val"))
    found = findings(DataConfig(root=str(table)))
    assert len(found["group_leak"]) == 12
    assert found["group_leak"][0] == "group film 0 stands in train and val"
    assert "group_shares" not in found


def test_the_check_says_how_even_the_splits_are(tmp_path: Path) -> None:
    (what,) = findings(DataConfig(root=str(film(tmp_path, 5))))["group_shares"]
    assert what.startswith(
        "12 groups, each in one split: val 16.7% of the images (asked: 15.0%), test 16.7% of the "
        "images (asked: 15.0%); farthest off is class "
    )


def test_unusable_rows_end_a_training_or_are_left_out(tmp_path: Path) -> None:
    table = film(tmp_path, 5)
    (tmp_path / "7.png").unlink()
    config = DataConfig(root=str(table))
    with pytest.raises(DataError, match=r"1 row cannot be used:\n  7.png: labels.csv, line 9: no"):
        prepare_manifest(config, RULES, lambda _done, _total: None)
    assert findings(config)["unusable_row"] == ["labels.csv, line 9: no such file"]
    skip = config.model_copy(update={"on_bad_image": "skip"})
    manifest = prepare_manifest(skip, RULES, lambda _done, _total: None)
    assert [entry.path for entry in manifest.left_out] == ["7.png"]
    assert len(manifest.samples) == 59
