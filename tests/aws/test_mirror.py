"""A run folder that is kept in S3, against moto's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.aws.mirror import LEDGER, Mirror, local_folder, mirror_folder
from imgcls.config.composition import compose
from imgcls.errors import UserError
from imgcls.system.interrupts import Interrupted
from tests.aws_account import Jobs, needs_moto
from tests.trainings import DIGITS

pytestmark = needs_moto

ADDRESS = "s3://bucket/runs/one"


@pytest.fixture
def s3(account: Jobs) -> Any:
    client = account.cloud().client("s3")
    client.create_bucket(Bucket="bucket")
    return client


def there(s3: Any) -> dict[str, bytes]:
    found = s3.list_objects_v2(Bucket="bucket", Prefix="runs/one/").get("Contents", [])
    return {
        one["Key"].removeprefix("runs/one/"): s3.get_object(Bucket="bucket", Key=one["Key"])["Body"].read()
        for one in found
    }


def test_a_growing_folder_is_kept(s3: Any) -> None:
    sent = threading.Event()
    upload = s3.upload_file

    def noting(*words: Any, **more: Any) -> None:
        upload(*words, **more)
        sent.set()

    s3.upload_file = noting
    with mirror_folder(ADDRESS, client=s3, period=0.01) as folder:
        assert folder == local_folder(ADDRESS)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "metrics.csv").write_text("one")
        (folder / ".lock").write_text("")
        assert sent.wait(30), "while the block runs"
        (folder / "metrics.csv").write_text("two")
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"state")
    assert there(s3) == {"metrics.csv": b"two", "checkpoints/last.ckpt": b"state"}
    assert sorted(path.name for path in folder.rglob(".*")) == [".lock", LEDGER]


def test_it_is_sent_also_when_the_run_is_interrupted_and_found_on_another_machine(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "status.json").write_text('{"state": "interrupted"}')
        (folder / "old.ckpt").write_text("x")
        raise Interrupted(15)

    with pytest.raises(Interrupted), mirror_folder(ADDRESS, client=s3) as folder:
        begin(folder)
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "other"))
    with mirror_folder(ADDRESS, client=s3) as other:
        assert other != folder
        assert (other / "status.json").read_text() == '{"state": "interrupted"}'
        (other / "old.ckpt").unlink()
        (other / "status.json").write_text('{"state": "finished"}')
    assert there(s3) == {"status.json": b'{"state": "finished"}'}


def test_what_this_machine_wrote_last_is_kept(s3: Any) -> None:
    with mirror_folder(ADDRESS, client=s3) as folder:
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("sent")
    (folder / "metrics.csv").write_text("newer, but the machine was killed before it was sent")
    with mirror_folder(ADDRESS, client=s3) as folder:
        assert (folder / "metrics.csv").read_text().startswith("newer")
    s3.put_object(Bucket="bucket", Key="runs/one/metrics.csv", Body=b"of another machine")
    with mirror_folder(ADDRESS, client=s3) as folder:
        assert (folder / "metrics.csv").read_text() == "of another machine"


def test_the_last_checkpoint_never_goes_before_the_best_one(s3: Any) -> None:
    mirror = Mirror(ADDRESS, s3)
    folder = mirror.folder / "checkpoints"
    folder.mkdir(parents=True)
    order: list[str] = []
    upload, link = s3.upload_file, mirror._link

    def link_and_train(path: str, file: Path, links: Any) -> None:
        link(path, file, links)
        if path.endswith("last.ckpt"):  # training continues while the folder is scanned
            (folder / "best.ckpt").write_text("best 2")
            (folder / "last.new").write_text("last 2")
            (folder / "last.new").replace(folder / "last.ckpt")

    mirror._link = link_and_train  # type: ignore[method-assign]
    s3.upload_file = lambda file, bucket, key: (order.append(key.rpartition("/")[2]), upload(file, bucket, key))
    (folder / "best.ckpt").write_text("best 1")
    (folder / "last.ckpt").write_text("last 1")
    (mirror.folder / "status.json").write_text("{}")
    mirror.upload()
    assert [name for name in order if name != "last.new"] == ["best.ckpt", "last.ckpt", "status.json"]
    assert there(s3)["checkpoints/best.ckpt"] == b"best 2"
    assert there(s3)["checkpoints/last.ckpt"] == b"last 1"


def test_errors_are_reported_and_the_run_is_not_lost(s3: Any) -> None:
    with pytest.raises(UserError, match="expected s3://bucket/folder"):
        local_folder("s3://bucket")
    with (
        pytest.raises(UserError, match=r"Could not read s3://nowhere/x: .*bucket does not exist"),
        mirror_folder("s3://nowhere/x", client=s3),
    ):
        pass
    upload = s3.upload_file

    def broken(*words: Any, **more: Any) -> None:
        raise s3.exceptions.ClientError({"Error": {"Code": "SlowDown", "Message": "Please reduce"}}, "PutObject")

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("x")
        s3.upload_file = broken

    with (
        pytest.raises(UserError, match=r"the whole run is in .*runs/one\)"),
        mirror_folder(ADDRESS, client=s3) as folder,
    ):
        write(folder)
    s3.upload_file = upload
    with mirror_folder(ADDRESS, client=s3):
        pass
    assert there(s3) == {"metrics.csv": b"x"}


def test_a_training_is_kept_and_loaded_from_there(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("imgcls.aws.mirror.make_client", lambda option: s3)
    monkeypatch.chdir(tmp_path)
    cfg = compose([*DIGITS, f"run_dir={ADDRESS}", "trainer.max_epochs=1", "trainer.limit_train_batches=2"])
    run = imgcls.fit(cfg)
    assert {"metrics.json", "model/model.safetensors", "report.html", "checkpoints/best.ckpt"} <= set(there(s3))
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "other"))
    again = imgcls.fit(cfg)
    assert again.metrics == run.metrics
    assert again.folder != run.folder
    assert imgcls.load(ADDRESS).metrics == run.metrics
    assert not list(tmp_path.glob("s3*"))
