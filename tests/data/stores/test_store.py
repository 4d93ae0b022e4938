from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data import threads as thread_module
from imgcls.data.sources import Split
from imgcls.data.stores import checksums as checksum_module
from imgcls.data.stores import disk, placement, together
from imgcls.data.stores import store as store_module
from imgcls.data.stores.disk import build_on_disk, open_on_disk, store_key
from imgcls.data.stores.placement import open_store
from imgcls.data.stores.statistics import channel_statistics
from imgcls.data.stores.store import ArrayStore, DecodingStore, Recipe, evaluation_recipe, training_recipe
from imgcls.errors import UserError
from imgcls.images.preprocessing import Preprocessing
from imgcls.images.rgb import ORIENTATION
from imgcls.system.cache import cache_folder
from imgcls.system.files import take_lock
from tests.processes import run_forked

CENTRE = Recipe("centre", 8, 9, "bicubic")
SQUASH = Recipe("squash", 10, 10, "bilinear")


@pytest.fixture
def files(tmp_path: Path) -> Split:
    """Twelve images of different sizes, one of them damaged."""
    random, paths = np.random.default_rng(0), []
    for number in range(12):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 10 + number, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    paths[5].write_bytes(paths[5].read_bytes()[:40])
    return Split(tuple(path.name for path in paths), np.arange(12) % 3, tuple(paths))


@pytest.mark.parametrize("recipe", [CENTRE, SQUASH])
def test_every_kind_of_store_has_the_same_pixels(files: Split, recipe: Recipe, tmp_path: Path) -> None:
    stores = [open_store(files, recipe, kind, cache=tmp_path) for kind in ("memory", "disk", "none", "auto", "device")]
    positions = torch.tensor([10, 0, 4, 5, 5])
    batches = [store.gather(positions) for store in stores]
    assert all(torch.equal(batch, batches[0]) for batch in batches)
    assert batches[0].shape == (5, 3, recipe.side, recipe.side)
    assert batches[0].dtype == torch.uint8
    good = [number for number in range(12) if number != 5]
    expected = [recipe.pixels(files.open(good[position])) for position in positions.tolist()]
    assert np.array_equal(batches[0].permute(0, 2, 3, 1).numpy(), np.stack(expected))
    for store in stores:
        assert len(store) == len(store.aspects) == 11
        assert [position for position, _ in store.bad] == [5]
        assert store.aspects[[0, 5]].tolist() == pytest.approx([10 / 12, 16 / 12])


