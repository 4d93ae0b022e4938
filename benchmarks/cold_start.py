"""What a training on a stream spends before its first step, for a data set of any size: seconds, CPU seconds, memory.

    python benchmarks/cold_start.py IMAGES [--shards 14000] [--classes 21841] [--rate 100] [--disk 20GB] [--json FILE]

A server on this machine lists `--shards` shards of 1,000 images with random classes, and sends `--rate` MB/s; the
shards are the same few, written from the photographs in the folder IMAGES, so that 14,000 take little disk.
`imgcls.train` begins with an empty cache and ends with its first step. Prints when each thing was done, and a line of
JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from results import command_line, report

PER_SHARD, FILES, CHUNK = 1000, 2, 1 << 18
RUN = """
import json, os, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
file, began, events = sys.argv.pop(1), float(sys.argv.pop(1)), {}

def note(name):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    memory = [int(status[key].split()[0]) // 1024 for key in ("VmHWM", "RssAnon")]
    events.setdefault(name, [time.time() - began, time.process_time(), *memory])

def after(owner, function, name, first=False):
    inner = getattr(owner, function)
    def wrapped(*args, **options):
        if first:
            note(name)
        found = inner(*args, **options)
        note(name)
        return found
    setattr(owner, function, wrapped)

def end(*ignored):
    note("the first step is done")
    with open(file, "w") as opened:
        json.dump(events, opened)
    os._exit(0)

import imgcls.data.shards, imgcls.data.sharding.cache, imgcls.data.sharding.streams
register_optimizer_step_post_hook(end)
after(imgcls.data.sharding.streams.Streams, "prepare", "the list is asked for", first=True)
after(imgcls.data.sharding.streams.Streams, "prepare", "the list is there")
after(imgcls.data.shards.Shards, "find", "classes and splits are known")
after(imgcls.data.sharding.cache.Reading, "__init__", "shards are asked for")
runpy.run_module("imgcls.train", run_name="__main__")
"""


def write_data(images: Path, shards: int, classes: int, folder: Path) -> None:
    """A few real shards, and a list of many that are the same ones under other names."""
    import numpy as np

    from imgcls.data.names import PackedNames
    from imgcls.data.sharding.cache import Shard
    from imgcls.data.sharding.index import load_index
    from imgcls.data.sharding.listing import ShardList
    from imgcls.data.sharding.writing import write_shard

    paths = sorted(path for path in images.rglob("*.jpg"))
    for number in range(FILES):
        write_shard(folder / f"{number}.tar", members(paths, number * PER_SHARD), "")
    real = ShardList.of((str(n), load_index(folder / f"{n}.tar.index.json")) for n in range(FILES))
    assert real.widths is not None
    assert real.heights is not None
    names = sorted(f"{'val' if number < shards // 100 else 'train'}-{number:05}.tar" for number in range(shards))
    files = np.array([file_of(name) for name in names])
    rows = (files[:, None] * PER_SHARD + np.arange(PER_SHARD)).ravel()
    text, ends = real.names.text, real.names.ends
    cuts = ends[::PER_SHARD].tolist()
    listed = {}
    for name, file in zip(names, files.tolist(), strict=True):
        listed[name] = Shard(*real.shards[str(file)][:2], hashlib.sha1(name.encode()).hexdigest(), PER_SHARD)
    ShardList(
        listed,
        PackedNames(
            np.concatenate([text[cuts[file] : cuts[file + 1]] for file in files.tolist()]),
            np.concatenate([[0], np.diff(ends)[rows].cumsum()]),
        ),
        real.starts[rows],
        real.sizes[rows],
        np.random.default_rng(0).integers(0, classes, len(rows), dtype=np.int32),
        real.widths[rows],
        real.heights[rows],
        [str(number) for number in range(classes)],
    ).write(folder)
    (folder / "classnames.txt").write_text("".join(f"n{number:08}\n" for number in range(classes)))


def members(paths: Sequence[Path], start: int) -> Iterator[Any]:
    """JPEGs of about the bytes of ImageNet's, named like these."""
    from PIL import Image

    from imgcls.data.sharding.writing import Member, member_name

    for row in range(PER_SHARD):
        with Image.open(paths[(start + row) % len(paths)]) as opened:
            image = opened.convert("RGB").resize((500, 375))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=97)
        yield Member(member_name(row, f"n{row:08}_{start + row}.JPEG"), ".jpg", buffer.getvalue(), "0")


def file_of(name: str) -> int:
    """Which of the few real shards has this name too."""
    return int(name[-9:-4]) % FILES


class Server(ThreadingHTTPServer):
    """Sends the files of a folder, all together `rate` bytes a second."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, rate: float) -> None:
        self.folder, self.rate, self.sent, self.free_at = folder, rate, 0, 0.0
        self.turn = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def wait_for(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        with self.turn:
            self.sent += size
            self.free_at = max(self.free_at, time.monotonic()) + size / self.rate
            pause = self.free_at - time.monotonic()
        time.sleep(max(0.0, pause))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        name = self.path.rpartition("/")[2]
        if name.startswith(("train-", "val-")):
            name = f"{file_of(name)}.tar"
        file = server.folder / name
        if not file.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        with file.open("rb") as opened, contextlib.suppress(ConnectionError):  # when the training has ended
            while chunk := opened.read(CHUNK):
                server.wait_for(len(chunk))
                self.wfile.write(chunk)

    def log_message(self, *args: object) -> None:
        pass


def measure(folder: Path, rate: float, disk: str, options: Sequence[str]) -> dict[str, list[float]]:
    """Seconds, CPU seconds, peak memory and memory of its own (MB) of a training up to each event."""
    server = Server(folder, rate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / "events.json"
        command = [
            *("data=shards", f"data.root=http://127.0.0.1:{server.server_port}", f"data.stream_disk={disk}"),
            *("model.name=test_resnet", "model.pretrained=false", "data.image_size=64", "test=false"),
            *(f"run_dir={temporary}/run", "trainer.max_epochs=1", *options),
        ]
        environment = {**os.environ, "IMGCLS_CACHE": f"{temporary}/cache"}
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(file), str(time.time()), *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not file.is_file():
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
        events: dict[str, list[float]] = json.loads(file.read_text())
    server.shutdown()
    return events


def main() -> None:
    """Measure, and print the figures."""
    parser = command_line(__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--shards", type=int, default=14_000)
    parser.add_argument("--classes", type=int, default=21_841)
    parser.add_argument("--rate", type=float, default=100, help="MB/s")
    parser.add_argument("--disk", default="20GB")
    parser.add_argument("--options", nargs="*", default=[], help="of imgcls.train")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(asked.images, asked.shards, asked.classes, folder)
        listed = sum(file.stat().st_size for pattern in ("*.json", "images-*") for file in folder.glob(pattern))
        events = measure(folder, asked.rate * 1e6, asked.disk, asked.options)
        shard = sum(file.stat().st_size for file in folder.glob("?.tar")) / FILES
    print(f"{asked.shards:,} shards of {shard / 1e6:.0f} MB, list of {listed / 1e6:.0f} MB, {asked.rate:.0f} MB/s")
    print(f"{'':32}{'seconds':>10}{'CPU s':>10}{'peak, MB':>10}{'own, MB':>10}")
    for name, (seconds, cpu, peak, own) in events.items():
        print(f"{name:32}{seconds:10.1f}{cpu:10.1f}{peak:10,}{own:10,}")
    found = {"shards": asked.shards, "rate": asked.rate, "list": listed, "shard": shard, "events": events}
    report(found, asked.json)


if __name__ == "__main__":
    main()
