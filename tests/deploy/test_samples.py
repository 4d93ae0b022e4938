"""The images that test an endpoint: real ones, and no other files of this machine."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from imgcls.deploy.samples import find_samples
from imgcls.errors import UserError
from tests.inputs.images import encoded, noise


def write_run(folder: Path, root: Path, *files: str) -> Path:
    """A run, perhaps somebody else's, whose test images are `files` in `root`."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"root": str(root)}}))
    with (folder / "predictions.csv").open("w", newline="") as text:
        csv.writer(text).writerows([["file"], *[[file] for file in files]])
    return folder


def test_a_foreign_run_reads_only_images_below_its_data_folder(tmp_path: Path) -> None:
    png, root = encoded(noise()), tmp_path / "root"
    root.mkdir()
    (root / "a.png").write_bytes(png)
    (root / "secret").write_text("password")
    (root / "secret.png").write_text("password")
    (root / "hidden").write_bytes(png)
    (tmp_path / "b.png").write_bytes(png)
    names = ["a.png", "secret", "secret.png", "hidden", "../b.png", str(tmp_path / "b.png"), "none.png"]
    found = find_samples(write_run(tmp_path / "run", root, *names), None, 10, 1 << 20)
    assert [sample.name for sample in found.pictures] == ["a.png"]
    with pytest.raises(UserError, match="no images to test"):
        find_samples(write_run(tmp_path / "other", Path("/"), "etc/passwd"), None, 10, 1 << 20)


def test_a_folder_has_the_images_that_training_finds(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".ipynb_checkpoints/a.png", "b.png/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(noise()))
    found = find_samples(tmp_path, str(tmp_path), 10, 1 << 20)
    assert [sample.name for sample in found.pictures] == ["a.png", "b.png/c.png"]
