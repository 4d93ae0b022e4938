"""Parquet files with images in them are written as tar files once, whose images are those of the rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.data.sharding import parquet as module
from imgcls.data.sharding.origins import Hub
from imgcls.data.sharding.parquet import list_parquet
from imgcls.data.shards import Shards
from imgcls.errors import UserError
from imgcls.images.paths import file_state
from imgcls.system.files import sha256_of, take_lock
from tests.data.sharding.test_streams import Server
from tests.data.test_shards import OPTIONS, png, write_tar

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
    parquet.write_table(table, file, row_group_size=4, compression="none")


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
    original = module._members

    def dying(file: Path) -> Any:
        if file.name.startswith("train-00001"):
            raise KeyboardInterrupt
        return original(file)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_members", dying)
        with pytest.raises(KeyboardInterrupt):
            Shards(root, **OPTIONS, num_workers=1).find()
    with monkeypatch.context() as patch:
        seen = []
        patch.setattr(module, "_members", lambda file: seen.append(file.name) or original(file))
        first = Shards(root, **OPTIONS, num_workers=1).find()
    assert "train-00001-of-00002.parquet" in seen
    assert "test-00000-of-00001.parquet" not in seen, "which was complete"
    states = [file_state(file) for file in first.train.files]
    second = Shards(root, **OPTIONS).find()
    assert [file_state(file) for file in second.train.files] == states
    write(root / "train-00001-of-00002.parquet", range(12, 20))
    assert len(Shards(root, **OPTIONS).find().train) == 20


def test_a_damaged_file_is_named_and_the_others_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._members

    def damaged(file: Path) -> Any:
        def cells() -> Any:
            raise OSError("Unexpected end of stream")
            yield

        return module._read(cells(), file) if file.name.startswith("validation") else original(file)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_members", damaged)
        with pytest.raises(UserError, match=r"validation-00000-of-00001.parquet is damaged: Unexpected end of stream"):
            Shards(root, **OPTIONS, num_workers=1).find()
    seen: list[str] = []
    monkeypatch.setattr(module, "_members", lambda file: seen.append(file.name) or original(file))
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
    monkeypatch.setattr(module, "spare_disk", lambda folder: 100)
    with pytest.raises(UserError, match=r"but 100 bytes are free there"):
        Shards(root, **OPTIONS).find()


def test_a_folder_called_as_a_file_is_read_as_a_folder(tmp_path: Path) -> None:
    """As Spark writes them."""
    write(tmp_path / "train.parquet" / "part-00000.parquet", range(6))
    assert len(Shards(tmp_path, **OPTIONS).find().train) == 6


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub with the files of `root`."""
    server = Server(root)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def push(root: Path, paths: Mapping[str, str] | None = None) -> int:
    """Write the answer of the hub that lists the files of `root`, some at other `paths`; return their number."""
    files: list[dict[str, Any]] = [
        {"type": "directory", "oid": "", "path": "train.parquet"},
        {"type": "file", "oid": "", "size": 3, "path": "README.md"},
    ]
    for file in list_parquet(root):
        digest, size, path = sha256_of(file), file.stat().st_size, (paths or {}).get(file.name, file.name)
        lfs = {"oid": digest, "size": size, "pointerSize": 1}
        files.append({"type": "file", "oid": digest, "size": size, "path": path, "lfs": lfs})
    (root / "main").write_text(json.dumps(files))
    return len(files) - 2


def test_what_has_changed_on_the_hub_is_fetched_again(
    server: Server, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a file of the same size, and by one process at a time; what is not there any more is removed."""
    root = server.folder = tmp_path / "hub"
    fetch = Hub.fetch

    def fetch_alone(hub: Hub, name: str, target: Path, *options: Any) -> None:
        [lock] = (own_cache / "streams").glob(".*.lock")
        with lock.open("rb") as opened:
            assert not take_lock(opened, wait=False)
        fetch(hub, name, target, *options)

    def images() -> list[int]:
        data = Shards("hf://datasets/user/name", **OPTIONS, store="none")
        data.prepare_data()
        train = data.find().train
        return sorted(train.open(row).getpixel((3, 3))[0] for row in range(len(train)))

    monkeypatch.setattr(Hub, "fetch", fetch_alone)
    write(root / "train-0.parquet", range(100, 104))
    write(root / "a..b.parquet", range(200, 204))
    push(root, {"a..b.parquet": "train.parquet/a..b.parquet"})
    assert images() == [*range(100, 104), *range(200, 204)]
    size = (root / "train-0.parquet").stat().st_size
    write(root / "train-0.parquet", range(104, 108))
    assert (root / "train-0.parquet").stat().st_size == size
    (root / "a..b.parquet").rename(root / "train-1.parquet")
    push(root)
    assert images() == [*range(104, 108), *range(200, 204)]
    assert Counter(server.fetched(".parquet")) == {"train-0.parquet": 2, "a..b.parquet": 1, "train-1.parquet": 1}
    write_tar(next((own_cache / "streams").glob("*/")) / "train-0.tar", {"a.png": png(1), "a.cls": b"0"})
    assert images() == [*range(104, 108), *range(200, 204)], "and not shards of earlier"
    push(root, {"train-0.parquet": "../train-0.parquet"})
    with pytest.raises(UserError, match=r"a file outside of its folder: ../train-0.parquet"):
        images()


def test_files_on_the_hub_are_copied_once(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = push(root)
    local = Shards(root, **OPTIONS, store="none").source
    for _ in range(2):
        data = Shards("hf://datasets/user/name", **OPTIONS, store="none")
        data.prepare_data()
        assert len(server.fetched(".parquet")) == files == 4
        assert [*data.source.train.names] == [*local.train.names]
        assert np.array_equal(data.source.train.open(3), local.train.open(3))
    with pytest.raises(UserError, match=r"has no shards.json, which imgcls.prepare shards=DIR writes"):
        Shards("hf://datasets/user/name", **OPTIONS, stream=True).prepare_data()
    monkeypatch.setattr("imgcls.data.sharding.streams.spare_disk", lambda folder: 10)
    monkeypatch.setenv("IMGCLS_CACHE", str(root / "cache"))
    with pytest.raises(UserError, match=r"needs .* of disk for its Parquet files, .* but 10 bytes are free"):
        Shards("hf://datasets/user/name", **OPTIONS).prepare_data()
    (root / "main").unlink()
    with pytest.raises(UserError, match="cannot be listed"):
        Shards("hf://datasets/user/name", **OPTIONS).prepare_data()
