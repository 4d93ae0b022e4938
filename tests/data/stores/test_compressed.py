"""A compressed store holds the same images, nearly, in a fraction of the bytes."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data import threads
from imgcls.data.sources import Split
from imgcls.data.stores import compressed, placement
from imgcls.data.stores.compressed import CompressedStore, build_compressed
from imgcls.data.stores.placement import open_store
from imgcls.data.stores.store import ArrayStore, DecodingStore, Recipe
from imgcls.errors import UserError
from tests.processes import run_forked

SQUASH = Recipe("squash", 64, 64, "bicubic")


@pytest.fixture
def files(tmp_path: Path) -> Split:
    """Ten smooth images of different sizes, the fourth damaged."""
    dice, paths = np.random.default_rng(0), []
    for number in range(10):
        small = Image.fromarray(dice.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{number}.png")
        small.resize((100 + number, 80), Image.Resampling.BICUBIC).save(paths[-1])
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    return Split(tuple(path.name for path in paths), np.arange(10) % 2, tuple(paths))


def test_images_are_nearly_those_of_other_stores(files: Split, tmp_path: Path) -> None:
    exact = open_store(files, SQUASH, "none", cache=tmp_path)
    store = open_store(files, SQUASH, "jpeg", cache=tmp_path, workers=2, quality=95)
    assert isinstance(store, CompressedStore)
    assert len(store) == 9
    assert [position for position, _ in store.bad] == [3]
    assert np.allclose(store.aspects, exact.aspects)
    positions = torch.tensor([8, 0, 3, 3])
    batch, expected = store.gather(positions), exact.gather(positions)
    assert batch.shape == (4, 3, 64, 64)
    assert batch.dtype == torch.uint8
    difference = (batch.float() - expected.float()).abs().mean()
    assert 0 < difference < 3
    assert store.folder is not None
    assert (store.folder / "images.jpegs").stat().st_size < 0.3 * SQUASH.nbytes(9)


def test_it_is_found_again_and_quality_is_part_of_its_name(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store(files, SQUASH, "jpeg", cache=tmp_path, quality=95)
    poor = open_store(files, SQUASH, "jpeg", cache=tmp_path, quality=20)
    assert poor.folder != first.folder
    pixels = first.gather(torch.arange(9))
    assert not torch.equal(pixels, poor.gather(torch.arange(9)))
    monkeypatch.setattr(placement, "build_compressed", lambda *_: pytest.fail("it was built again"))
    assert torch.equal(open_store(files, SQUASH, "jpeg", cache=tmp_path, quality=95).gather(torch.arange(9)), pixels)


def digest(store: CompressedStore) -> str:
    return hashlib.sha256(store.gather(torch.arange(len(store))).numpy().tobytes()).hexdigest()


def test_processes_build_it_together_and_go_on_after_a_kill(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed in its third block of two images; then two share what is left."""
    whole = build_compressed(tmp_path / "whole", files, SQUASH, 1, 95)
    context = multiprocessing.get_context("fork")
    both, results, read = context.Barrier(2), context.SimpleQueue(), Recipe.read
    monkeypatch.setattr(threads, "CHUNKS_AHEAD", 1)

    def build(block: int, last: int) -> None:
        monkeypatch.setattr(compressed, "BLOCK_ROWS", block)
        done: list[int] = []

        def watched(self: Recipe, split: Split, position: int) -> Any:
            if position == last:
                os._exit(9)
            if last == 99 and not done:
                both.wait(30)
            done.append(position)
            return read(self, split, position)

        Recipe.read = watched  # type: ignore[method-assign]
        store = build_compressed(tmp_path / "one", files, SQUASH, 1, 95)
        results.put((done, digest(store), store.aspects.tolist(), store.bad))

    killed = context.Process(target=build, args=(2, 5))
    killed.start()
    killed.join(60)
    assert killed.exitcode == 9
    run_forked(partial(build, 2, 99), 2)
    first, second = results.get(), results.get()
    assert first[0]
    assert second[0]
    assert sorted(first[0] + second[0]) == list(range(4, 10)), "each image that is left is compressed once"
    assert first[1:] == second[1:] == (digest(whole), whole.aspects.tolist(), whole.bad)
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == ["images.jpegs", "places.npy", "store.json"]


def test_evaluation_and_what_fits_are_not_compressed(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre = Recipe("centre", 64, 64, "bicubic")
    assert isinstance(open_store(files, centre, "jpeg", cache=tmp_path), ArrayStore)
    assert isinstance(open_store(files, SQUASH, "auto", cache=tmp_path), ArrayStore)
    monkeypatch.setattr(placement, "free_memory", lambda: 0)
    monkeypatch.setattr(placement, "spare_disk", lambda _: SQUASH.nbytes(10))  # of which four fifths may be taken
    assert isinstance(open_store(files, SQUASH, "auto", cache=tmp_path), CompressedStore)
    assert isinstance(open_store(files, centre, "auto", cache=tmp_path), DecodingStore)
    monkeypatch.setattr(placement, "spare_disk", lambda _: SQUASH.nbytes(1))
    assert isinstance(open_store(files, SQUASH, "auto", cache=tmp_path / "other"), DecodingStore)


def test_a_build_that_fills_the_disk_leaves_nothing(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, content: bytes) -> int:
        file.write_bytes(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compressed, "_append", full)
    assert isinstance(open_store(files, SQUASH, "jpeg", cache=tmp_path), DecodingStore)
    assert not list((tmp_path / "stores").glob("*.partial"))


def test_what_an_unfinished_build_has_written_needs_no_room(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "spare_disk", lambda _: 1)
    assert isinstance(open_store(files, SQUASH, "jpeg", cache=tmp_path), DecodingStore)
    with monkeypatch.context() as patch:
        patch.setattr(placement, "disk_use", lambda folder: SQUASH.nbytes(10) if folder.suffix == ".partial" else 0)
        assert isinstance(open_store(files, SQUASH, "jpeg", cache=tmp_path), CompressedStore)


def test_damage_is_an_error_that_names_the_store(files: Split, tmp_path: Path) -> None:
    store = open_store(files, SQUASH, "jpeg", cache=tmp_path)
    assert store.folder is not None
    images = store.folder / "images.jpegs"
    with images.open("r+b") as file:
        file.write(bytes(200))
    with pytest.raises(UserError, match="is damaged"):
        store.gather(torch.tensor([0]))
    images.write_bytes(images.read_bytes()[:-1])
    rebuilt = open_store(files, SQUASH, "jpeg", cache=tmp_path)
    assert rebuilt.gather(torch.tensor([0])).float().std() > 10
