"""What the pages in docs/ show works: commands compose, files and classes do what is said of them."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from imgcls.config import compose
from tests.conftest import write_pictures

PAGES = sorted((Path(__file__).parent.parent / "docs").rglob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    text = next(path for path in PAGES if path.stem == page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page on data describes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    pictures = write_pictures(tmp_path / "pictures", {"train": 6, "test": 2}, ("daisy", "rose"))
    for block in blocks("data", "yaml"):
        match = re.search(r"^# (conf/\S+)$", block, re.MULTILINE)
        assert match, block
        file = tmp_path / match[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block)
    rows = [
        f"{path.relative_to(pictures)},{path.parent.name},{path.parent.parent.name}" for path in pictures.rglob("*.png")
    ]
    (pictures / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    (tmp_path / "flowers.py").write_text(blocks("data", "python")[0])
    return pictures


def test_every_command_composes(flowers: Path) -> None:
    lines = [line for page in PAGES for block in blocks(page.stem, "bash") for line in block.splitlines()]
    trainings = [line for line in lines if line.startswith(("python -m imgcls.train", "python -m imgcls.prepare"))]
    assert len(trainings) >= 6
    for line in trainings:
        words = [word for word in shlex.split(line)[3:] if not word.startswith("-")]
        compose(words)


def test_a_data_set_of_ones_own(flowers: Path) -> None:
    from hydra.utils import instantiate

    sys.modules.pop("flowers", None)
    named, table = compose(["data=flowers"]), compose(["data=flowers_table", "data.image_size=24", "data.resize=24"])
    assert (named.model.name, named.data.image_size) == ("convnext_tiny.in12k_ft_in1k", 192)
    datamodule = instantiate(table.data, _convert_="all")
    datamodule.setup()
    assert type(datamodule).__name__ == "Flowers"
    assert datamodule.class_names == ("daisy", "rose")
    assert [len(split) for split in datamodule.source.splits().values()] == [11, 1, 4]
    assert next(iter(datamodule.train_dataloader())).images.shape == (11, 3, 24, 24)


@pytest.mark.parametrize("page", [page.stem for page in PAGES])
def test_every_option_composes(page: str, flowers: Path) -> None:
    text = next(path for path in PAGES if path.stem == page).read_text()
    options = re.findall(r"`((?:[a-z_]+(?:\.[a-z_]+)*=[^`\s]+ ?)+)`", text)
    for option in options:
        words = option.split()
        elsewhere = r"s3:|^(logger=|model\.weights|run_dir|experiment|augment=mine)|…$"
        if not any(re.search(elsewhere, word) for word in words):
            compose(["data=imagefolder", "data.root=pictures", *words])
