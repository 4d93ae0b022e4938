"""Shared pieces: no network, small thread pools, and images that are made on the spot."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# One of several workers of pytest-xdist has a core to itself. What their parent has set here they find in their
# environment: more threads than cores wait for each other, and small convolutions take twenty times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")  # unless who shares the machine gives another number
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "IMGCLS_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same tests everywhere; a process that has seen a GPU cannot be forked

import numpy as np
import pytest
from PIL import Image

pytest_plugins = ["tests.aws_account", "tests.digits", "tests.trainings"]


def pytest_collection_finish() -> None:
    """Collecting garbage no longer looks through millions of objects of imported packages: a quarter of a second."""
    gc.collect()
    gc.freeze()
    if torch := sys.modules.get("torch"):
        # The first gradient decides which threads torch has. After an export it would have some that a forked process
        # lacks, in which no network could be trained.
        torch.ones(1, requires_grad=True).backward()


@pytest.fixture(scope="session", autouse=True)
def kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The ONNX graphs of all tests in all workers, each of which torch's exporter would spend seconds on.

    The cache of fixtures that several tests share has them too.
    """
    folder, cache = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("cache")
    graphs = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "graphs"
    graphs.mkdir(exist_ok=True)
    (cache / "graphs").symlink_to(graphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGCLS_CACHE", str(cache))
        yield graphs


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, kept_graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Nothing is read from or written to the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "graphs").symlink_to(kept_graphs)
    monkeypatch.setenv("IMGCLS_CACHE", str(cache))
    yield cache
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def quick_composition() -> Iterator[None]:
    """See `tests/composing.py`."""
    from imgcls.config import composition
    from tests.composing import compose_quickly

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composition, "compose_unchecked", compose_quickly)
        yield


@pytest.fixture(autouse=True)
def own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A multirun keeps opened data sets until its process ends; here it ends with the test."""
    if sharing := sys.modules.get("imgcls.data.stores.sharing"):
        monkeypatch.setattr(sharing, "_shared", None)


@pytest.fixture(autouse=True)
def own_seed() -> None:
    """Random weights and images do not depend on which tests ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """What Hydra adds to the root logger when a command runs in this process ends with the test, as its streams do."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
    root.setLevel(level)


Command = Callable[..., int]

DAMAGED_PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG file, and no more."""


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `main` of a command's module with arguments, in this process; returns the exit code."""

    def run(module: Any, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [module.__name__.removesuffix(".__main__"), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            module.main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of 20 px: the third, `2.png`, is damaged, the last, `=6.png`, has the name of a formula."""
    folder, dice = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for name in (*"012345", "=6"):
        Image.fromarray(dice.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "2.png").write_bytes(DAMAGED_PNG)
    return folder


def write_pictures(
    root: Path, splits: dict[str, int], classes: tuple[str, ...] = ("cat", "dog", "owl"), side: int = 24
) -> Path:
    """A tree `root/split/class/N.png` whose classes differ in colour, so that a small network can tell them apart."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for position, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
                pixels[..., position % 3] += 100
                Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """24 training, 8 test images of each of three classes, 24 px."""
    return write_pictures(tmp_path / "pictures", {"train": 24, "test": 8})
