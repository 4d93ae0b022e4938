"""Find images in the folders that people have, and refuse those that cannot be right."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.data.folders import find_split, find_splits, need_folder, pictures_in, readable_names
from imgcls.data.imagefolder import find_folder, split_folders
from imgcls.data.sources import BadFile, FilesIn, Source, Split
from imgcls.data.splits import cut, with_validation
from imgcls.errors import UserError
from imgcls.images.signatures import has_picture_signature


def touch(root: Path, *names: str) -> Path:
    """Create empty files, which are found without being opened."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def many(*folders: str, count: int = 10) -> list[str]:
    return [f"{folder}/{number:03}.jpg" for folder in folders for number in range(count)]


def test_files_that_people_have(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *("cats/a.JPG", "cats/é è.Png", "cats/deep/er/b.webp", "cats/c.tar.jpeg"),
        *("cats/.hidden.jpg", "cats/._a.jpg", "cats/.git/x.jpg", "cats/__MACOSX/y.jpg", "cats/Thumbs.db", "cats/jpg"),
        *("cats/notes.txt", "dogs/1.tiff", ".cache/x.jpg", "__MACOSX/x.jpg", "loose.jpg"),
    )
    os.mkfifo(tmp_path / "cats" / "pipe.jpg")
    classes, split = find_split(tmp_path, tmp_path)
    assert classes == ("cats", "dogs")
    assert split.names == ("cats/a.JPG", "cats/c.tar.jpeg", "cats/deep/er/b.webp", "cats/é è.Png", "dogs/1.tiff")
    assert split.labels.tolist() == [0, 0, 0, 0, 1]
    assert all(path.is_file() for path in split.files)


