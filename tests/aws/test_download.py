"""Images in S3: against a stand-in for the client, and against moto's server where that is installed."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.aws.download import LEDGER, local_root, synchronise
from imgcls.data.folders import find_split
from imgcls.data.imagefolder import ImageFolder
from imgcls.errors import UserError


class Bucket:
    """The three calls of an S3 client that are used."""

    def __init__(self, **files: bytes) -> None:
        self.files = {name.replace("__", "/") + ".jpg": content for name, content in files.items()}
        self.fetched: list[str] = []
        self.fail_at: str | None = None

    def get_paginator(self, operation: str) -> Bucket:
        assert operation == "list_objects_v2"
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:  # noqa: N803 - boto3's names
        for key, content in sorted(self.files.items()):
            if key.startswith(Prefix):
                etag = hashlib.md5(content).hexdigest()
                modified = datetime(2024, 1, 1, tzinfo=UTC)
                yield {"Contents": [{"Key": key, "Size": len(content), "ETag": etag, "LastModified": modified}]}
        yield {}

    def download_file(self, bucket: str, key: str, target: str) -> None:
        if key == self.fail_at:
            Path(target).write_bytes(b"hal")
            raise KeyboardInterrupt
        Path(target).write_bytes(self.files[key])
        self.fetched.append(key)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(set__cat__1=b"one", set__cat__2=b"two", set__dog__1=b"three", settle__x=b"not of the set")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))


def test_only_what_changed_is_fetched(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    synchronise("s3://bucket/set", folder, client=bucket)
    assert names(folder) == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    assert (folder / "dog" / "1.jpg").read_bytes() == b"three"
    assert (folder / "dog" / "1.jpg").stat().st_mtime == datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    assert len(bucket.fetched) == 3
    assert find_split(folder, folder)[0] == ("cat", "dog")

    bucket.fetched.clear()
    synchronise("s3://bucket/set/", folder, client=bucket)
    assert bucket.fetched == []

    bucket.files["set/cat/2.jpg"] = b"TWO"
    bucket.files["set/owl/1.jpg"] = b"four"
    bucket.files["set/owl/"] = b""
    del bucket.files["set/dog/1.jpg"]
    (folder / "cat" / "1.jpg").write_bytes(b"shortened")
    synchronise("s3://bucket/set", folder, client=bucket)
    assert sorted(bucket.fetched) == ["set/cat/1.jpg", "set/cat/2.jpg", "set/owl/1.jpg"]
    assert names(folder) == ["cat/1.jpg", "cat/2.jpg", "owl/1.jpg"]
    assert not (folder / "dog").exists()
    assert (folder / "cat" / "1.jpg").read_bytes() == b"one"


def test_an_interrupted_call_is_resumed(bucket: Bucket, tmp_path: Path) -> None:
    folder, bucket.fail_at = tmp_path / "set", "set/dog/1.jpg"
    with pytest.raises(KeyboardInterrupt):
        synchronise("s3://bucket/set", folder, client=bucket, workers=1)
    assert names(folder) == ["cat/1.jpg", "cat/2.jpg"]
    bucket.fail_at = None
    bucket.fetched.clear()
    synchronise("s3://bucket/set", folder, client=bucket)
    assert bucket.fetched == ["set/dog/1.jpg"]
    (folder / LEDGER).unlink()  # as after a kill, which leaves the ledger as it was before
    (folder / "cat" / "1.jpg").write_bytes(b"ONE")
    synchronise("s3://bucket/set", folder, client=bucket)
    assert bucket.fetched == ["set/dog/1.jpg", "set/cat/1.jpg"], "files with the object's time and size are known"
    bucket.files["set/cat/2.jpg"] = b"TWO"
    synchronise("s3://bucket/set", folder, client=bucket)
    assert bucket.fetched[2:] == ["set/cat/2.jpg"], "which are in the new ledger"


@pytest.mark.parametrize("key", ["set/../../out.jpg", "set//x.jpg", "set/./x.jpg"])
def test_keys_that_lead_out_are_refused(key: str, bucket: Bucket, tmp_path: Path) -> None:
    bucket.files[key] = b"x"
    with pytest.raises(UserError, match="cannot be a file in a folder"):
        synchronise("s3://bucket/set", tmp_path / "a" / "b", client=bucket)
    assert names(tmp_path) == []


def test_addresses(tmp_path: Path, own_cache: Path) -> None:
    assert local_root(None) is None
    assert local_root("~/x") == Path.home() / "x"
    assert local_root("s3://bucket/a/b/") == own_cache / "remote" / "bucket" / "a" / "b"
    assert local_root("s3://bucket", tmp_path) == tmp_path / "remote" / "bucket"
    for wrong in ("s3://", "s3:///x", "s3://bucket/../x", "s3://../x", "s3://bucket/a//b"):
        with pytest.raises(UserError, match=rf"data\.root={wrong}: expected s3://bucket/folder"):
            local_root(wrong)
    with pytest.raises(UserError, match="this folder is empty or does not exist"):
        synchronise("s3://bucket/none", tmp_path / "none", client=Bucket())


moto = pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto is not installed")


def test_a_data_set_in_a_bucket(
    bucket: Bucket, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    files = {path.relative_to(pictures).as_posix(): path.read_bytes() for path in pictures.rglob("*.png")}
    bucket.files = {f"set/{name}": content for name, content in files.items()}
    monkeypatch.setattr("imgcls.aws.download.make_client", lambda option: bucket)
    here, there = ImageFolder(pictures, image_size=24), ImageFolder("s3://bucket/set", image_size=24)
    for datamodule in (here, there):
        datamodule.prepare_data()
        datamodule.setup()
    assert there.root == own_cache / "remote" / "bucket" / "set"
    assert there.source.train.names == here.source.train.names
    assert there.class_names == here.class_names
    first, other = (next(iter(datamodule.train_dataloader())) for datamodule in (here, there))
    assert torch.equal(first.images, other.images)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of moto's server, which the environment points to as well."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield boto3.client("s3")
    server.stop()


@moto
def test_a_real_server(s3: Any, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="pictures")
    for number in range(40):
        s3.put_object(Bucket="pictures", Key=f"set/{'ab'[number % 2]}/{number} é.jpg", Body=b"%d" % number)
    folder = tmp_path / "set"
    synchronise("s3://pictures/set", folder)
    assert len(names(folder)) == 40
    assert (folder / "b" / "7 é.jpg").read_bytes() == b"7"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    s3.put_object(Bucket="pictures", Key="set/a/0 é.jpg", Body=b"new")
    s3.delete_object(Bucket="pictures", Key="set/a/2 é.jpg")
    synchronise("s3://pictures/set", folder)
    assert (folder / "a" / "0 é.jpg").read_bytes() == b"new"
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    assert len(after) == 39
    assert sum(after[path] == before[path] for path in after) >= 38
    with pytest.raises(
        UserError, match=r"Could not read data.root=s3://nowhere/x: .*bucket does not exist.*Check the bucket's name"
    ):
        synchronise("s3://nowhere/x", tmp_path / "nowhere")


@moto
def test_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(
        UserError, match=r"Could not read data.root=s3://bucket/x: Could not connect to the endpoint.*Check the network"
    ):
        synchronise("s3://bucket/x", tmp_path / "x")
