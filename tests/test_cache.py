"""The cache is pruned from its least recently used end, and never of what is in use."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from imgcls.cache import cache
from imgcls.cli import guarded
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.sources import Split
from imgcls.data.stores.disk import build_on_disk, open_on_disk
from imgcls.data.stores.store import ArrayStore, Recipe
from imgcls.system.cache import DESCRIPTIONS, FILES, entries, remove
from imgcls.system.machine import spare_disk
from tests.conftest import write_pictures

RECIPE = Recipe("centre", 16, 16, "bicubic")
MB = 1_000_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without the graphs that all tests share."""
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stores(own_cache: Path) -> list[ArrayStore | None]:
    """Three stores of about 1.5 MB, the first used three days ago, the last today; and what a kill has left."""
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 16, 16, 3), dtype=np.uint8)
    split = Split(tuple(map(str, range(2000))), np.zeros(2000), pixels)
    built: list[ArrayStore | None] = []
    for age in range(3):
        built.append(build_on_disk(own_cache / "stores" / str(age), split, RECIPE, 1))
        when = time.time() - 86_400 * (3 - age)
        os.utime(own_cache / "stores" / str(age) / "store.json", (when, when))
    killed = own_cache / "stores" / "killed.partial"
    killed.mkdir()
    (killed / "pixels.u8").write_bytes(bytes(1000))
    os.utime(killed, (1, 1))
    return built


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "stores").iterdir() if not path.name.startswith("."))


def test_the_list_names_every_store(
    stores: list[ArrayStore | None], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: cache([])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[-1].rstrip(",")).name for line in lines[1:4]] == ["0", "1", "2"]
    assert lines[1].startswith("    1.5 MB  used      3 days ago  ")
    assert "killed.partial, incomplete" in lines[0]
    assert "in 4 folders and files" in lines[4]


def test_the_least_recently_used_go_first(
    stores: list[ArrayStore | None], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores.clear()
    assert guarded(lambda: cache(["prune", "limit=3.5MB"])) == 0
    assert left(own_cache) == ["1", "2"]
    assert "Removed 2 of 4 folders and files" in capsys.readouterr().out
    assert guarded(lambda: cache(["prune", "days=1.5"])) == 0
    assert left(own_cache) == ["2"]
    assert guarded(lambda: cache(["prune"])) == 0
    assert left(own_cache) == []
    assert list((own_cache / "stores").iterdir()) == [], "no lock is left behind"


def test_what_is_in_use_stays(
    stores: list[ArrayStore | None], own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores[0] = stores[2] = None
    child = os.fork()
    if child == 0:  # as another command
        os._exit(guarded(lambda: cache(["prune"])))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert left(own_cache) == ["1"]
    assert open_on_disk(own_cache / "stores" / "1", 2000, RECIPE) is not None


def test_every_kind_is_listed_and_removed(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, description in DESCRIPTIONS.items():
        (own_cache / kind / "one").mkdir(parents=True)
        (own_cache / kind / "one" / description).write_text("{}")
    for kind in FILES:
        (own_cache / kind).mkdir(parents=True)
        for number in range(3):
            (own_cache / kind / str(number)).write_bytes(bytes(5000))
    (own_cache / "data").mkdir()
    assert guarded(lambda: cache([])) == 0
    said = capsys.readouterr().out
    assert all(f"{own_cache / kind / 'one'}\n" in said for kind in DESCRIPTIONS)
    assert all(f"{own_cache / kind}, 3 files\n" in said for kind in FILES)
    assert guarded(lambda: cache(["prune"])) == 0
    left = {path.name for path in own_cache.iterdir() if not path.is_dir() or any(path.iterdir())}
    assert not left
    assert (own_cache / "data").is_dir()


def test_unpacked_images_stay_while_they_are_used(own_cache: Path, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", {"train": 2})
    data = ImageFolder(shutil.make_archive(str(tmp_path / "images"), "zip", root), image_size=16, val_fraction=0.5)
    data.prepare_data()
    assert data.source.train.files[0].is_file()
    (entry,) = entries(own_cache)
    assert entry.kind == "unpacked"
    child = os.fork()
    if child == 0:  # as another command
        os._exit(10 + remove(entry))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    file = data.source.train.files[0]
    del data
    assert remove(entry)
    assert not file.exists()


def test_wrong_arguments_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: cache(["prune", "limit=much"])) == 2
    assert "limit=much" in capsys.readouterr().err
    assert guarded(lambda: cache(["purge"])) == 2


def test_a_part_of_the_disk_stays_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for total, free, spare in ((100, 50, 45), (100, 4, 0), (10**13, 10**11, 9 * 10**10)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=(total, 0, free): type("U", (), dict(zip(("total", "used", "free"), usage, strict=True))))  # fmt: skip # noqa: E501
        assert spare_disk(tmp_path) == spare
