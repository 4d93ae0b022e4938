"""Shards that are fetched in turn: from S3, a web server, the hub and a folder, with less disk than they take."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loader import ShardedPlan
from imgcls.data.sharding import cache, streams, writing
from imgcls.data.sharding.origins import Web, open_origin
from imgcls.data.sharding.writing import write_shards
from imgcls.data.shards import Shards
from imgcls.errors import UserError
from imgcls.system.cache import entries, remove
from imgcls.training.data_identity import check_data, record_data
from tests.aws_account import Jobs, needs_moto
from tests.conftest import write_pictures
from tests.trainings import SMALL

OPTIONS: dict[str, Any] = {"image_size": 16, "resize": 16, "batch_size": 4}
SHARD = 20480  # bytes of most shards


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training images, 6 of validation and test, in shards of a few images each."""
    folder = tmp_path_factory.mktemp("streams")
    root = write_pictures(folder / "pictures", {"train": 16, "val": 2, "test": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SHARD_BYTES", 7000)
        write_shards(ImageFolder(root, **OPTIONS).source, folder / "shards", 1)
    return folder / "shards"


@pytest.fixture
def shards(written: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "shards")


class Server(ThreadingHTTPServer):
    """Serves a folder, with ranges, and notes what is asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, list[tuple[str, str]]()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def fetched(self, suffix: str = ".tar") -> list[str]:
        """The names of whole files that were asked for."""
        return [name for name, span in self.requests if name.endswith(suffix) and not span]


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        name, span = self.path.partition("?")[0].rpartition("/")[2], self.headers.get("Range", "")
        self.server.requests.append((name, span))
        file = self.server.folder / name
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        if span:
            first, last = span.removeprefix("bytes=").split("-")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {span.removeprefix('bytes=')}/{len(content)}")
            content = content[int(first) : int(last) + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    server = Server(shards)
    yield server
    server.shutdown()
    server.server_close()


def forget_lists(shards: Path) -> None:
    """Leave only what other programs write."""
    for file in (*shards.glob("*.index.json"), *shards.glob("shards.json")):
        file.unlink()


def opened(root: object, **options: Any) -> Shards:
    data = Shards(str(root), **{**OPTIONS, "store": "none", "shuffle_shards": 2, **options})
    data.prepare_data()
    data.setup()
    return data


Batches = list[tuple[list[int], bytes]]


def batches(loader: Any) -> Batches:
    return [(batch.index.tolist(), batch.images.numpy().tobytes()) for batch in loader]


def present(data: Shards) -> list[str]:
    assert data.streams is not None
    return sorted(file.name for file in data.streams.folder.glob("*.tar"))


def test_streamed_images_are_those_of_the_folder(shards: Path) -> None:
    """Labels, names, classes and pixels; in an order of their own that depends on seed and epoch alone."""
    local, streamed = opened(shards), opened(shards, stream=True, stream_disk=4 * SHARD)
    assert streamed.class_names == local.class_names == ("cat", "dog", "owl")
    assert [*streamed.source.train.names] == [*local.source.train.names]
    for loader in ("val_dataloader", "test_dataloader"):
        assert batches(getattr(local, loader)()) == batches(getattr(streamed, loader)())
    loader = streamed.train_dataloader()
    first, second = batches(loader), batches(loader)
    assert sorted(position for index, _ in first for position in index) == list(range(48))
    assert [index for index, _ in first] != [index for index, _ in second]
    assert len(present(streamed)) <= 4 < len(list(shards.glob("train-*.tar")))
    assert batches(opened(shards, stream=True).train_dataloader()) == first
    example = streamed.source.train.open(5)
    assert np.array_equal(example, local.source.train.open(5))


def test_shuffling_mixes_the_images_of_some_shards() -> None:
    """Each block of `together` shards is a permutation of their images; blocks differ between epochs."""
    shards = np.repeat(np.arange(10), 50)
    plan = ShardedPlan(np.zeros(500, dtype=np.int64), 10, shards=shards, together=4, seed=3)
    orders = [plan.order(epoch)[0].numpy() for epoch in (0, 1)]
    blocks = [[set(shards[order[start : start + 200]].tolist()) for start in (0, 200, 400)] for order in orders]
    for order, sets in zip(orders, blocks, strict=True):
        assert sorted(order.tolist()) == list(range(500))
        assert [len(block) for block in sets] == [4, 4, 2]
        start = shards[order[:50]]
        assert np.bincount(start, minlength=10).max() < 30, "no shard comes as a whole"
    assert blocks[0] != blocks[1]
    assert np.array_equal(plan.order(1)[0], orders[1])
    parts = [
        ShardedPlan(np.zeros(500, dtype=np.int64), 10, shards=shards, together=4, seed=3, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    joined = [torch.cat([a, b]) for (a, _), (b, _) in zip(*(part.epoch(0) for part in parts), strict=True)]
    assert torch.equal(torch.cat(joined), torch.from_numpy(orders[0])), "ranks share the steps of one process"


@pytest.mark.parametrize("stream", [True, False])
def test_an_epoch_resumes_in_the_middle_to_the_same_bits(stream: bool, shards: Path) -> None:
    data = opened(shards, stream=stream)
    whole = data.train_dataloader()
    whole.set_epoch(1)
    expected = batches(whole)
    begun = data.train_dataloader()
    begun.set_epoch(1)
    running = iter(begun)
    for _ in range(5):
        next(running)
    state = begun.state_dict()
    running.close()
    resumed = opened(shards, stream=stream).train_dataloader()
    resumed.load_state_dict(state)
    assert batches(resumed) == expected[5:]


def test_the_first_batch_needs_the_first_shards_alone(server: Server) -> None:
    data = opened(server.url, stream=True, stream_disk=3 * SHARD)
    assert not server.fetched(), "the index says what there is"
    assert len(server.fetched(".safetensors")) == 1
    assert not server.fetched(".index.json"), "nor is there a request for each shard"
    loader = data.train_dataloader()
    loader.ahead = 0  # which would go on to the next shards, or not yet
    running = iter(loader)
    next(running)
    running.close()
    assert 1 <= len(server.fetched()) <= 3
    for thread in threading.enumerate():
        if thread.name.startswith("imgcls-shards"):  # what it was fetching is the last
            thread.join(60)
    before = len(server.requests)
    picture = data.source.train.open(0)
    assert picture.size == (24, 24)
    assert len(server.requests) - before <= 1, "one image is read by itself"
    assert all(span for name, span in server.requests[before:] if name.endswith(".tar"))


def test_shards_that_fit_are_copied_first(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    data = opened(f"{server.url}/")
    assert sorted(set(server.fetched())) == present(data) == sorted(file.name for file in server.folder.glob("*.tar"))
    local = opened(server.folder)
    assert batches(data.train_dataloader()) == batches(local.train_dataloader()), "with the order of a folder"
    requests = len(server.fetched())
    opened(server.url)
    assert len(server.fetched()) == requests
    with caplog.at_level("INFO"):
        assert opened(server.url, stream_disk=4 * SHARD).streams.active  # type: ignore[union-attr]
    assert "of shards are fetched in turn" in caplog.text


def test_no_copied_shard_is_removed_for_another(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk has no room for all, and where it fills up meanwhile."""
    with pytest.raises(UserError, match=r"has .* of shards, but they may take 81\.9 kB of disk\. .* data\.stream=auto"):
        opened(server.url, stream=False, stream_disk=4 * SHARD)
    assert not server.fetched()
    monkeypatch.setattr(cache, "spare_disk", lambda folder: 0)
    data = opened(server.url)
    assert present(data) == sorted(file.name for file in server.folder.glob("*.tar"))
    assert len(data.source.train) == 48
    monkeypatch.setattr(streams, "spare_disk", lambda folder: 0)
    again = opened(server.url, stream=False)
    assert present(again) == present(data), "what is copied may stay however full the disk is"


def test_what_was_fetched_is_used_again_and_what_has_changed_is_not(server: Server) -> None:
    data = opened(server.url, stream=True)
    first = batches(data.train_dataloader())
    count = len(server.fetched())
    assert batches(opened(server.url, stream=True).train_dataloader()) == first
    assert len(server.fetched()) == count
    listed = json.loads((server.folder / "shards.json").read_text())
    name = "train-00000.tar"
    listed["shards"][name]["key"] = "another"
    (server.folder / "shards.json").write_text(json.dumps(listed))
    before = present(data)
    opened(server.url, stream=True)
    assert present(data) == [file for file in before if file != name] != before
    assert len(server.fetched(".safetensors")) == 1


def test_what_was_fetched_outlives_a_list_that_is_missing_for_a_moment(server: Server) -> None:
    """Also the arrays, which are checked again."""
    data = opened(server.url, stream=True)
    first, count = batches(data.val_dataloader()), len(server.fetched())
    listed, away = server.folder / "shards.json", server.folder / "away"
    for damaged in (False, True):
        listed.rename(away)
        with pytest.raises(UserError, match=r"has no shards.json"):
            opened(server.url, stream=True)
        away.rename(listed)
        assert data.streams is not None
        (arrays,) = data.streams.folder.glob("images-*.safetensors")
        if damaged:
            arrays.write_bytes(bytes(arrays.stat().st_size))
        assert batches(opened(server.url, stream=True).val_dataloader()) == first
        assert len(server.fetched()) == count
        assert len(server.fetched(".safetensors")) == 1 + damaged


def test_a_list_of_shards_that_were_written_anew_is_not_used(shards: Path) -> None:
    first = batches(opened(shards).val_dataloader())
    with (shards / "val-00000.tar").open("ab") as file:
        file.write(bytes(10240))  # as other programs pad them
    assert batches(opened(shards, stream=True).val_dataloader()) == first


def test_a_damaged_list_is_refused(server: Server) -> None:
    (file,) = server.folder.glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"damaged images-.*Run imgcls.prepare shards=DIR again"):
        opened(server.url, stream=True)
    file.write_bytes(content)
    (server.folder / "shards.json").write_text('{"shards": {"train-00000.tar": "key"}}')
    with pytest.raises(UserError, match=r"shards.json of another version"):
        opened(server.url, stream=True)


def test_a_damaged_shard_is_not_used(server: Server) -> None:
    file = server.folder / "val-00000.tar"
    content = bytearray(file.read_bytes())
    content[600] ^= 1
    file.write_bytes(content)
    data = opened(server.url, stream=True)
    with pytest.raises(UserError, match=r"val-00000.tar is damaged: it is not what its index says"):
        batches(data.val_dataloader())
    assert "val-00000.tar" not in present(data)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="20,479 bytes instead of 20,480"):
        batches(data.val_dataloader())


