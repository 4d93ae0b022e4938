"""The server against a plain function, one client against sixteen, and ONNX Runtime against torch, side by side.

    python benchmarks/serving.py [--model resnet18] [--size 224] [--photos DIR] [--repeats 3] [--json FILE]
    python benchmarks/serving.py --memory 50000 [--model resnet18] [--size 224] [--photos DIR] [--json FILE]

The server is `python -m imgcls.serve` in its own process; the load comes from another process over persistent
connections on loopback, and each client sends its next image after the answer to the previous one. "plain" decodes the
same JPEG files and runs the same model in a function. The repeats alternate, so that a busy machine slows all; figures
are medians. `--memory` measures the server's memory after each tenth of so many requests by sixteen clients. Prints a
table, the targets beside the results, and one line of JSON.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from results import command_line, report

CLASSES = 10
CLIENTS = 16
TARGETS = {
    "latency: server / plain": ("<=", 1.3),
    "throughput: 16 clients / 1": (">=", 1.25),
    "images per second: onnx / torch": (">=", 1.5),
    "start to first answer / import of the training stack": ("<=", 1 / 3),
}
STACK = "import torch, torchvision, lightning, timm, torchmetrics, hydra; import imgcls.training.pipeline"


def jpegs(photos: Path | None, count: int) -> list[bytes]:
    """`count` JPEG files: from `photos`, or generated at 500x375, like photographs on the web."""
    if photos is not None:
        return [file.read_bytes() for file in sorted(photos.rglob("*.jpg"))[:count]]
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def write_model(name: str, size: int, folder: Path, *, onnx: bool = True) -> None:
    """A portable model with random weights."""
    import torch

    from imgcls import portable
    from imgcls.images.preprocessing import Preprocessing
    from imgcls.models.backbones import create_network

    torch.manual_seed(0)
    portable.export(
        create_network(name, CLASSES),
        preprocessing=Preprocessing(size, round(size / 0.875)),
        class_names=[f"class {number}" for number in range(CLASSES)],
        metrics={},
        folder=folder,
        onnx=onnx,
    )


@contextmanager
def server(folder: Path, *options: str) -> Iterator[int]:
    """Start a server in its own process and yield its port."""
    with server_process(folder, *options) as (_, port):
        yield port


@contextmanager
def server_process(folder: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Start a server and yield the number of its process, and its port."""
    command = [sys.executable, "-m", "imgcls.serve", f"run={folder}", "port=0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r":(\d+)$", line.strip())
            if match is None:
                raise SystemExit(f"The server did not start: {line}")
            yield process.pid, int(match[1])
        finally:
            process.terminate()


def ask(connection: http.client.HTTPConnection, picture: bytes) -> float:
    """Seconds for one request."""
    began = time.perf_counter()
    connection.request("POST", "/invocations", picture, {"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise SystemExit(f"The server answered {response.status}: {content!r}")
    return time.perf_counter() - began


def load(port: int, clients: int, requests: int, pictures: list[bytes], rate: float | None = None) -> dict[str, float]:
    """Requests from `clients` in parallel: throughput (1/s), median, 95th and 99th percentile of the latency (s).

    With `rate` the requests are sent at this rate (1/s), and a latency begins when its request is due.
    """
    latencies: list[float] = []
    left, lock, errors = list(range(requests)), threading.Lock(), []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.connect()
            gate.wait()
            while True:
                with lock:
                    if not left:
                        return
                    number = left.pop(0)
                late = 0.0
                if rate is not None:
                    late = time.perf_counter() - (begun[0] + number / rate)
                    time.sleep(max(0.0, -late))
                latencies.append(ask(connection, pictures[number % len(pictures)]) + max(0.0, late))
        except (SystemExit, OSError) as error:
            errors.append(error)
        finally:
            connection.close()

    gate, begun = threading.Barrier(clients + 1), []
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    begun.append(time.perf_counter())
    gate.wait()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun[0]
    if errors:
        raise SystemExit(f"{len(errors)} clients failed: {errors[0]}")
    return {
        "throughput": requests / seconds,
        "median": statistics.median(latencies),
        "p95": float(np.percentile(latencies, 95)),
        "p99": float(np.percentile(latencies, 99)),
    }


def load_from_outside(
    port: int, clients: int, requests: int, folder: Path, rate: float | None = None
) -> dict[str, float]:
    """`load` in its own process, so that it shares no lock with the measured code."""
    command = [sys.executable, __file__, "--load", str(port), str(clients), str(requests), str(folder)]
    command += [] if rate is None else [str(rate)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def resident(process: int) -> float:
    """Resident memory of a process, MB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def memory(arguments: argparse.Namespace, place: Path) -> dict[str, list[float]]:
    """The resident memory of the server at its start and after each tenth of the requests, MB."""
    (place / "pictures").mkdir()
    for number, content in enumerate(jpegs(arguments.photos, 32)):
        (place / "pictures" / f"{number:03}.jpg").write_bytes(content)
    write_model(arguments.model, arguments.size, place / "model")
    with server_process(place / "model") as (process, port):
        rows: dict[str, list[float]] = {"answers": [0], "MB": [resident(process)]}
        for part in range(1, 11):
            load_from_outside(port, CLIENTS, arguments.memory // 10, place / "pictures")
            rows["answers"].append(part * (arguments.memory // 10))
            rows["MB"].append(resident(process))
            print(f"{rows['answers'][-1]:10,.0f} answers: {rows['MB'][-1]:6.0f} MB", flush=True)
    return rows


def plain(model: Any, pictures: list[bytes], requests: int) -> float:
    """Median seconds of decode + forward in a function."""
    seconds = []
    for number in range(requests):
        began = time.perf_counter()
        model.top([pictures[number % len(pictures)]])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def images_per_second(compute: Callable[[np.ndarray], np.ndarray], batch: int, size: int, images: int) -> float:
    """Images per second of the model alone, in batches."""
    batches, some = -(-images // batch), np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
    compute(some)
    began = time.perf_counter()
    for _ in range(batches):
        compute(some)
    return batches * batch / (time.perf_counter() - began)


def first_answer(folder: Path, picture: bytes) -> float:
    """Seconds from the start of the server's process to its first answer."""
    began = time.perf_counter()
    with server(folder) as port:
        ask(http.client.HTTPConnection("127.0.0.1", port, timeout=60), picture)
        return time.perf_counter() - began


def import_of_the_stack() -> float:
    """Seconds of a process that imports the packages of a training."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", STACK], check=True, capture_output=True)
    return time.perf_counter() - began


def measure(arguments: argparse.Namespace, place: Path) -> dict[str, list[float]]:
    """All figures of all repeats."""
    from imgcls import portable

    folder, pictures = place / "model", jpegs(arguments.photos, 32)
    (place / "pictures").mkdir()
    for number, content in enumerate(pictures):
        (place / "pictures" / f"{number:03}.jpg").write_bytes(content)
    write_model(arguments.model, arguments.size, folder)
    onnx, torch = portable.load(folder, engine="onnx"), portable.load(folder, engine="torch")
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    with server(folder) as port:
        load_from_outside(port, 2, 20, place / "pictures")
        plain(onnx, pictures, 5)
        for _ in range(arguments.repeats):
            note("plain, ms", 1e3 * plain(onnx, pictures, arguments.requests))
            one = load_from_outside(port, 1, arguments.requests, place / "pictures")
            many = load_from_outside(port, CLIENTS, 4 * arguments.requests, place / "pictures")
            note("1 client, ms", 1e3 * one["median"])
            note("1 client, 95th percentile, ms", 1e3 * one["p95"])
            note("1 client, 1/s", one["throughput"])
            note(f"{CLIENTS} clients, ms", 1e3 * many["median"])
            note(f"{CLIENTS} clients, 95th percentile, ms", 1e3 * many["p95"])
            note(f"{CLIENTS} clients, 1/s", many["throughput"])
    for _ in range(arguments.repeats):
        for batch in (1, 8):
            for name, model in (("torch", torch), ("onnx", onnx)):
                speed = images_per_second(model.engine.outputs, batch, arguments.size, arguments.requests)
                note(f"{name}, batches of {batch}, images/s", speed)
    for _ in range(arguments.repeats):
        note("import of the training stack, s", import_of_the_stack())
        note("start to first answer, s", first_answer(folder, pictures[0]))
    return rows


def main() -> None:
    """Measure, and print the figures with their targets."""
    if sys.argv[1:2] == ["--load"]:
        port, clients, requests = map(int, sys.argv[2:5])
        pictures = [file.read_bytes() for file in sorted(Path(sys.argv[5]).iterdir())]
        rate = float(sys.argv[6]) if len(sys.argv) > 6 else None
        print(json.dumps(load(port, clients, requests, pictures, rate)))
        return
    parser = command_line(__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--requests", type=int, default=100, help="requests per client in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, help="requests after which the server's memory is measured, ten times")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        rows = (memory if arguments.memory else measure)(arguments, Path(temporary))
    if arguments.memory:
        report({**vars(arguments), **rows}, arguments.json)
        return
    found = {name: statistics.median(values) for name, values in rows.items()}
    setting = f"{arguments.model}, {arguments.size} px, {arguments.requests} requests per client"
    print(f"\n{setting}: median of {arguments.repeats} (min, max)")
    for name, values in rows.items():
        print(f"{name:40}{found[name]:10.2f}   ({min(values):.2f}, {max(values):.2f})")
    ratios = {
        "latency: server / plain": found["1 client, ms"] / found["plain, ms"],
        "throughput: 16 clients / 1": found[f"{CLIENTS} clients, 1/s"] / found["1 client, 1/s"],
        "images per second: onnx / torch": min(
            found[f"onnx, batches of {batch}, images/s"] / found[f"torch, batches of {batch}, images/s"]
            for batch in (1, 8)
        ),
        "start to first answer / import of the training stack": (
            found["start to first answer, s"] / found["import of the training stack, s"]
        ),
    }
    print()
    for name, ratio in ratios.items():
        sign, target = TARGETS[name]
        reached = ratio <= target if sign == "<=" else ratio >= target
        print(f"{name:56}{ratio:6.2f}   target {sign} {target:.2f}: {'reached' if reached else 'MISSED'}")
    report({**vars(arguments), **rows, "ratios": ratios}, arguments.json)


if __name__ == "__main__":
    main()