def test_images_that_are_not_called_like_one_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, *many("cats", "dogs", count=3), "cats/notes.txt", "cats/README", "owls/x.txt")
    Image.new("RGB", (8, 8)).save(tmp_path / "cats" / "IMG_1", "JPEG")
    Image.new("RGB", (8, 8)).save(tmp_path / "dogs" / "a.png_large", "PNG")
    with pytest.raises(UserError, match=r"The class 'owls' has no images in .*owls\. Add images or remove the class"):
        find_folder(tmp_path, 0, seed=0)
    Image.new("RGB", (8, 8)).save(tmp_path / "owls" / "x", "WEBP")
    with pytest.raises(UserError, match=r"owls. 1 files are images, .*owls/x. Rename them, for example to x\.jpg\."):
        find_folder(tmp_path, 0, seed=0)
    (tmp_path / "owls" / "x").rename(tmp_path / "owls" / "x.webp")
    source = find_folder(tmp_path, 0, seed=0)
    assert len(source.train) == 7
    assert len(source.notes) == 1
    assert source.notes[0].startswith("2 files are images, but are not used, as their names do not end like one: ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "QOI"])
def test_images_are_told_by_their_first_bytes(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x", kind)
    assert has_picture_signature(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"BMI is a number")
    assert not has_picture_signature(tmp_path / "x")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.jpg", "elsewhere/more/y.jpg", "root/cats/a.jpg", "root/dogs/b.jpg")
    root = tmp_path / "root"
    (root / "cats" / "all").symlink_to(tmp_path / "elsewhere")
    (root / "cats" / "again").symlink_to(tmp_path / "elsewhere")
    (root / "cats" / "up").symlink_to(root)
    (root / "cats" / "self").symlink_to(root / "cats")
    (root / "cats" / "link.jpg").symlink_to(root / "dogs" / "b.jpg")
    (root / "cats" / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    (root / "owls").symlink_to(tmp_path / "elsewhere")
    _, split = find_split(root, root)
    cats = [name for name in split.names if name.startswith("cats/")]
    assert sorted(name.rpartition("/")[2] for name in cats) == ["a.jpg", "dead.jpg", "link.jpg", "x.jpg", "y.jpg"]
    assert [name for name in split.names if name.startswith("owls/")] == ["owls/more/y.jpg", "owls/x.jpg"]


def test_many_crossing_links_take_little_time(tmp_path: Path) -> None:
    folders = [tmp_path / "class" / f"{number}" for number in range(12)]
    for folder in folders:
        touch(folder, "x.jpg")
    for folder in folders:
        for other in folders:
            (folder / f"to{other.name}").symlink_to(other)
    assert len(pictures_in(tmp_path / "class")) == 12


def test_accents_are_equal_composed_and_decomposed(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    touch(tmp_path, *many(f"train/{composed}", "train/thé", f"test/{decomposed}", "test/thé", count=1))
    names, splits = find_splits(tmp_path, split_folders(tmp_path))
    assert names == ("café", "thé")
    assert splits["test"].names[0] == f"test/{composed}/000.jpg"
    assert splits["test"].files[0].is_file()


def test_names_that_are_not_text(tmp_path: Path) -> None:
    touch(tmp_path, *many("a", "b", count=1))
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.jpg")).touch()
    _, split = find_split(tmp_path, tmp_path)
    assert split.names == ("a/000.jpg", "a/\\xff.jpg", "b/000.jpg")
    assert split.files[1].is_file()


@pytest.mark.parametrize(
    "layout", ["train val test", "Training Validation TESTING", "TRAIN valid test", "train dev testing"]
)
def test_usual_names(layout: str, tmp_path: Path) -> None:
    train, val, test = layout.split()
    touch(tmp_path, *many(f"{train}/a", f"{train}/b", count=3), *many(f"{val}/a", f"{val}/b", count=2))
    touch(tmp_path, *many(f"{test}/a", f"{test}/b", count=1))
    source = find_folder(tmp_path, 0.2, seed=0)
    assert {name: len(split) for name, split in source.splits().items()} == {"train": 6, "val": 4, "test": 2}


def test_a_file_takes_one_text(tmp_path: Path) -> None:
    """Of 14 million files each more would take a gigabyte in each process."""
    root = touch(tmp_path, *many("train/cat", "train/dog", count=2))
    _, split = find_split(root, root / "train")
    assert isinstance(split.files, FilesIn)
    assert all(name is text for name, text in zip(split.names, split.files.names, strict=True))
    assert [*split.files] == [root / name for name in split.names]


def test_one_folder_is_split(tmp_path: Path) -> None:
    touch(tmp_path, *many("001.a_b", "002.c", count=50))
    source = find_folder(tmp_path, 0.2, seed=0)
    assert source.class_names == ("001.a_b", "002.c"), "a class is called like its folder"
    source = with_validation(source, 0.1, seed=0)
    assert [len(split) for split in source.splits().values()] == [72, 8, 20]
    assert find_folder(tmp_path, 0, seed=0).test is None


def test_a_class_called_train(tmp_path: Path) -> None:
    touch(tmp_path, *many("train", "car", "plane"))
    assert find_folder(tmp_path, 0.2, seed=0).class_names == ("car", "plane", "train")
    touch(tmp_path / "other", *many("train/a", "train/b", "test/a", "test/b", "notes"))
    assert find_folder(tmp_path / "other", 0.2, seed=0).class_names == ("a", "b")


def test_unsorted_test_images_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, *many("train/a", "train/b"), *many("test"))
    source = find_folder(tmp_path, 0.2, seed=0)
    assert source.test is None
    assert source.notes == (f"The 10 images in {tmp_path}/test are in no class folder and are not used.",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "the folder is empty"),
        (["a.jpg", "b.jpg"], r"has no class folders. Its 2 images are in no class folder. Expected .*/<class>/"),
        (["notes.txt"], "has no class folders. Expected"),
        (many("a"), "has only one class, 'a'; a classifier needs at least two.$"),
        (many("set/a", "set/b"), r"only one class, 'set'.* If a, b … are the classes: data.root=.*/set\."),
        ([*many("a"), "b/notes.txt"], "The class 'b' has no images in .*/b. Add images or remove the class."),
        ([*many("train/a", "train/b"), "test/a/1.jpg", "test/b/x.txt"], "The class 'b' has no images in .*/test/b"),
        (many("train/a", "train/b", "test/a"), "train and test in .* differ: 'b' in train but not in test"),
        (many("train/a", "train/b", "test/a", "test/b", "test/c"), "'c' in test but not in train"),
        (many(*[f"train/{n}" for n in "abcdef"], "test/a"), "'b', 'c', 'd' and 2 more in train but not in test"),
        (
            many("train/a", "train/b", "val/a", "val/b", "valid/a"),
            "has val and valid for the same split",
        ),
        (many("val/a", "val/b", "test/a", "test/b"), "has no folder 'train'. Expected train/<class>/"),
        (many("train"), "train has no class folders. Its 10 images"),
    ],
)
def test_folders_that_cannot_be_right_are_refused(files: list[str], message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    touch(root, *files)
    with pytest.raises(UserError, match=message):
        find_folder(need_folder(root, "imagefolder"), 0.2, seed=0)


def test_invalid_roots_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    for root, message in [
        (None, "needs data.root=DIR"),
        (tmp_path / "x", "no such folder"),
        (tmp_path / "file", "a file"),
    ]:
        with pytest.raises(UserError, match=message):
            need_folder(root, "imagefolder")


def test_an_unreadable_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, *many("a", "b"))
    (tmp_path / "a").chmod(0)
    try:
        if os.access(tmp_path / "a", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(UserError, match="may not be read"):
            find_split(tmp_path, tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


def test_readable_names() -> None:
    folders = ["001.Affenpinscher", "002.Afghan_hound", "n02085620-Chihuahua", "coffee-mug", "101.head-phones"]
    assert readable_names([*folders, "127.laptop-101", "7", "2024", "boeing-737", "3d_glasses"]) == (
        *("Affenpinscher", "Afghan hound", "Chihuahua", "coffee-mug", "head-phones"),
        *("laptop", "7", "2024", "boeing-737", "3d glasses"),
    )
    assert readable_names(["001.a", "002.a"]) == ("001.a", "002.a"), "names stay unique"


def make_split(per_class: list[int], prefix: str = "") -> Split:
    names = [f"{prefix}{label}/{number}" for label, count in enumerate(per_class) for number in range(count)]
    labels = np.repeat(np.arange(len(per_class)), per_class)
    return Split(tuple(names), labels, np.zeros((len(names), 1, 1, 3), dtype=np.uint8))


def test_cut_is_stratified_and_complete() -> None:
    split = make_split([100, 40, 10, 3, 1])
    parts = cut(split, [0.7, 0.1, 0.2], seed=1)
    assert sorted(name for part in parts for name in part.names) == sorted(split.names)
    for share, part in zip([0.7, 0.1, 0.2], parts, strict=True):
        assert np.abs(part.class_counts(5) - share * np.array([100, 40, 10, 3, 1])).max() <= 1
    assert parts[0].class_counts(5).min() >= 1


def test_small_classes_have_their_share_on_average() -> None:
    for count, classes in [(2, 133), (4, 133), (3, 50)]:
        train, val = cut(make_split([count] * classes), [0.9, 0.1], seed=0)
        assert abs(len(val) - 0.1 * count * classes) <= 1
        assert len(np.unique(train.labels)) == classes


def test_cut_depends_on_seed_and_names_alone() -> None:
    split = make_split([30, 30])
    shuffled = split.subset(np.random.default_rng(0).permutation(60))
    test, test_shuffled = (set(cut(part, [0.8, 0.2], seed=3)[1].names) for part in (split, shuffled))
    assert test == test_shuffled
    assert test != set(cut(split, [0.8, 0.2], seed=4)[1].names)
    assert cut(split, [0.8, 0.2], seed=3)[1].names[:4] == ("0/7", "0/9", "0/12", "0/22"), "the same on every machine"


def test_an_empty_validation_split_is_refused() -> None:
    with pytest.raises(UserError, match="Raise data"):
        with_validation(Source(("a", "b"), make_split([1, 1])), 0.1, seed=0)


def test_without_bad_files(tmp_path: Path) -> None:
    touch(tmp_path, *many("a", "b", count=3))
    classes, split = find_split(tmp_path, tmp_path)
    source = Source(classes, split, test=split)
    bad = [BadFile(split.files[1], "empty")]
    rest = source.without(bad)
    assert rest.bad == tuple(bad)
    assert [len(part) for part in rest.splits().values()] == [5, 5]
    assert rest.without([]) is rest
    with pytest.raises(UserError, match=r"No training image of class 'b' can be used \(for example .*b/000.jpg: empty"):
        source.without([BadFile(path, "empty") for path in split.files[3:]])