def test_unreadable_images_are_left_out_and_listed(shards: Path, tmp_path: Path) -> None:
    """Those whose header cannot be read are known from the index, others when they are decoded."""
    local = opened(shards)
    for row, at in ((3, slice(0, 8)), (7, slice(60, 120))):
        shard, start, _ = local.source.train.pictures.places[row].tolist()  # type: ignore[union-attr]
        file = shards / local.source.train.pictures.shards[shard]  # type: ignore[union-attr]
        content = bytearray(file.read_bytes())
        content[start + at.start : start + at.stop] = bytes(at.stop - at.start)
        file.write_bytes(content)
    forget_lists(shards)
    data = opened(shards, stream=True)
    names = local.source.train.names
    assert [str(bad.path) for bad in data.bad_files] == [names[3]]
    assert set(data.source.train.names) == {*names} - {names[3]}
    found = batches(data.train_dataloader())
    assert sorted(len(index) for index, _ in found).count(3) == 1
    assert {data.source.train.names[row] for index, _ in found for row in index} <= {*names} - {names[3], names[7]}
    assert {str(bad.path): bad.reason for bad in data.bad_files}.keys() == {names[3], names[7]}
    with pytest.raises(UserError, match=r"cannot be read: .*data.on_bad=skip"):
        batches(opened(shards, stream=True, on_bad="error").train_dataloader())


