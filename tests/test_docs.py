"""What README and docs/ show works: commands run or compose, files and programs do what is said of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from imgcls import export, predict, prepare
from imgcls.cli import read_options
from imgcls.config.composition import compose
from imgcls.serve import __main__ as serving
from tests.conftest import write_pictures
from tests.documents import PAGES, ROOT, Command, blocks, commands, one_trial, options, run_here
from tests.trainings import compose_with

HYDRA = ("train", "prepare")
ELSEWHERE = {
    r"^python3 -m venv \.venv && ": ".ci/run runs the second of them, test_readme.py looks at both",
    r"^uv venv ": "the same with another installer",
    r"^\.venv/bin/(python -m pytest|ruff|mypy)": "what .ci/run does",
    r"^(\.venv/bin/)?(sphinx-build|jupyter|jupytext) ": "test_pages.py and test_notebooks.py build and run them",
    r"^torchrun .* -m imgcls\.(prepare|evaluate|predict|embed) ": "the tests of these commands, as torchrun would",
    r"^(pip install 'imgcls\[|curl|docker|aws) ?": "other programs; tests/serve sends the same requests",
}
"""Lines that are no commands of imgcls, and what runs them."""

NOT_COMPOSED = re.compile(
    r"s3:|hf-hub:|DIR|FILE|URI|…|^group\b|^(run|job|output|split|checkpoint|logger|model\.weights|run_dir|experiment)=|augment=mine"
    r"|^(device|host|port|target|urls|url_allow|allowed_hosts|cors|api_key|access_log|examples|feedback|capture\w*|reference|engine|format|precision|preprocessing|canary|top_k|coverage|endpoint|onnx|audit)=|^data=(table|huggingface)$"
)
"""Options of other commands, and those that name what is not here."""

QUICK = ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]
QUICK += ["model.name=test_resnet", "export.onnx=false", "debug.profile=false", "report=false"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the pages speak of: images, configuration files, modules, and runs that were trained."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        _write_files(folder)
        _write_pictures(folder)
        _train_quickly(patch)
        for block in blocks("python"):
            if block.file is None:
                exec(compile(block.text, block.page, "exec"), {})
        for name in ("second", "species"):
            shutil.copytree(folder / "runs" / "first", folder / "runs" / name)
        yield folder


def _write_files(folder: Path) -> None:
    for block in [*blocks("yaml"), *blocks("python")]:
        if block.file is not None:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)


def _write_pictures(folder: Path) -> None:
    pictures = write_pictures(folder / "pictures", {"train": 6, "test": 2}, ("daisy", "rose"))
    rows = [f"{path.relative_to(pictures)},{path.parent.name},{path.parent.parent.name}" for path in every(pictures)]
    (pictures / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    (folder / "labels.csv").write_text("\n".join(["file,label,split", *(f"pictures/{row}" for row in rows)]))
    shutil.copytree(pictures, folder / "corrections")
    shutil.make_archive(str(pictures), "zip", pictures)
    write_pictures(folder / "other_pictures", {"": 4}, ("zero", "one", "two"))
    for name in ("holiday", "archive", "shards", "food101"):
        (folder / name).mkdir()
    for name in ("picture.png", "picture.jpg", "holiday/1.jpg", "archive/1.jpg"):
        Image.new("RGB", (40, 30), (90, 120, 40)).save(folder / name)


def every(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def _train_quickly(patch: pytest.MonkeyPatch) -> None:
    compose_with(patch, QUICK)
    for name, value in {"LIMIT_TRAIN_BATCHES": "2", "LIMIT_VAL_BATCHES": "1", "LOGGER": "False"}.items():
        patch.setenv(f"PL_TRAINER_{name}", value)  # Lightning's own defaults of a Trainer that says nothing of them


@pytest.fixture
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(world))
    return world


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {block.language.partition("}")[0] for block in blocks()}
    assert kinds <= {"", "text", "bash", "yaml", "python", "{eval-rst", "{toctree", "{include"}


def test_every_command_is_run_or_composed() -> None:
    unknown = [
        f"{command.page}: {command.line}"
        for command in commands()
        if command.module is None and not any(re.search(pattern, command.line) for pattern in ELSEWHERE)
    ]
    assert not unknown
    assert all(any(re.search(pattern, command.line) for command in commands()) for pattern in list(ELSEWHERE)[:3])


IN_ANOTHER_TEST = re.compile(
    r"runs/cosine|/exports/|format=(onnx|all)|reference=true|-m imgcls\.(jobs|deploy|push|monitor)"
)
"""test_extending, portable/test_conversion, test_jobs, deploy/test_documentation, test_push, test_monitor"""
COMPOSED = [command for command in commands() if command.module in HYDRA]
OTHERS = [
    command
    for command in commands()
    if command.module not in (None, *HYDRA) and not IN_ANOTHER_TEST.search(command.line)
]
SERVING = [command for command in OTHERS if command.module == "serve" or "endpoint=" in command.line]
RUN = [command for command in OTHERS if command not in SERVING]
TOGETHER = [list(found) for _, found in groupby(RUN, key=lambda command: command.block)]
"""Those of a block, of which one may use what an earlier one has made."""


def test_trainings_compose(inside: Path) -> None:
    assert len(COMPOSED) >= 12
    for command in COMPOSED:
        own = prepare.OPTIONS if command.module == "prepare" else ()
        compose(one_trial([word for word in command.words if word.partition("=")[0] not in own]))


@pytest.mark.parametrize("together", TOGETHER, ids=lambda together: f"{together[0].page}: {together[0].line[:60]}")
def test_commands_run(
    together: list[Command], inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in together:
        assert run_here(command, monkeypatch) in (0, None), (command.line, capsys.readouterr().err)


def test_servers_and_those_that_ask_them_have_the_options_that_are_shown(inside: Path) -> None:
    """That they do what is said of them is for tests/serve: here they would wait for each other."""
    known = {"serve": serving.OPTIONS, "predict": predict.OPTIONS}
    assert {command.module for command in SERVING} == set(known)
    for command in SERVING:
        values, _, _ = read_options(command.words, known[str(command.module)], usage="", others=None)
        runs = values["run"] or ()
        assert all(Path(run).is_dir() for run in ([runs] if isinstance(runs, str) else runs))
    named = {words.partition("=")[0] for page, words in options() if page == "docs/serving.md"}
    named = {name for name in named if "." not in name}  # those of a training
    assert named <= {*serving.OPTIONS, *predict.OPTIONS, *export.OPTIONS}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/deploying.md"])  # no options of conf/
def test_every_option_composes(page: str, inside: Path) -> None:
    for written in [words for name, words in options() if name == page]:
        words = written.split()
        if any(NOT_COMPOSED.search(word) for word in words):
            continue
        if not any(word.startswith("data=") for word in words):
            words = ["data=imagefolder", "data.root=pictures", *words]
        if any(word.startswith("launch.") for word in words):
            words = ["launch=rehearsal", *[word for word in words if not word.startswith("launch=")]]
        if any(word.startswith("search.tuning.") for word in words):
            words = ["hydra/sweeper=sagemaker", *words]
        compose(one_trial(words))


def test_files_of_the_configuration_are_read_as_yaml() -> None:
    for block in blocks("yaml"):
        assert isinstance(yaml.safe_load(block.text), dict), block


def test_links_lead_to_files() -> None:
    for page, content in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", content):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_a_named_data_set_and_a_table(inside: Path) -> None:
    from hydra.utils import instantiate

    named, table = (
        compose(["data=flowers"]),
        compose(["data=pictures/labels.csv", "data.image_size=24", "data.resize=24"]),
    )
    assert (named.model.name, named.data.image_size) == ("convnext_tiny.in12k_ft_in1k", 192)
    datamodule: Any = instantiate(table.data, _convert_="all")
    datamodule.setup()
    assert type(datamodule).__name__ == "Table"
    assert datamodule.class_names == ("daisy", "rose")
    assert [len(split) for split in datamodule.source.splits().values()] == [11, 1, 4]
    assert next(iter(datamodule.train_dataloader())).images.shape == (11, 3, 24, 24)
