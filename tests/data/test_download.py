"""Downloads from a local server that drops connections, sends wrong bytes, redirects and answers 503."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imgcls.data import archives
from imgcls.data.archives import Archive, ArchivedDataModule
from imgcls.data.cifar10 import Cifar10
from imgcls.data.download import ATTEMPTS, download, unpack
from imgcls.errors import UserError
from imgcls.system import unpacking
from tests.inputs.archives import write_tar

CONTENT = os.urandom(300_000)
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `content`; each request takes an entry of `script`: bytes before a lost connection, or a status."""

    def __init__(self) -> None:
        self.content, self.ranges, self.script = CONTENT, True, []  # type: ignore[var-annotated]
        self.requests: list[str | None] = []
        self.retry_after: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.tar"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        requested = handler.headers.get("Range")
        self.requests.append(requested)
        if handler.path == "/moved":
            handler.send_response(302)
            handler.send_header("Location", self.url)
            handler.end_headers()
            return
        step = self.script.pop(0) if self.script else None
        if step in (404, 503, 429):
            handler.send_response(step)
            if self.retry_after:
                handler.send_header("Retry-After", self.retry_after)
            handler.end_headers()
            return
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and self.ranges else 0
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        handler.wfile.write(self.content[start : None if step is None else start + step])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def waits() -> list[float]:
    return []


def test_plain_and_redirected(server: Server, tmp_path: Path, waits: list[float]) -> None:
    for number, url in enumerate([server.url, server.url.replace("archive.tar", "moved")]):
        target = tmp_path / "new" / str(number)
        download(url, target, size=len(CONTENT), md5=MD5, sha256=SHA256.upper(), wait=waits.append)
        assert target.read_bytes() == CONTENT
    assert waits == []
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0", "1"]