def test_the_identity_of_a_run_is_in_the_index(server: Server, tmp_path: Path) -> None:
    data = opened(server.url, stream=True)
    record_data(tmp_path, data)
    check_data(tmp_path, opened(server.url, stream=True))
    assert not server.fetched()
    listed = json.loads((server.folder / "shards.json").read_text())
    listed["shards"]["train-00000.tar"]["sha256"] = "0"
    (server.folder / "shards.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="other train images"):
        check_data(tmp_path, opened(server.url, stream=True))


def test_the_cache_is_listed_and_removed(shards: Path, own_cache: Path) -> None:
    data = Shards(str(shards), **OPTIONS, store="none", stream=True)
    data.prepare_data()
    assert not remove(entries(own_cache)[-1]), "from then on"
    data.setup()
    batches(data.val_dataloader())
    [entry] = [entry for entry in entries(own_cache) if entry.kind == "streams"]
    assert entry.nbytes >= SHARD
    assert not remove(entry), "while it is used"
    del data
    gc.collect()
    assert remove(entry)
    assert "streams" not in {entry.kind for entry in entries(own_cache)}


def test_other_settings_of_another_process_change_nothing(server: Server, own_cache: Path) -> None:
    """What streams the shards goes on with that, and its folder is not removed when the other one has ended."""
    streaming = opened(server.url, stream=True)
    copying = opened(server.url, stream=False)
    assert not copying.streams.active  # type: ignore[union-attr]
    del copying
    gc.collect()
    [entry] = [entry for entry in entries(own_cache) if entry.kind == "streams"]
    assert not remove(entry)
    assert streaming.streams.active  # type: ignore[union-attr]
    assert batches(streaming.val_dataloader())


# ---- addresses


@needs_moto
def test_shards_in_a_bucket(account: Jobs, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = account.cloud().client("s3")
    for module in ("imgcls.data.sharding.origins", "imgcls.aws.download"):
        monkeypatch.setattr(f"{module}.make_client", lambda option: client)
    client.create_bucket(Bucket="bucket")
    for file in shards.iterdir():
        client.upload_file(str(file), "bucket", f"set/{file.name}")
    streamed, local = opened("s3://bucket/set", stream=True, stream_disk=4 * SHARD), opened(shards, stream=True)
    assert batches(streamed.train_dataloader()) == batches(local.train_dataloader())
    assert len(present(streamed)) <= 4
    assert streamed.source.train.open(0).size == (24, 24), "read by its range"
    copied = opened("s3://bucket/set")
    assert copied.root is not None
    assert len(list(copied.root.glob("*.tar"))) == len(list(shards.glob("*.tar")))
    client.delete_object(Bucket="bucket", Key="set/shards.json")
    opened("s3://bucket/set")  # of others: copied
    with pytest.raises(UserError, match=r"s3://bucket/set has no shards.json, which imgcls.prepare shards=DIR writes"):
        opened("s3://bucket/set", stream=True)


def test_shards_on_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    data = opened("hf://datasets/user/name@v1/folder", stream=True)
    assert batches(data.val_dataloader()) == batches(opened(server.folder).val_dataloader())
    origin = open_origin("hf://datasets/user/name")
    assert isinstance(origin, Web)
    assert origin.url.startswith(f"{server.url}/datasets/user/name/resolve/main")
    assert "hf_secret" not in origin.address
    with pytest.raises(UserError, match="expected hf://datasets/user/name"):
        open_origin("hf://user/name")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream_disk": 2 * SHARD}, "data.shuffle_shards=2 shards together needs"),
        ({"normalization": "dataset"}, "data.normalization=dataset is not for shards that are fetched in turn"),
        ({"sampler": "balanced"}, "data.sampler=balanced is not for shards"),
    ],
)
def test_what_needs_all_images_is_refused(options: dict[str, Any], message: str, written: Path) -> None:
    with pytest.raises(UserError, match=message):
        opened(written, stream=True, **options)


def test_an_address_without_shards(server: Server) -> None:
    (server.folder / "shards.json").unlink()
    with pytest.raises(UserError, match=r"has no shards.json, which imgcls.prepare shards=DIR writes"):
        opened(server.url)


def test_a_run_on_a_stream(server: Server, tmp_path: Path) -> None:
    """Training, validation, test and export, with a disk for a third of the shards."""
    import imgcls

    overrides = [
        *SMALL,
        "data=shards",
        f"data.root={server.url}",
        f"data.stream_disk={4 * SHARD}",
        "data.shuffle_shards=2",
    ]
    run = imgcls.fit(imgcls.compose([*overrides, f"run_dir={tmp_path / 'run'}", "report=true", "trainer.max_epochs=1"]))
    assert run.metrics["test/accuracy"] > 0
    assert len(run.predictions) == 6
    assert len(server.fetched()) >= 13
