import json
import os
from pathlib import Path

import pytest

from imgcls.aws.upload import upload_file, upload_folder, upload_name
from imgcls.errors import UserError
from tests.aws_account import Jobs, needs_moto

pytestmark = needs_moto


def in_bucket(s3, prefix: str) -> dict[str, bytes]:
    found = s3.list_objects_v2(Bucket="pictures", Prefix=prefix).get("Contents", [])
    return {one["Key"]: s3.get_object(Bucket="pictures", Key=one["Key"])["Body"].read() for one in found}


def sent(account: Jobs) -> list[str]:
    keys = [call.params["Key"] for call in account.aws.calls if call.operation == "PutObject"]
    account.aws.calls.clear()
    return sorted(keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat/1.jpg", "cat/2 é.jpg", "dog/1.jpg", ".hidden", ".git/x"):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "set"


def test_only_what_changed_is_sent(account: Jobs, folder: Path, own_cache: Path) -> None:
    s3, uri = account.cloud().client("s3"), "s3://pictures/p/set"
    s3.create_bucket(Bucket="pictures")
    s3.put_object(Bucket="pictures", Key="p/settle/x", Body=b"of another set")
    assert upload_folder(folder, uri, s3).sent == 3
    assert in_bucket(s3, "p/set/") == {
        "p/set/cat/1.jpg": b"cat/1.jpg",
        "p/set/cat/2 é.jpg": "cat/2 é.jpg".encode(),
        "p/set/dog/1.jpg": b"dog/1.jpg",
    }
    sent(account)
    assert upload_folder(folder, uri, s3).sent == 0
    assert sent(account) == []

    (folder / "cat/1.jpg").write_text("CAT/1.jpg")  # of the same size
    (folder / "owl").mkdir()
    (folder / "owl/1.jpg").write_text("new")
    (folder / "dog/1.jpg").unlink()
    done = upload_folder(folder, uri, s3)
    assert (done.sent, done.removed) == (2, 1)
    assert sent(account) == ["p/set/cat/1.jpg", "p/set/owl/1.jpg"]
    assert "p/set/dog/1.jpg" not in in_bucket(s3, "p/set")
    assert in_bucket(s3, "p/settle") == {"p/settle/x": b"of another set"}

    s3.put_object(Bucket="pictures", Key="p/set/owl/1.jpg", Body=b"bad")  # of the same size, by somebody else
    assert upload_folder(folder, uri, s3).sent == 1
    for ledger in (own_cache / "uploads").glob("*.json"):
        assert set(json.loads(ledger.read_text())) == {"cat/1.jpg", "cat/2 é.jpg", "owl/1.jpg"}
        ledger.unlink()
    assert upload_folder(folder, uri, s3).sent == 0, "without the ledger the hashes say that all is there"


def test_an_interrupted_upload_is_resumed(account: Jobs, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = account.cloud().client("s3")
    s3.create_bucket(Bucket="pictures")
    real = s3.upload_file

    def broken(file: str, *words, **options) -> None:
        if file.endswith("dog/1.jpg"):
            raise KeyboardInterrupt
        real(file, *words, **options)

    monkeypatch.setattr(s3, "upload_file", broken)
    with pytest.raises(KeyboardInterrupt):
        upload_folder(folder, "s3://pictures/set", s3)
    monkeypatch.setattr(s3, "upload_file", real)
    sent(account)
    upload_folder(folder, "s3://pictures/set", s3)
    assert sent(account) == ["set/dog/1.jpg"]


def test_encryption_and_what_is_refused(account: Jobs, folder: Path, tmp_path: Path) -> None:
    cloud = account.cloud(kms_key="arn:aws:kms:us-east-1:123456789012:key/k")
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="pictures")
    upload_folder(folder, "s3://pictures/set", s3, extra=cloud.encryption)
    assert s3.head_object(Bucket="pictures", Key="set/cat/1.jpg")["ServerSideEncryption"] == "aws:kms"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no files"):
        upload_folder(empty, "s3://pictures/x", s3)
    with pytest.raises(UserError, match=r"Could not upload .*bucket does not exist.*Check the bucket's name"):
        upload_folder(folder, "s3://nowhere/x", s3)


def test_a_file_is_sent_once(account: Jobs, tmp_path: Path) -> None:
    s3, file = account.cloud().client("s3"), tmp_path / "w.safetensors"
    s3.create_bucket(Bucket="pictures")
    file.write_bytes(b"one")
    assert upload_file(file, "s3://pictures/w/w.safetensors", s3)
    os.utime(file, (1, 1))
    assert not upload_file(file, "s3://pictures/w/w.safetensors", s3)
    file.write_bytes(b"two")
    assert upload_file(file, "s3://pictures/w/w.safetensors", s3)
    assert in_bucket(s3, "w/") == {"w/w.safetensors": b"two"}


def test_places_of_folders_differ(tmp_path: Path) -> None:
    first, second = (upload_name(tmp_path / name / "set", "anna") for name in ("a", "b"))
    assert first.startswith("set-")
    assert first != second
    assert first == upload_name(tmp_path / "a" / ".." / "a" / "set", "anna")