def test_a_lost_connection_is_resumed(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = [100_000, 150_000]
    download(server.url, tmp_path / "file", md5=MD5, wait=waits.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=250000-"]
    assert waits == [1.0, 1.0]


def test_lost_connections_with_progress_are_always_resumed(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = [20_000] * 3 * ATTEMPTS
    server.content = CONTENT
    download(server.url, tmp_path / "file", md5=MD5, wait=waits.append)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_earlier_download_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1234])
    download(server.url, tmp_path / "file", md5=MD5)
    assert server.requests == ["bytes=1234-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_redirected_download_is_resumed(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = [100_000]
    download(server.url.replace("archive.tar", "moved"), tmp_path / "file", md5=MD5, wait=waits.append)
    assert server.requests == [None, None, "bytes=100000-", "bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "file", md5=MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_without_ranges_the_download_restarts(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.ranges, server.script = False, [100_000]
    download(server.url, tmp_path / "file", md5=MD5, wait=waits.append)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"another file's beginning", CONTENT + b"and more"])
def test_a_part_of_another_file_is_deleted(part: bytes, server: Server, tmp_path: Path, waits: list[float]) -> None:
    (tmp_path / "file.part").write_bytes(part)
    download(server.url, tmp_path / "file", md5=MD5, wait=waits.append)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_busy_server(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = [503, 503, 429]
    download(server.url, tmp_path / "file", md5=MD5, wait=waits.append)
    assert waits == [1.0, 2.0, 4.0]
    server.script, server.retry_after = [503], "7"
    download(server.url, tmp_path / "second", wait=waits.append)
    assert waits[3:] == [7.0]


def test_a_busy_server_is_given_up_on(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = [503] * 99
    with pytest.raises(UserError, match=r"archive.tar cannot be reached \(HTTP 503, Service Unavailable\)"):
        download(server.url, tmp_path / "file", wait=waits.append)
    assert len(waits) == ATTEMPTS - 1


def test_a_missing_file_is_not_retried(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = [404]
    with pytest.raises(UserError, match="HTTP 404"):
        download(server.url, tmp_path / "file", wait=waits.append)
    assert waits == []


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"size": 5}, "300,000 bytes instead of 5"),
        ({"md5": "0" * 32}, "another md5"),
        ({"sha256": "0"}, "another sha256"),
    ],
)
def test_wrong_bytes(expected: dict, message: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        download(server.url, tmp_path / "file", **expected)
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        download("http://127.0.0.1:9/file", tmp_path / "file", wait=waits.append)
    with pytest.raises(UserError, match="cannot be reached"):
        download("http://no-such-host.invalid/file", tmp_path / "file", wait=waits.append)
    assert len(waits) == ATTEMPTS - 1, "an unknown host is not retried"


@pytest.mark.parametrize(
    "url",
    [
        "www.example.org/a.zip",
        "http://a b/c.zip",
        "http://[::1/x",
        "other://x/y",
        "file:///etc/passwd",
        "data:,x",
        "ftp://127.0.0.1/x",
    ],
)
def test_invalid_addresses_are_refused(url: str, tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        download(url, tmp_path / "file", wait=waits.append)
    assert waits == []


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_unpack(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("empty")
    folder.type = tarfile.DIRTYPE
    tar = write_tar(tmp_path / "a.tgz", (tarfile.TarInfo("./a/b.txt"), b"x"), (folder, b""))
    unpack(tar, tmp_path / "tar")
    assert (tmp_path / "tar" / "a" / "b.txt").read_bytes() == b"x"
    assert (tmp_path / "tar" / "empty").is_dir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a/é.txt", "x")
    unpack(tmp_path / "a.zip", tmp_path / "zip")
    assert (tmp_path / "zip" / "a" / "é.txt").read_text() == "x"


@pytest.mark.parametrize(
    "evil",
    [
        tarfile.TarInfo("../out.txt"),
        tarfile.TarInfo("a/../../out.txt"),
        link("out", "/etc/passwd"),
        link("out", "../../x"),
        link("inside", "a.txt"),
        link("inside", "a.txt", tarfile.LNKTYPE),
        tarfile.TarInfo("a" * 300),
        tarfile.TarInfo("/out.txt"),
        link("out", "/etc/passwd", tarfile.LNKTYPE),
        link("device", "", tarfile.CHRTYPE),
        link("pipe", "", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name} {member.linkname}",
)
def test_unpacking_stays_in_its_folder(evil: tarfile.TarInfo, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tar = write_tar(tmp_path / "in" / "a.tgz", (evil, b""))
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tar, tmp_path / "in" / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tgz"]


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt"])
def test_unzipping_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(name, "x")
    with pytest.raises(UserError, match="outside"):
        unpack(tmp_path / "a.zip", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_link_in_a_zip_file_is_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.create_system, member.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="no plain file"):
        unpack(tmp_path / "a.zip", tmp_path / "new")


def test_deep_links_write_nothing_outside(tmp_path: Path) -> None:
    """CVE-2025-4517: links whose real path is longer than the system resolves pass tarfile's own filter."""
    folder, members = tarfile.TarInfo("placeholder"), []
    path, step = "", "d" * 240
    for letter in "abcdefghijklmnop":
        folder = tarfile.TarInfo(path + step)
        folder.type = tarfile.DIRTYPE
        members += [(folder, b""), (link(path + letter, step), b"")]
        path += f"{step}/"
    deep = "/".join("abcdefghijklmnop")
    members += [(link(f"{deep}/l" + "l" * 240, "../" * 16), b""), (link("escape", f"{deep}/l{'l' * 240}/.."), b"")]
    tar = write_tar(tmp_path / "a.tgz", *members, (tarfile.TarInfo("escape/out.txt"), b"x"))
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tar, tmp_path / "in" / "new")
    assert not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize("kind", ["zip", "w:gz", "w:xz"])
def test_a_bomb_is_refused_before_it_fills_the_disk(kind: str, tmp_path: Path) -> None:
    file, zeros = tmp_path / "bomb", bytes(30 << 20)
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for number in range(4):
                packed.writestr(f"{number}.bmp", zeros)
    else:
        with tarfile.open(file, kind) as packed:  # type: ignore[call-overload]
            for number in range(4):
                member = tarfile.TarInfo(f"{number}.bmp")
                member.size = len(zeros)
                packed.addfile(member, io.BytesIO(zeros))
    with pytest.raises(UserError, match="100 times the archive"):
        unpack(file, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["bomb"]


def test_a_data_set_that_the_disk_has_no_room_for_is_not_unpacked(
    server: Server, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = write_tar(tmp_path / "a.tgz", (tarfile.TarInfo("a.txt"), bytes(1 << 20))).read_bytes()
    monkeypatch.setattr("imgcls.data.download.spare_disk", lambda folder: 1 << 20)
    with pytest.raises(UserError, match=r"needs more than the 1\.0 MB of disk that it may take in .*data\. Set IMGCLS"):
        Pictures(url=server.url).download()
    assert sorted(path.name for path in (own_cache / "data").iterdir()) == [".pictures.lock", "pictures-archive.tar"]
    monkeypatch.setattr("imgcls.data.download.spare_disk", lambda folder: 2 << 20)
    Pictures(url=server.url).download()
    assert len(server.requests) == 1, "what was downloaded is used"


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_BYTES"])
def test_size_and_number_of_files_are_limited(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, limit, 2)
    tar = write_tar(tmp_path / "a.tgz", *((tarfile.TarInfo(name), b"x") for name in "abc"))
    with pytest.raises(UserError, match="larger than"):
        unpack(tar, tmp_path / "new")


def test_archives_are_unpacked_in_one_place() -> None:
    places = [
        file.name for file in Path(unpacking.__file__).parents[1].rglob("*.py") if "extractall" in file.read_text()
    ]
    assert places == []


@pytest.mark.parametrize("damage", [lambda content: content[:-200], lambda content: b"<html>", lambda content: b""])
def test_damaged_archive(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tgz", (tarfile.TarInfo("b"), os.urandom(5000)), (tarfile.TarInfo("c"), b"x"))
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tar, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz", "w:bz2", "zip"])
def test_archives_with_wrong_bytes_raise_no_other_error(kind: str, tmp_path: Path) -> None:
    path, content, rng = tmp_path / "a", b"abcdef" * 100 + os.urandom(300), random.Random(0)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("a/b", content)
    else:
        with tarfile.open(path, kind) as tar:
            member = tarfile.TarInfo("a/b")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole, failed = path.read_bytes(), 0
    for number in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            unpack(path, tmp_path / str(number))
        except UserError:
            failed += 1
            assert not (tmp_path / str(number)).exists()
    assert failed
    assert not list(tmp_path.glob(".*"))


class Pictures(ArchivedDataModule):
    title, layout, default_archive = "The set", "<class>", Archive("")


def test_a_killed_unpacking_is_repeated(server: Server, own_cache: Path) -> None:
    folder = own_cache / "data" / "pictures"
    half = folder.with_name(".pictures.unpacking") / "a"
    half.mkdir(parents=True)
    (half / "half.txt").touch()
    write_tar(folder.with_name("pictures-archive.tar"), (tarfile.TarInfo("a/b.txt"), b"x"))
    Pictures(url=server.url).download()
    assert server.requests == [], "the archive was downloaded before"
    assert [path.name for path in (folder / "a").iterdir()] == ["b.txt"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".pictures.lock", "pictures"]


def test_one_of_several_processes_downloads(server: Server, tmp_path: Path, own_cache: Path) -> None:
    server.content = write_tar(tmp_path / "a.tgz", (tarfile.TarInfo("a/b.txt"), b"x")).read_bytes()
    folder = own_cache / "data" / "pictures"
    threads = [threading.Thread(target=Pictures(url=server.url).download) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (folder / "a" / "b.txt").read_bytes() == b"x"
    assert len(server.requests) == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == [".pictures.lock", "pictures"]


def test_without_a_network_the_error_says_what_to_do(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *args: object, **options: object) -> None:
        raise UserError(f"{url} cannot be reached (Network is unreachable).")

    monkeypatch.setattr(archives, "download", refuse)
    with pytest.raises(UserError) as error:
        Cifar10().download()
    assert str(error.value) == (
        f"CIFAR-10 is not in {own_cache}/data/cifar10, and https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz "
        "cannot be reached (Network is unreachable).\n"
        "Set data.root=DIR to its folder (the original batches, or train/<class> and test/<class>)."
    )


def test_the_query_of_an_address_is_in_no_file_name_and_no_message(
    server: Server, tmp_path: Path, own_cache: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(archives, "unpack", lambda file, folder: names.append(file.name))
    query = f"X-Amz-Signature={'q7Zk' * 100}"
    Pictures(url=f"{server.url}?{query}").download()
    assert names == ["pictures-archive.tar"]
    with pytest.raises(UserError) as refused:
        download(f"http://me:q7Zk@127.0.0.1:9/missing.zip?{query}", tmp_path / "x", wait=waits.append)
    assert "q7Zk" not in str(refused.value)
