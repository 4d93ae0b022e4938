"""Parquet files with images in them are written as tar files once, whose images are those of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.data import parquet_shards
from imgcls.data.parquet_shards import list_parquet
from imgcls.data.shards import Shards
from imgcls.data.stores.fingerprint import file_state
from imgcls.errors import UserError
from tests.data.test_shards import OPTIONS, png
from tests.data.test_streams import Server

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
constants = pytest.importorskip("huggingface_hub.constants")

NAMES = ["owl", "cat", "dog"]


def write(file: Path, numbers: range, **columns: list[Any]) -> None:
    """Images of one colour by their number, as `datasets` writes them, in groups of four rows; or other columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = {
        "image": [{"bytes": png(number), "path": f"photo {number}.png"} for number in numbers],
        "label": [number % 3 for number in numbers],
    }
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": NAMES}}}})}
    table = pyarrow.table(cells | columns).replace_schema_metadata(metadata)
    parquet.write_table(table, file, row_group_size=4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = [{"bytes": png(number) if number != 5 else b"damaged", "path": None} for number in range(12)]
    write(tmp_path / "data" / "train-00000-of-00002.parquet", range(12), image=images)
    write(tmp_path / "data" / "train-00001-of-00002.parquet", range(12, 24))
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", range(24, 30))
    write(tmp_path / "data" / "test-00000-of-00001.parquet", range(30, 36), label=[-1] * 6)
    return tmp_path / "data"


def test_the_images_are_those_of_the_rows(root: Path) -> None:
    data = Shards(root, **OPTIONS, store="none")
    data.setup("fit")
    assert data.class_names == ("cat", "dog", "owl"), "from the metadata"
    assert {name: len(split) for name, split in data.source.splits().items()} == {"train": 23, "val": 6}
    assert [file.path.name for file in data.source.bad] == ["00000005.bin"]
    for split in data.source.splits().values():
        for row, name in enumerate(split.names):
            number = split.open(row).getpixel((3, 3))[0]
            assert data.class_names[split.labels[row]] == NAMES[number % 3]
            assert number < 12 or name.endswith(f"_photo {number}.png")


def test_they_are_written_once_and_go_on_after_a_kill(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = parquet_shards._members

    def dying(file: Path) -> Any:
        if file.name.startswith("train-00001"):
            raise KeyboardInterrupt
        return original(file)

    with monkeypatch.context() as patch:
        patch.setattr(parquet_shards, "_members", dying)
        with pytest.raises(KeyboardInterrupt):
            Shards(root, **OPTIONS, num_workers=1).find()
    with monkeypatch.context() as patch:
        seen = []
        patch.setattr(parquet_shards, "_members", lambda file: seen.append(file.name) or original(file))
        first = Shards(root, **OPTIONS, num_workers=1).find()
    assert "train-00001-of-00002.parquet" in seen
    assert "test-00000-of-00001.parquet" not in seen, "which was complete"
    states = [file_state(file) for file in first.train.files]
    second = Shards(root, **OPTIONS).find()
    assert [file_state(file) for file in second.train.files] == states
    write(root / "train-00001-of-00002.parquet", range(12, 20))
    assert len(Shards(root, **OPTIONS).find().train) == 20


def test_a_damaged_file_is_named_and_the_others_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = parquet_shards._members

    def damaged(file: Path) -> Any:
        def cells() -> Any:
            raise OSError("Unexpected end of stream")
            yield

        return parquet_shards._read(cells(), file) if file.name.startswith("validation") else original(file)

    with monkeypatch.context() as patch:
        patch.setattr(parquet_shards, "_members", damaged)
        with pytest.raises(UserError, match=r"validation-00000-of-00001.parquet is damaged: Unexpected end of stream"):
            Shards(root, **OPTIONS, num_workers=1).find()
    seen: list[str] = []
    monkeypatch.setattr(parquet_shards, "_members", lambda file: seen.append(file.name) or original(file))
    Shards(root, **OPTIONS, num_workers=1).find()
    assert seen == ["validation-00000-of-00001.parquet"]


def test_class_names_may_be_in_a_file(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", range(6))
    table = parquet.read_table(tmp_path / "train.parquet").replace_schema_metadata(None)
    parquet.write_table(table, tmp_path / "train.parquet")
    (tmp_path / "classnames.txt").write_text("lion\ntiger\nbear\n")
    assert Shards(tmp_path, **OPTIONS).find().class_names == ("lion", "tiger", "bear")


def test_several_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", range(4), label=[[1], [], [1, 0], [2]])
    source = Shards(tmp_path, **OPTIONS).find()
    assert source.class_names == ("cat", "dog", "owl")
    assert np.array_equal(source.train.labels, [[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]])


def test_what_cannot_be_used_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"not fetched in turn. Set data.stream=false"):
        Shards(root, **OPTIONS, stream=True).find()
    write(tmp_path / "paths" / "train.parquet", range(3), image=["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(UserError, match=r"train.parquet has no images in its column 'image'"):
        Shards(tmp_path / "paths", **OPTIONS).find()
    write(tmp_path / "gaps" / "train.parquet", range(3), label=[1, None, 2])
    with pytest.raises(UserError, match=r"train.parquet, row 2 has no label"):
        Shards(tmp_path / "gaps", **OPTIONS).find()
    monkeypatch.setattr(parquet_shards, "spare_disk", lambda folder: 100)
    with pytest.raises(UserError, match=r"but 100 bytes are free there"):
        Shards(root, **OPTIONS).find()


def test_files_on_the_hub_are_copied_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [{"type": "file", "oid": "", "size": file.stat().st_size, "path": file.name} for file in list_parquet(root)]
    (root / "main").write_text(json.dumps([*files, {"type": "file", "oid": "", "size": 3, "path": "README.md"}]))
    server = Server(root)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    local = Shards(root, **OPTIONS, store="none").source
    for _ in range(2):
        data = Shards("hf://datasets/user/name", **OPTIONS, store="none")
        data.prepare_data()
        assert len(server.fetched(".parquet")) == len(files) == 4
        assert [*data.source.train.names] == [*local.train.names]
        assert np.array_equal(data.source.train.open(3), local.train.open(3))
    with pytest.raises(UserError, match=r"has no shards.json, which imgcls.prepare shards=DIR writes"):
        Shards("hf://datasets/user/name", **OPTIONS, stream=True).prepare_data()
    monkeypatch.setattr("imgcls.data.streams.spare_disk", lambda folder: 10)
    monkeypatch.setenv("IMGCLS_CACHE", str(root / "cache"))
    with pytest.raises(UserError, match=r"needs .* of disk for its Parquet files, .* but 10 bytes are free"):
        Shards("hf://datasets/user/name", **OPTIONS).prepare_data()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be"):
        Shards("hf://datasets/user/name", **OPTIONS).prepare_data()
