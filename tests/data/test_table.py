"""Labels from tables: what people's tables look like, what is wrong with them, and what they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.config.composition import compose
from imgcls.data.augment import Augment
from imgcls.data.mixing import Mixing
from imgcls.data.module import ImageDataModule
from imgcls.data.table import Table, _missing
from imgcls.data.table_files import find_table, read_columns
from imgcls.errors import UserError
from imgcls.models.backbones import create_network
from imgcls.models.classifier import Classifier
from imgcls.runs.reading import read_predictions
from tests.conftest import write_pictures
from tests.trainings import SMALL, Fit

ROWS = ["a.jpg,cat", "b.jpg,dog", "c.jpg,cat", "d.jpg,dog"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(root: Path, *rows: str, header: str = "file,label", name: str = "labels.csv") -> Path:
    """A table of `rows` in `root`, whose first cells are created as files."""
    touch(root, *(row.partition(",")[0] for row in rows))
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root / name


def content(data: ImageDataModule) -> dict[str, dict[str, str]]:
    """Split to the label of each image."""
    names = data.class_names
    return {
        name: {image: names[label] for image, label in zip(split.names, split.labels, strict=True)}
        for name, split in data.source.splits().items()
    }


def table(file: Path, **options: Any) -> Table:
    return Table(table=file, **{"test_fraction": 0.0, "val_fraction": 0.0, **options})


EXPECTED = {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "cat", "d.jpg": "dog"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\n" + "\n".join(ROWS)),
        ("labels.csv", "\ufefflabel;n;Image Path\ncat;1;a.jpg\ndog;2;./b.jpg\n\ncat;3;c.jpg\n dog ;4; d.jpg\n"),
        ("labels.tsv", "Filename\tSpecies\n" + "\n".join(ROWS).replace(",", "\t")),
        (
            "labels.jsonl",
            "\n\n".join(json.dumps(dict(zip(("path", "class"), r.split(","), strict=True))) for r in ROWS),
        ),
    ],
)
def test_tables_that_people_have(name: str, text: str, tmp_path: Path) -> None:
    touch(tmp_path, *EXPECTED)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert content(table(tmp_path / name)) == {"train": EXPECTED}


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    touch(tmp_path, *EXPECTED)
    columns = {"image": list(EXPECTED), "target": [10, 9, 10, 9], "weight": [1.0, 2.0, 1.0, 4.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    data = table(tmp_path / "labels.parquet")
    assert data.class_names == ("9", "10"), "numbers are sorted as numbers"
    assert data.source.train.weights is not None
    assert data.source.train.weights.tolist() == [1, 2, 1, 4]
    (tmp_path / "labels.parquet").write_bytes(b"file,label")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        data.find()


def test_columns_by_option(tmp_path: Path) -> None:
    rows = ["a.jpg,cat,x,Training", "b.jpg,dog,y,dev", "c.jpg,cat,x,TEST", "d.jpg,dog,y,train", "e.jpg,dog,y,train"]
    file = write(tmp_path, *rows, header="file,label,breed,where")
    with pytest.raises(UserError, match=r"label and breed.*data\.label_column=NAME"):
        table(file).find()
    data = table(file, label_column="breed", split_column="where")
    assert content(data) == {
        "train": {"a.jpg": "x", "d.jpg": "y", "e.jpg": "y"},
        "val": {"b.jpg": "y"},
        "test": {"c.jpg": "x"},
    }
    with pytest.raises(UserError, match=r"data\.label_column=bred: .* no such column.*breed"):
        table(file, label_column="bred").find()
    with pytest.raises(UserError, match=r"no column called label.*only file, kind, where"):
        table(write(tmp_path, "a.jpg,x,y", header="file,kind,where")).find()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["e.jpg,", ",cat"], r"2 rows are wrong \(line 6: no label; line 7: no file\)"),
        (["a.jpg,"], r"1 row is wrong \(line 6: no label\)"),
        (["e.jpg,dog,again"], "line 6: 3 cells, but the first line has 2"),
        (["a.jpg,dog"], r"line 6: a\.jpg is 'dog' here and 'cat' in line 2"),
        (['"e\n.jpg",cat', "./a.jpg,dog"], r"line 8: a\.jpg is 'dog' here"),
        (['"e\n.jpg",cat', "", "a.jpg"], "line 9: 1 cells, but the first line has 2"),
    ],
)
def test_wrong_rows_are_named_by_their_lines(rows: list[str], complaint: str, tmp_path: Path) -> None:
    file = write(tmp_path, *ROWS)
    touch(tmp_path, "e.jpg", "e\n.jpg")
    file.write_text("\n".join(["file,label", *ROWS, *rows]))
    with pytest.raises(UserError, match=complaint):
        table(file).find()


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no rows"):
        table(write(tmp_path)).find()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("e.jpg,dog,holdout,1", "line 6: the split is 'holdout', not train, val or test"),
        ("a.jpg,cat,test,1", r"line 6: a\.jpg is in test here and in train in line 2"),
        ("e.jpg,dog,train,-2", "line 6: the weight is '-2'"),
        ("e.jpg,owl,test,1", "no training image of 'owl'"),
        ("gone.jpg,owl,train,1", "no training image of 'owl'"),
    ],
)
def test_wrong_splits_and_weights(row: str, complaint: str, tmp_path: Path) -> None:
    file = write(tmp_path, *[f"{one},train,1" for one in ROWS], row, header="file,label,split,weight")
    (tmp_path / "gone.jpg").unlink(missing_ok=True)
    with pytest.raises(UserError, match=complaint):
        table(file).find()


def test_missing_files_are_left_out_with_their_lines(tmp_path: Path) -> None:
    file = write(tmp_path, *ROWS, "c.jpg,cat")
    (tmp_path / "b.jpg").unlink()
    data = table(file)
    assert content(data) == {"train": {name: label for name, label in EXPECTED.items() if name != "b.jpg"}}
    assert data.source.bad == ((tmp_path / "b.jpg", "no such file (labels.csv, line 3)"),)
    assert data.source.notes == ("1 rows of labels.csv repeat an earlier row.",)
    with pytest.raises(UserError, match="line 3"):
        table(file, on_bad="error").find()
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(
        UserError, match=r"4 of 4 files .* do not exist in .*, such as a\.jpg \(line 2\).*data\.root=DIR"
    ):
        Table(tmp_path / "elsewhere", table=file).find()


def test_the_table_is_found_where_the_data_has_moved(tmp_path: Path) -> None:
    file = write(tmp_path / "new" / "meta", *ROWS)
    for old in ("meta/labels.csv", "/home/someone/photos/meta/labels.csv", "s3://bucket/photos/meta/labels.csv", file):
        assert find_table(str(old), tmp_path / "new") == file
    with pytest.raises(UserError, match="neither here nor in"):
        find_table("other.csv", tmp_path / "new")


def test_addresses_in_the_table(tmp_path: Path) -> None:
    rows = [f"s3://bucket/set/{row}" for row in ROWS]
    (tmp_path / "remote/bucket/set").mkdir(parents=True)
    touch(tmp_path / "remote/bucket/set", *EXPECTED)
    (tmp_path / "remote/bucket/set/labels.csv").write_text("\n".join(["file,label", *rows]))
    data = table("s3://bucket/set/labels.csv", cache=tmp_path)  # type: ignore[arg-type]
    assert (data.address, content(data)) == ("s3://bucket/set", {"train": EXPECTED})
    with pytest.raises(UserError, match=r"line 2: s3://bucket/set/a\.jpg is not in data\.root"):
        table(tmp_path / "remote/bucket/set/labels.csv").find()


def test_a_million_rows_need_no_paths(tmp_path: Path) -> None:
    """Only what is used is created: `benchmarks/scale.py --parts tables` measures time and memory."""
    file = write(tmp_path, *(f"{number}.jpg,{number % 2}" for number in range(50)))
    split = table(file).source.train
    assert split.files[7] == tmp_path / "7.jpg"
    assert [path.name for path in split.subset([3, 1]).files] == ["3.jpg", "1.jpg"]
    assert not isinstance(split.files, tuple)
    equal = read_columns(file, lambda header: header).values["label"]
    assert len({id(cell) for cell in equal}) == 2


@pytest.mark.parametrize("most", [0, 1, 100])
def test_files_are_found_whether_their_folders_are_listed_or_not(most: int, tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    names = ("a.jpg", "b.jpg", "link.jpg", "broken.jpg", "c.jpg", "folder/a.jpg", f"{tmp_path}/a.jpg", "/a.jpg")
    assert _missing(range(len(names)), names, tmp_path, most) == {3, 4, 5, 7}


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, *ROWS)
    monkeypatch.chdir(tmp_path)
    for overrides in (["data=labels.csv"], ["data.root=labels.csv"], ["data.table=labels.csv"]):
        assert compose(overrides).data.table == "labels.csv"
    assert compose(["data.table=labels.csv", f"data.root={tmp_path}"]).data._target_ == "imgcls.data.table.Table"
    for words, complaint in [
        (["data=table"], "needs data.table=FILE"),
        (["data=table", "data.table=label.csv"], "label.csv: no such file"),
        (["data=./label.csv"], "no such folder or table"),
        (["data=table", "data.table=labels.xlsx"], r"\.csv, \.tsv"),
        (["data=labels.csv", "data.lable_column=x"], "label_column"),
    ]:
        with pytest.raises(UserError, match=complaint):
            compose(words)
    assert file.is_file()


def test_weights_count_in_the_training_loss(tmp_path: Path) -> None:
    """An image with weight 0 has no gradient; mixing mixes the weights too."""
    root = write_pictures(tmp_path, {"": 4}, ("cat", "dog"))
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{0 if path.stem == '000' else 2}"
        for path in sorted(root.rglob("*.png"))
    ]
    file = write(root, *rows, header="file,label,weight") if not rows else root / "labels.csv"
    file.write_text("\n".join(["file,label,weight", *rows]))
    data = table(file, image_size=24, resize=24, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    weights = dict(zip(batch.index.tolist(), batch.weights.tolist(), strict=True))
    assert [weights[i] > 0 for i in range(8)] == [False, True, True, True] * 2
    assert np.mean(list(weights.values())) == pytest.approx(1)
    classifier = Classifier(create_network("test_resnet", 2)).eval()
    loss = classifier.training_step(batch, 0)
    kept = torch.tensor([weights[i] > 0 for i in batch.index.tolist()])
    unweighted = classifier.training_step((batch.images[kept], batch.labels[kept]), 0)
    assert loss.item() == pytest.approx(unweighted.item(), rel=1e-5)
    data.augment = Augment(mixing=Mixing(mixup=1.0))
    mixed = next(iter(data.train_dataloader()))
    assert mixed.labels.shape == (8, 2)
    assert torch.allclose(mixed.labels.sum(1), torch.ones(8))
    assert len(set(mixed.weights.tolist())) > 2


def test_a_training_and_its_predictions_as_a_table(fit: Fit, pictures: Path, tmp_path: Path) -> None:
    rows = [f"{p.relative_to(pictures)},{p.parent.name},{p.parts[-3]}" for p in sorted(pictures.rglob("*.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    words = [word for word in SMALL if word != "data=imagefolder"]
    overrides = ["data=table", f"data.table={tmp_path / 'labels.csv'}", f"data.root={pictures}", "trainer.max_epochs=1"]
    import imgcls

    run = imgcls.fit(imgcls.compose([*words, *overrides, f"run_dir={tmp_path / 'run'}"]))
    predictions = read_predictions(run.folder)
    assert {row["file"] for row in predictions} == {row.partition(",")[0] for row in rows if row.endswith(",test")}
    again = Table(pictures, table=run.folder / "predictions.csv", test_fraction=0.0, val_fraction=0.0)
    assert content(again)["train"] == {row["file"]: row["label"] for row in predictions}

    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]).replace("000.png,cat", "000.png,dog"))
    state = run.folder / "status.json"
    state.write_text(state.read_text().replace("finished", "interrupted"))
    with pytest.raises(UserError, match=r"(test|train) images had other labels"):
        imgcls.fit(imgcls.compose([*words, *overrides, f"run_dir={tmp_path / 'run'}"]))
