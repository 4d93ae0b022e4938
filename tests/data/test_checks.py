"""Bad files are found and their findings cached until they change; duplicates are found across splits."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.data import checks
from imgcls.data.checks import Findings, bad_as_csv, find_mislabelled, inspect, inspect_together
from imgcls.data.duplicates import difference_hashes, find_duplicates
from imgcls.data.folders import find_split
from imgcls.data.sources import BadFile, Source, Split
from imgcls.images.channels import Depth


def scene(seed: int, side: int = 96) -> Image.Image:
    """A smooth image, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def odd_files(tmp_path: Path) -> dict[str, Path]:
    """One file of every kind that a folder can contain."""
    files = {name: tmp_path / name for name in ("good.jpg", "cut.jpg", "empty.jpg", "page.jpg", "png.jpg", "dead.jpg")}
    scene(0).save(files["good.jpg"])
    files["cut.jpg"].write_bytes(files["good.jpg"].read_bytes()[:-150])
    files["empty.jpg"].touch()
    files["page.jpg"].write_text("<html>Not found</html>")
    scene(1).save(files["png.jpg"], "PNG")
    files["dead.jpg"].symlink_to(tmp_path / "gone.jpg")
    return files


def count_bad(findings: Findings) -> int:
    return sum(findings.reasons != "")


def test_bad_files_and_reasons(odd_files: dict[str, Path]) -> None:
    reasons = inspect(list(odd_files.values())).reasons
    bad = {name: reason.split(" (")[0] for name, reason in zip(odd_files, reasons, strict=True)}
    assert bad == {
        "good.jpg": "",
        "png.jpg": "",
        "cut.jpg": "truncated",
        "empty.jpg": "empty",
        "page.jpg": "not an image",
        "dead.jpg": "no such file",
    }


def test_findings(odd_files: dict[str, Path]) -> None:
    files = [odd_files["good.jpg"], odd_files["png.jpg"]]
    found = inspect(files, workers=1)
    assert found.formats.tolist() == ["JPEG", "PNG"]
    assert found.sizes.tolist() == [[96, 96], [96, 96]]
    assert find_mislabelled(files, found) == [(odd_files["png.jpg"], "PNG")]
    assert np.abs(found.thumbnails[1].mean((0, 1)) - np.asarray(scene(1)).mean((0, 1))).max() < 2


def test_pixels_without_files() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    pixels[69] = pixels[3]
    found = inspect(pixels)
    assert found.formats.tolist() == [""] * 70
    assert len(np.unique(found.digests, axis=0)) == 69
    assert len(inspect([])) == 0