def test_pixels_in_memory_are_not_copied(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    store = open_store(Split(tuple("abcd"), np.zeros(4), pixels), CENTRE, cache=tmp_path)
    assert isinstance(store, ArrayStore)
    assert store.pixels is pixels


def test_a_store_on_disk_is_reused(files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(files, CENTRE, "disk", cache=tmp_path)
    monkeypatch.setattr(disk, "decode_rows", None)
    second = open_store(files, CENTRE, "disk", cache=tmp_path)
    assert second.folder == first.folder
    assert second.bad == first.bad


def test_the_key_depends_on_the_content(files: Split, tmp_path: Path) -> None:
    def key(split: Split, recipe: Recipe = CENTRE) -> str:
        return store_key(split, recipe, tmp_path / "cache")

    names = [key(files), key(files, SQUASH), key(files.subset(range(11)))]
    names.append(key(Split(("x", *files.names[1:]), files.labels, files.pictures)))
    pixels = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    for array in (pixels, pixels + 1, pixels[:1]):
        names.append(key(Split(tuple(map(str, range(len(array)))), np.zeros(len(array)), array)))
    assert len(set(names)) == len(names)
    os.utime(files.files[0], (0, 0))
    assert key(files) == names[0], "the modification time is not part of the content"
    moved = tuple(Path(shutil.copy2(path, path.with_suffix(".copy"))) for path in files.files)
    assert key(Split(files.names, files.labels, moved)) == names[0]


def test_a_changed_pixel_rebuilds_the_store(files: Split, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    first = build_on_disk(folder, files, CENTRE, 1)
    expected = first.gather(torch.arange(11)).clone()
    for change in (lambda content: bytes(len(content)), lambda content: content[:-1] + bytes([content[-1] ^ 1])):
        (folder / "pixels.u8").write_bytes(change((folder / "pixels.u8").read_bytes()))
        assert open_on_disk(folder, 12, CENTRE) is None
        assert torch.equal(build_on_disk(folder, files, CENTRE, 1).gather(torch.arange(11)), expected)


@pytest.mark.parametrize("content", ["{}", "[]", '{"bad": 3, "checksums": []}', '{"bad": [[0]], "checksums": [1]}'])
def test_a_store_with_any_damage_is_rebuilt(files: Split, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "one"
    build_on_disk(folder, files, CENTRE, 1)
    (folder / "store.json").write_text(content)
    assert open_on_disk(folder, 12, CENTRE) is None
    assert len(build_on_disk(folder, files, CENTRE, 1)) == 11


def test_a_store_damaged_while_it_is_read_is_an_error(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksum_module, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(checksum_module, "OPENING_CHUNKS", 1)
    monkeypatch.setattr(store_module, "CHECK_EVERY_BATCHES", 1)
    store = build_on_disk(tmp_path / "one", files, CENTRE, 1)
    file = tmp_path / "one" / "pixels.u8"
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        [store.gather(torch.arange(2)) for _ in range(len(content) // 1024 + 1)]


def test_an_incomplete_store_is_rebuilt(files: Split, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    build_on_disk(folder, files, CENTRE, 1)
    with (folder / "pixels.u8").open("r+b") as file:
        file.truncate(100)
    assert open_on_disk(folder, 12, CENTRE) is None
    build_on_disk(folder, files, CENTRE, 1)
    (folder / "store.json").write_text("{")
    assert open_on_disk(folder, 12, CENTRE) is None
    assert len(build_on_disk(folder, files, CENTRE, 1)) == 11


def _build_and_die(folder: Path, files: Split) -> None:
    def die(*_: object) -> None:
        os._exit(9)

    disk.decode_rows = die  # type: ignore[assignment]
    build_on_disk(folder, files, CENTRE, 1)


def test_a_killed_build_leaves_nothing_that_is_mistaken_for_a_store(files: Split, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    process = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(folder, files))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert open_on_disk(folder, 12, CENTRE) is None
    assert len(build_on_disk(folder, files, CENTRE, 1)) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.lock", "one", "pictures"]


def test_a_killed_build_is_resumed_to_the_same_pixels(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when nine of twelve images are decoded, of which eight are noted."""
    whole = build_on_disk(tmp_path / "whole", files, CENTRE, 1)
    monkeypatch.setattr(disk, "BLOCK_ROWS", 4)
    assert disk._blocks_together(CENTRE) > 1

    def build_until_nine() -> None:
        read = Recipe.read

        def dying(self: Recipe, split: Split, position: int) -> Any:
            if position == 9:
                os._exit(9)
            return read(self, split, position)

        Recipe.read = dying  # type: ignore[method-assign]
        thread_module.CHUNKS_AHEAD = 1
        build_on_disk(tmp_path / "one", files, CENTRE, 1)

    process = multiprocessing.get_context("fork").Process(target=build_until_nine)
    process.start()
    process.join()
    assert process.exitcode == 9
    decoded: list[int] = []
    read = Recipe.read
    monkeypatch.setattr(Recipe, "read", lambda *args: (decoded.append(args[2]), read(*args))[1])
    store = build_on_disk(tmp_path / "one", files, CENTRE, 1)
    assert sorted(decoded) == [8, 9, 10, 11]
    assert np.array_equal(store.pixels, whole.pixels)
    assert np.array_equal(store.aspects, whole.aspects)
    assert store.bad == whole.bad
    names = [sorted(file.name for file in (tmp_path / folder).iterdir()) for folder in ("whole", "one")]
    assert names[0] == names[1]


def test_an_interrupted_build_is_continued(files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(disk, "decode_rows", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_on_disk(tmp_path / "one", files, CENTRE, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.lock", "one.partial", "pictures"]
    assert len(build_on_disk(tmp_path / "one", files, CENTRE, 1)) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.lock", "one", "pictures"]


def test_large_jpegs_are_decoded_at_a_part_of_their_size(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:600, :900]
    photo = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(photo).resize((900, 600)).save(tmp_path / "x.jpg", quality=95, exif=exif)
    split = Split(("x.jpg",), np.zeros(1), (tmp_path / "x.jpg",))
    pixels, aspect = split.open_scaled(0, 60)
    assert pixels.shape == (225, 150, 3)  # upright; a quarter is more than twice 60
    assert aspect == pytest.approx(600 / 900)
    assert split.open_scaled(0, 400)[0].shape == (900, 600, 3)
    recipe = Recipe("squash", 60, 60, "bicubic")
    difference = recipe.read(split, 0)[0].astype(float) - recipe.pixels(split.open(0))
    assert 0 < abs(difference).mean() < 3
    exact = evaluation_recipe(Preprocessing(60, 70))
    assert np.array_equal(exact.read(split, 0)[0], exact.pixels(split.open(0)))


def test_a_store_that_another_process_decodes_is_not_waited_for(files: Split, tmp_path: Path) -> None:
    """The other process has begun between this one's look and its lock."""
    folder, partial = tmp_path / "store", tmp_path / "store.partial"
    with (tmp_path / ".store.lock").open("a") as other:
        take_lock(other, wait=True)
        find, allocate = (lambda: open_on_disk(folder, 12, CENTRE)), (lambda partial: None)
        begun = threading.Thread(target=together._begin, args=(folder, find, allocate), daemon=True)
        begun.start()
        partial.mkdir()
        disk._allocate(partial, files, CENTRE)
        take_lock(other, wait=True, shared=True)  # as a process that decodes
        begun.join(60)
        assert not begun.is_alive()


def test_processes_that_start_at_once_decode_a_part_each(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits with its first image until the other has one, too."""
    whole = build_on_disk(tmp_path / "whole", files, CENTRE, 1)
    context = multiprocessing.get_context("fork")
    both, results, read = context.Barrier(2), context.SimpleQueue(), Recipe.read
    monkeypatch.setattr(disk, "BLOCK_ROWS", 2)
    monkeypatch.setattr(disk, "_blocks_together", lambda _: 2)
    monkeypatch.setattr(thread_module, "CHUNKS_AHEAD", 1)

    def build() -> None:
        decoded: list[int] = []

        def meeting(self: Recipe, split: Split, position: int) -> Any:
            if not decoded:
                both.wait(30)
            decoded.append(position)
            return read(self, split, position)

        Recipe.read = meeting  # type: ignore[method-assign]
        store = build_on_disk(tmp_path / "one", files, CENTRE, 1)
        results.put((decoded, store.pixels.tobytes(), store.aspects.tolist(), store.bad))

    run_forked(build, 2)
    first, second = results.get(), results.get()
    assert first[0]
    assert second[0]
    assert sorted(first[0] + second[0]) == list(range(12)), "each image is decoded once"
    assert first[1:] == second[1:] == (whole.pixels.tobytes(), whole.aspects.tolist(), whole.bad)


@pytest.mark.parametrize(
    ("kind", "memory", "disk", "expected"),
    [
        ("auto", 10**9, 10**9, "memory"),  # few images
        ("auto", 0, 10**9, "disk"),
        ("auto", 0, 0, "nothing"),
        ("memory", 0, 10**9, "disk"),
        ("disk", 10**9, 0, "memory"),
        ("disk", 0, 0, "nothing"),
        ("none", 10**9, 10**9, "nothing"),
    ],
)
def test_falls_back_where_space_is_short(
    files: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    memory: int,
    disk: int,
    expected: str,
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda: memory)
    monkeypatch.setattr(placement, "spare_disk", lambda _: disk)
    caplog.set_level(logging.INFO)
    store = open_store(files, CENTRE, kind, cache=tmp_path, title="train")
    place = "nothing" if isinstance(store, DecodingStore) else "disk" if store.folder else "memory"
    assert place == expected
    assert "train:" in caplog.text
    assert ("2.3 kB" in caplog.text) == (kind != "none"), "the size is logged"
    if kind == "auto":
        (line,) = [record.getMessage() for record in caplog.records]
        assert ("need no file" in line) == (memory > 0)
        assert ("0 bytes of free memory" in line) == (memory == 0)
        assert ("and 0 bytes of free disk" in line) == (disk == 0)
    elif expected != kind and kind != "none":
        assert f"data.store={kind} has no room" in caplog.text


def test_many_images_and_several_processes_use_the_disk(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_store(files, CENTRE, cache=tmp_path, processes=2).folder is not None
    monkeypatch.setattr(placement, "FEW_IMAGES", 5)
    assert open_store(files, SQUASH, cache=tmp_path).folder is not None


def test_works_without_a_writable_cache(files: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("in the way")
    store = open_store(files, CENTRE, "disk", cache=tmp_path / "cache")
    assert isinstance(store, ArrayStore)
    assert store.folder is None
    assert "no store on disk" in caplog.text


def test_a_full_disk_is_noticed_before_decoding(files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(disk, "decode_rows", None)
    with pytest.raises(OSError, match="No space left"):
        build_on_disk(tmp_path / "one", files, CENTRE, 1)
    assert open_store(files, CENTRE, "disk", cache=tmp_path).folder is None


def test_training_images_are_stored_no_larger_than_they_are() -> None:
    small = Split(tuple("ab"), np.zeros(2), np.zeros((2, 32, 32, 3), dtype=np.uint8))
    wide = Split(tuple("ab"), np.zeros(2), np.zeros((2, 300, 500, 3), dtype=np.uint8))
    at_224 = Preprocessing(224, 256)
    assert training_recipe(small, "squash", at_224) == Recipe("squash", 32, 32, "bicubic")
    assert training_recipe(wide, "squash", at_224) == Recipe("squash", 255, 255, "bicubic")
    assert training_recipe(small, "centre", Preprocessing(64, 64)) == Recipe("centre", 32, 32, "bicubic")
    assert training_recipe(small, "centre", Preprocessing(32, 36)) == Recipe("centre", 32, 36, "bicubic")
    assert training_recipe(wide, "centre", at_224) == evaluation_recipe(at_224) == Recipe("centre", 224, 256, "bicubic")


def test_the_cache_folder_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGCLS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/imgcls")
    monkeypatch.setenv("IMGCLS_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_free_memory_is_known() -> None:
    assert placement.free_memory() > 0


def test_statistics_are_those_of_all_pixels_and_saved_with_the_store(
    files: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(files, CENTRE, "disk", cache=tmp_path)
    mean, std = channel_statistics(store)
    pixels = store.gather(torch.arange(11)).double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
    monkeypatch.setattr("imgcls.data.stores.statistics._count", None)
    assert channel_statistics(open_store(files, CENTRE, "disk", cache=tmp_path)) == (mean, std)
