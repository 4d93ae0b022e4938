"""The table that says what is in a data set, from the function and from the command line."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imgcls.data import checks, threads
from imgcls.data.augment import Augment
from imgcls.data.crops import RandomResizedCrop
from imgcls.data.digits import Digits
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.stores import disk
from imgcls.errors import UserError
from imgcls.images import decoding
from imgcls.prepare import main, prepare, table, take_share
from imgcls.system.shares import Share
from tests.conftest import write_pictures
from tests.processes import as_by_torchrun


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Images among which one is broken, one mislabelled and one in two splits."""
    root = write_pictures(tmp_path / "set", {"train": 10, "val": 2, "test": 3})
    (root / "train" / "cat" / "000.png").write_bytes(b"")
    shutil.copy(root / "train" / "dog" / "001.png", root / "test" / "dog" / "twin.png")
    shutil.move(root / "train" / "owl" / "002.png", root / "train" / "owl" / "002.jpg")
    return root


def test_prepare(odd_folder: Path, own_cache: Path) -> None:
    data = ImageFolder(odd_folder, image_size=16, resize=16, batch_size=8, store="disk")
    found = prepare(data)
    assert {name: counts.tolist() for name, counts in found.counts.items()} == {
        "train": [9, 10, 10],
        "val": [2, 2, 2],
        "test": [3, 4, 3],
    }
    assert found.pictures == 45
    assert found.formats == {"PNG": 45}
    assert [(file.path.name, file.reason) for file in found.bad] == [("000.png", "empty")]
    assert found.mislabelled == [(odd_folder / "train" / "owl" / "002.jpg", "PNG")]
    assert found.duplicates is not None
    assert [(one.kind, one.name, one.other_name) for one in found.duplicates] == [
        ("identical", "test/dog/twin.png", "train/dog/001.png")
    ]
    assert 0.2 < found.mean[0] < 0.5
    assert all(folder and folder.is_relative_to(own_cache) for folder in found.stores.values())
    assert len(data.train_dataloader()) == 3, "it is ready to train"

    lines = table(found).splitlines()
    assert lines[0].split() == ["class", "train", "val", "test"]
    assert lines[4].split() == ["all", "3", "classes", "29", "6", "10"]
    assert "sizes       24x24 px" in lines
    assert "formats     PNG 45" in lines
    assert "bad files   1, left out:" in lines
    assert f"  {odd_folder}/train/cat/000.png: empty" in lines
    assert "duplicates  1 identical in test and train:" in lines
    assert "  test test/dog/twin.png = train train/dog/001.png (identical)" in lines


def test_images_are_decoded_once(odd_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is so large that it is decoded at a part of its size for training, which is not what is inspected."""
    Image.new("RGB", (160, 200)).save(odd_folder / "train" / "cat" / "large.jpg")
    decoded, original = Counter(), decoding._opened

    def count(source: Path, *args: Any) -> Any:
        decoded[source.name] += 1
        return original(source, *args)

    monkeypatch.setattr(decoding, "_opened", count)
    monkeypatch.setattr(decoding, "is_installed", lambda: False)  # which reads the file before it is opened
    options = {"image_size": 16, "resize": 16, "store": "disk", "augment": Augment(RandomResizedCrop())}
    found = prepare(ImageFolder(odd_folder, **options))
    assert found.pictures == 46
    assert decoded.pop("large.jpg") == 2
    assert sum(decoded.values()) == 46
    decoded.clear()
    assert [*map(str, prepare(ImageFolder(odd_folder, **options)).duplicates)] == [*map(str, found.duplicates)]
    assert not decoded


@pytest.mark.parametrize("store", ["disk", "none"])
def test_processes_prepare_a_part_each(
    store: str, odd_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "BLOCK_ROWS", 4)
    monkeypatch.setattr(disk, "_blocks_together", lambda _: 2)
    monkeypatch.setattr(threads, "CHUNKS_AHEAD", 1)

    def data() -> ImageFolder:
        return ImageFolder(odd_folder, image_size=16, resize=16, store=store, num_workers=1)

    def work() -> list[str]:
        decoded, original = [], decoding._opened
        decoding._opened = lambda source, *args: (decoded.append(str(source)), original(source, *args))[1]
        take_share(data(), Share.of_this_process())
        return decoded

    first, second = as_by_torchrun(2, work)
    assert len(first) + len(second) == len({*first, *second}) == 46
    assert first
    assert second
    with monkeypatch.context() as patched:
        patched.setattr(checks, "decode", None)
        found = prepare(data())
    assert found.pictures == 45
    assert [(file.path.name, file.reason) for file in found.bad] == [("000.png", "empty")]


def test_bad_files_can_be_fatal(odd_folder: Path) -> None:
    with pytest.raises(UserError, match=r"000.png: empty.*data.on_bad=skip"):
        prepare(ImageFolder(odd_folder, image_size=16, resize=16, on_bad="error"))


def test_pictures_that_are_no_files() -> None:
    found = prepare(Digits(image_size=8, resize=8), duplicates=False)
    assert found.pictures == 1797
    assert (found.formats, found.duplicates) == ({}, None)
    assert "8x8 px" in table(found)
    assert "duplicates" not in table(found)


def test_command(
    odd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    given = ("data=imagefolder", f"data.root={odd_folder}", "data.image_size=16", "model.pretrained=false")
    code, out, err = run(*given, f"output={tmp_path / 'out'}")
    assert (code, err) == (0, "")
    assert "all 3 classes" in out
    assert (tmp_path / "out" / "bad_files.csv").read_text().endswith("000.png,empty\n")
    assert "twin.png,train,train/dog/001.png,True" in (tmp_path / "out" / "duplicates.csv").read_text()

    for words, message in [
        (["data=pictures/sheet.xls"], "there is no data called 'pictures/sheet.xls', and no such folder or file."),
        (["data=imagefoldr"], "'imagefoldr', and no such folder or file. Did you mean imagefolder?"),
        (["data=imagefolder"], "data=imagefolder needs data.root=DIR"),
        (["data=imagefolder", f"data.root={tmp_path / 'none'}"], "no such folder"),
        (["nonsense"], "Unexpected argument 'nonsense'."),
        (["duplicates=maybe"], "duplicates=maybe: must be true or false."),
    ]:
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert message in err