def test_findings_are_cached(odd_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    files, decoded = list(odd_files.values()), []
    fill = Findings.fill

    def record(self: Findings, row: int, picture: Path, *depth: Depth) -> None:
        decoded.append(picture.name)
        fill(self, row, picture, *depth)

    monkeypatch.setattr(Findings, "fill", record)
    first = inspect(files)
    assert len(decoded) == 6
    decoded.clear()
    second = inspect(files)
    assert decoded == ["dead.jpg"], "a missing file is opened again"
    for column, other in zip(first.columns, second.columns, strict=True):
        assert np.array_equal(column, other)

    decoded.clear()
    shutil.copy(odd_files["good.jpg"], odd_files["empty.jpg"])
    os.utime(odd_files["png.jpg"], ns=(1, 1))
    third = inspect(files)
    assert sorted(decoded) == ["dead.jpg", "empty.jpg", "png.jpg"]
    assert third.reasons[files.index(odd_files["empty.jpg"])] == ""


def test_parts_of_a_folder_share_a_cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for number, file in enumerate(files):
        scene(number, 8).save(file)
    for part in (files[::2], files[1::2]):
        inspect(part)
    monkeypatch.setattr(Findings, "fill", lambda self, row, picture: pytest.fail("it is cached"))
    assert inspect(files).sizes.tolist() == [[8, 8]] * 6


def test_processes_look_at_a_part_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are of open files, so that two threads are to each other as two processes."""
    files = [tmp_path / f"{number}.png" for number in range(20)]
    for number, file in enumerate(files):
        scene(number, 8).save(file)
    fill, decoded, both = Findings.fill, list[int](), threading.Barrier(2)

    def record(self: Findings, row: int, *more: Any) -> None:
        if row < 2:  # each part has one of these first: nobody does all before the other has begun
            both.wait(30)
        decoded.append(row)
        fill(self, row, *more)

    monkeypatch.setattr(Findings, "fill", record)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: inspect_together(files, tmp_path / "cache", 1, Depth(3, 8), 2), range(2)))
    assert sorted(decoded) == list(range(20))
    assert all(findings.sizes.tolist() == [[8, 8]] * 20 for findings in found)


def test_an_interrupted_check_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, decoded = [tmp_path / f"{number}.png" for number in range(100)], []
    for number, file in enumerate(files):
        scene(number, 8).save(file)
    fill = Findings.fill

    def interrupt(self: Findings, row: int, picture: Path, *depth: Depth) -> None:
        if picture.name == "70.png":
            raise KeyboardInterrupt
        fill(self, row, picture, *depth)

    monkeypatch.setattr(Findings, "fill", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inspect(files, workers=1)
    monkeypatch.setattr(Findings, "fill", lambda self, row, *more: decoded.append(row) or fill(self, row, *more))
    inspect(files, workers=1)
    assert decoded == list(range(50, 100)), "threads take 25 of 100 images at a time"


def test_a_damaged_cache_is_ignored(
    odd_files: dict[str, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list(odd_files.values())
    inspect(files)
    (file,) = (own_cache / "checks").glob("*.npz")
    for content in (b"", b"PK\x03\x04 no zip", file.read_bytes()[:-30]):
        file.write_bytes(content)
        assert count_bad(inspect(files)) == 4
    monkeypatch.setattr(checks, "_VERSION", "another Pillow")
    assert count_bad(inspect(files)) == 4
    assert count_bad(inspect(files, cache=Path("/dev/null/none"))) == 4, "no cache, no error"


def test_bad_files_as_csv() -> None:
    assert bad_as_csv([BadFile(Path("a,b.png"), "empty")]) == 'path,reason\n"a,b.png",empty\n'


def make_split(*pictures: Image.Image, name: str) -> Split:
    pixels = np.stack([np.asarray(picture.resize((64, 64))) for picture in pictures])
    return Split(tuple(f"{name}/{number}" for number in range(len(pixels))), np.arange(len(pixels)) % 2, pixels)


def test_duplicates_across_splits(tmp_path: Path) -> None:
    scenes = [scene(number) for number in range(200)]
    scenes[7].save(tmp_path / "poor.jpg", quality=40)
    recompressed = Image.open(tmp_path / "poor.jpg")
    smaller = scenes[8].resize((40, 40))
    white, black = (Image.new("RGB", (64, 64), colour) for colour in ("white", "black"))
    train = make_split(*scenes[:100], white, name="train")
    val = make_split(*scenes[100:120], scenes[3], name="val")
    test = make_split(*scenes[120:200], recompressed, smaller, scenes[103], white, black, name="test")
    source = Source(("a", "b"), train, val, test)
    findings = {name: inspect(split.pictures) for name, split in source.splits().items()}
    found = [(pair.kind, pair.name, pair.other_name, pair.same_class) for pair in find_duplicates(source, findings)]
    assert found == [
        ("identical", "val/20", "train/3", False),
        ("near", "test/80", "train/7", False),
        ("near", "test/81", "train/8", False),
        ("identical", "test/83", "train/100", False),  # constant images can be identical, but not near
        ("identical", "test/82", "val/3", False),
    ]


def test_bad_images_are_not_duplicates(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "x.jpg").touch()
    (classes, train), (_, test) = (find_split(tmp_path, tmp_path / split) for split in ("train", "test"))
    source = Source(classes, train, None, test)
    assert find_duplicates(source, {"train": inspect(train.files), "test": inspect(test.files)}) == []


def test_difference_hash() -> None:
    rising = np.repeat(np.arange(9, dtype=np.uint8)[None, None, :, None] * 20, 8, axis=1).repeat(3, axis=3)
    assert difference_hashes(rising).tolist() == [2**64 - 1]
    assert difference_hashes(rising[:, :, ::-1]).tolist() == [0]
