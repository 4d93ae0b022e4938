"""Every command in the README composes; its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from imgcls.config import compose

README = (Path(__file__).parent.parent / "README.md").read_text()
BASH = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
TRAIN = [line for line in BASH if line.startswith("python -m imgcls.train")]
OPTIONS = re.findall(r"`((?:[a-z_]+(?:\.[a-z_]+)*=[^`\s]+ ?)+)`", README)


def sweeps(words: list[str]) -> list[str]:
    """The words of one trial: the first of several values that are separated by commas."""
    return [word if "[" in word else re.sub(r"=([^,]+),.*", r"=\1", word) for word in words]


@pytest.mark.parametrize("line", TRAIN)
def test_commands_compose(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    words = [word for word in shlex.split(line)[3:] if not word.startswith("-")]
    compose(sweeps(words))


@pytest.mark.parametrize(
    "options", [text for text in OPTIONS if not re.search(r"DIR|FILE|…|^(model|data|run_dir)=", text)]
)
def test_options_compose(options: str) -> None:
    data = ["data=cifar10"] if "pretrained" not in options else []
    compose([*data, *options.split()])


def test_the_first_two_commands_are_the_ones_that_are_promised() -> None:
    first, second = BASH[:2]
    assert first.endswith("python -m imgcls.train")
    assert second.endswith("python -m pytest")
    assert "constraints.txt" in first


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    notebook, alone = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = notebook.replace(
        '"run_dir=runs/first"', '"run_dir=runs/first", "trainer.max_epochs=1", "export.onnx=false"'
    )
    assert small != notebook
    exec(small, {})
    exec(alone.replace("max_epochs=1", "max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False"), {})
