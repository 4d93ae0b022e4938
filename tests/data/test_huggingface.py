"""Data sets of Hugging Face, offline: a small one made here, saved, and as Parquet files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgcls
from imgcls.config.trust import restore_configuration
from imgcls.data.huggingface import HuggingFace
from imgcls.data.table import Table
from imgcls.errors import UserError
from tests.trainings import SMALL

datasets = pytest.importorskip("datasets")

NAMES = ["owl", "cat", "dog"]
PLAIN = [word for word in SMALL if word != "data=imagefolder"]


@pytest.fixture(autouse=True)
def own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` caches is gone with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


def make(count: int, first: int = 0) -> Any:
    """`count` images in the colours of their classes, every third a JPEG, with findings and patients."""
    rows: dict[str, list[Any]] = {"picture": [], "label": [], "findings": [], "patient": []}
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 120, (24, 24, 3), dtype=np.uint8)
        pixels[..., number % 3] += 100
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG" if number % 3 == 0 else "PNG")
        rows["picture"].append({"bytes": buffer.getvalue(), "path": "same.png"})
        rows["label"].append(number % 3)
        rows["findings"].append([number % 3] if number % 2 else [])
        rows["patient"].append(f"p{number // 4}")
    label = datasets.ClassLabel(names=NAMES)
    kinds = {"picture": datasets.Image(), "label": label, "findings": datasets.List(label)}
    return datasets.Dataset.from_dict(rows, datasets.Features({**kinds, "patient": datasets.Value("string")}))


def saved(root: Path) -> Path:
    datasets.DatasetDict({"train": make(24), "validation": make(6, 24), "test": make(9, 30)}).save_to_disk(root)
    return root


def shards(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    for name, count, first in [("train-00000-of-00002", 12, 0), ("train-00001-of-00002", 12, 12)]:
        make(count, first).to_parquet(root / "data" / f"{name}.parquet")
    make(6, 24).to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    make(9, 30).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("write", [saved, shards])
def test_local_copies(write: Callable[[Path], Path], tmp_path: Path) -> None:
    data = HuggingFace(write(tmp_path / "copy"), image_size=24, resize=24)
    assert data.class_names == ("cat", "dog", "owl")
    sizes = {name: len(split) for name, split in data.source.splits().items()}
    assert sizes == {"train": 24, "val": 6, "test": 9}
    for name, first in [("train", 0), ("val", 24), ("test", 30)]:
        split, rows = data.source.splits()[name], make(sizes[name], first)
        assert [data.class_names[label] for label in split.labels] == [NAMES[label] for label in rows["label"]]
        for place, row in enumerate(rows):
            assert np.array_equal(np.asarray(split.open(place)), np.asarray(row["picture"])), "bytes are not changed"
    assert data.source.train.groups is not None
    assert data.source.train.groups[:5] == ("p0", "p0", "p0", "p0", "p1")
    assert data.source.train.names[:2] == ("000/1.jpg", "000/2.png"), "named by rows and formats"
    several = HuggingFace(data.root, label_column="findings")
    assert several.multilabel
    assert several.source.train.labels.sum() == 12


def test_a_parquet_file_with_images_is_a_table(tmp_path: Path) -> None:
    file = shards(tmp_path / "copy") / "data" / "train-00000-of-00002.parquet"
    data = Table(table=file, file_column="picture", label_column="label", test_fraction=0.0, val_fraction=0.0)
    assert data.class_names == ("cat", "dog", "owl"), "the names are in the file's metadata"
    assert [data.class_names[label] for label in data.source.train.labels[:4]] == [*NAMES, "owl"]
    assert np.array_equal(np.asarray(data.source.train.open(3)), np.asarray(make(12)[3]["picture"]))
    before = {path: path.stat().st_mtime_ns for path in data.source.train.files}
    again = Table(
        table=file, file_column="picture", label_column="findings", test_fraction=0.0, val_fraction=0.0
    ).source
    assert {path: path.stat().st_mtime_ns for path in again.train.files} == before, "unpacked once"
    assert again.train.multilabel


def test_one_split_is_cut_and_wrong_images_are_found(tmp_path: Path) -> None:
    rows = make(30)
    broken = rows.cast_column("picture", datasets.Image(decode=False)).to_list()
    broken[4]["picture"] = {"bytes": b"no image", "path": None}
    datasets.Dataset.from_list(broken, features=rows.features).save_to_disk(tmp_path / "one")
    data = HuggingFace(tmp_path / "one", image_size=24, resize=24, group="patient", store="memory")
    data.setup()
    assert [Path(file.path).name for file in data.source.bad] == ["5.bin"]
    groups = [set(split.groups or ()) for split in data.source.splits().values()]
    assert len(groups) == 3
    assert len(set.union(*groups)) == sum(map(len, groups)), "a patient is in one split"


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nobody/nothing cannot be loaded"):
        HuggingFace(name="nobody/nothing").find()
    with pytest.raises(UserError, match=r"data\.name=NAME"):
        imgcls.compose(["data=huggingface"])
    root = saved(tmp_path / "copy")
    with pytest.raises(UserError, match="no such column"):
        HuggingFace(root, label_column="lable").find()
    photos = make(6).select_columns(["picture"]).rename_column("picture", "photo")
    datasets.concatenate_datasets([make(6), photos], axis=1).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"image columns picture, photo. Choose one: data\.image_column=NAME"):
        HuggingFace(tmp_path / "two").find()
    with pytest.raises(UserError, match="trust=true"):
        restore_configuration({"data": {"_target_": "imgcls.data.huggingface.HuggingFace", "name": "nobody/nothing"}})


def test_scripts_are_not_executed(tmp_path: Path) -> None:
    root = tmp_path / "script"
    root.mkdir()
    (root / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(UserError, match="cannot be loaded"):
        HuggingFace(root).find()
    assert not (tmp_path / "ran").exists()


def test_a_training(tmp_path: Path) -> None:
    words = [*PLAIN, "data=huggingface", f"data.root={saved(tmp_path / 'copy')}", "trainer.max_epochs=1", "debug=off"]
    run = imgcls.fit(imgcls.compose([*words, f"run_dir={tmp_path / 'run'}"]))
    assert [row["file"] for row in run.predictions] == [
        f"000/{row}.{'jpg' if row % 3 == 1 else 'png'}" for row in range(31, 40)
    ]
    assert json.loads((run.folder / "model" / "model.json").read_text())["class_names"] == ["cat", "dog", "owl"]
    assert not os.environ.get("HF_DATASETS_TRUST_REMOTE_CODE")
