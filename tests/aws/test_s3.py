"""Addresses, listings, transfers and ledgers, against a stand-in for the client."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imgcls.aws.s3 import (
    Ledger,
    fetch_file,
    is_remote,
    list_objects,
    make_client,
    split_folder,
    split_uri,
    transfer,
)
from imgcls.errors import UserError

CHANGED = datetime(2024, 1, 1, tzinfo=UTC)


class Paged:
    """A bucket that lists its keys in pages."""

    def __init__(self, *pages: Sequence[str]) -> None:
        self.pages, self.broken = pages, False

    def get_paginator(self, operation: str) -> Paged:
        assert operation == "list_objects_v2"
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:  # noqa: N803 - boto3's names
        assert Bucket == "bucket"
        for page in self.pages:
            keys = [key for key in page if key.startswith(Prefix)]
            files = [{"Key": key, "Size": len(key), "ETag": '"x"', "LastModified": CHANGED} for key in keys]
            yield {"Contents": files} if files else {}

    def download_file(self, bucket: str, key: str, target: str) -> None:
        Path(target).write_text(key[:1])
        if self.broken:
            raise ConnectionError
        Path(target).write_text(key)


def places(*pages: Sequence[str], uri: str = "s3://bucket/set") -> list[str]:
    return [stored.path for stored in list_objects(Paged(*pages), uri)]


def test_addresses() -> None:
    assert is_remote("s3://bucket/x")
    assert not any(is_remote(place) for place in (None, "/tmp/x", Path("s3:/x"), "s3:/x"))
    assert split_uri("s3://bucket/a/b/") == ("bucket", "a/b/")
    assert split_uri("s3://bucket/a/../b") == ("bucket", "a/../b"), "a key may be anything"
    assert split_folder("s3://bucket/a/b/") == ("bucket", "a/b")
    assert split_folder("s3://bucket/") == split_folder("s3://bucket") == ("bucket", "")


@pytest.mark.parametrize("uri", ["bucket/x", "/tmp/x", "", "s3://", "s3:///x", "s3://../x", "s3://./x", "s3://a b/x"])
def test_what_is_no_address_is_refused_with_its_option(uri: str) -> None:
    for split in (split_uri, split_folder):
        with pytest.raises(UserError) as raised:
            split(uri, "data.root")
        assert str(raised.value) == f"data.root={uri}: expected s3://bucket/folder."
        with pytest.raises(UserError, match="^" + uri):
            split(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/../x", "s3://bucket/x/..", "s3://bucket/a/./b", "s3://bucket/a//b"])
def test_a_folder_has_no_parts_that_lead_elsewhere(uri: str) -> None:
    with pytest.raises(UserError, match=r"^run_dir=s3://bucket/.*: expected s3://bucket/folder"):
        split_folder(uri, "run_dir")


def test_a_folder_is_listed_over_all_its_pages() -> None:
    pages = [["set/a/1.jpg", "set/a/"], [], ["settle/x", "set/b/2.jpg"]]
    assert places(*pages) == ["a/1.jpg", "b/2.jpg"]
    assert places(*pages, uri="s3://bucket/set/") == ["a/1.jpg", "b/2.jpg"]
    assert places(*pages, uri="s3://bucket") == ["set/a/1.jpg", "settle/x", "set/b/2.jpg"]
    [first, _] = list_objects(Paged(*pages), "s3://bucket/set")
    assert (first.bucket, first.key, first.size, first.modified) == ("bucket", "set/a/1.jpg", 11, CHANGED)


@pytest.mark.parametrize("key", ["set/../x", "set/a/../../../x", "set//x", "set/./x", "set/a\0b"])
def test_a_key_that_leads_out_of_the_folder_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=r"s3://bucket/set/.* cannot be a file in a folder\. Rename it\."):
        places(["set/fine"], [key])


def test_a_file_is_fetched_whole_or_not_at_all(tmp_path: Path) -> None:
    client, target = Paged(["set/a/1.jpg"]), tmp_path / "new" / "1.jpg"
    [stored] = list_objects(client, "s3://bucket/set")
    client.broken = True
    with pytest.raises(ConnectionError):
        fetch_file(client, stored, target)
    assert not target.exists()
    client.broken = False
    fetch_file(client, stored, target)
    assert target.read_text() == "set/a/1.jpg"
    assert target.stat().st_mtime == CHANGED.timestamp()
    assert list(target.parent.iterdir()) == [target]


@dataclass(frozen=True)
class File:
    number: int
    size: int = 1000


def test_files_are_transferred_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=30)
    transfer([File(number) for number in range(4)], lambda file: together.wait() and None, "four", workers=4)


def test_the_first_error_is_raised_when_no_transfer_runs_any_more() -> None:
    begun, failed = threading.Event(), threading.Event()
    moved: list[int] = []

    def move(file: File) -> None:
        if file.number == 0:
            begun.wait(30)
            failed.set()
            raise ConnectionError
        begun.set()
        failed.wait(30)
        moved.append(file.number)

    with pytest.raises(ConnectionError):
        transfer([File(0), File(1)], move, "two", workers=2)
    assert moved == [1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stderr", "drawn"), [(Terminal(), True), (io.StringIO(), False)])
def test_bytes_are_counted_on_a_terminal(stderr: io.StringIO, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    transfer([File(1), File(2)], lambda file: None, "uploading the set")
    assert ("uploading the set: 100%" in stderr.getvalue()) is drawn
    assert ("2.00k/2.00k" in stderr.getvalue()) is drawn
    assert stderr.getvalue() == "" or drawn


def test_a_ledger_outlives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "new" / "ledger.json"
    ledger = Ledger(file)
    assert ledger == {}
    ledger["a/é.jpg"] = ["x", 1]
    ledger.write()
    assert Ledger(file) == {"a/é.jpg": ["x", 1]}


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1, 2]", b"null", b"\xff\xfe"])
def test_a_damaged_ledger_is_empty_and_can_be_written_again(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    file.write_bytes(content)
    ledger = Ledger(file)
    assert ledger == {}
    ledger["a"] = "b"
    ledger.write()
    assert Ledger(file) == {"a": "b"}


def test_without_boto3_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(UserError, match=r"run_dir=s3://… needs boto3: pip install 'imgcls\[s3\]'"):
        make_client("run_dir=s3://…")
