"""Runs that began from the same weights become one run, which is no worse on validation than the best of them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import imgcls
from imgcls import soup
from imgcls.errors import UserError
from imgcls.runs.run import Run
from imgcls.training.checkpoint_io import read_checkpoint
from imgcls.training.run_soup import check_runs
from tests.conftest import write_pictures
from tests.trainings import SMALL

LOSS = ("checkpoint.monitor=val/loss", "checkpoint.mode=min")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs from the weights of a fourth, in `search`, and the images."""
    folder = tmp_path_factory.mktemp("soup")
    root = write_pictures(folder / "pictures", {"train": 24, "test": 8})
    shared = [*SMALL, f"data.root={root}", "data.val_fraction=0.3", "data.seed=0", *LOSS]
    tuned = [f"model.weights={folder / 'start'}", "trainer.max_epochs=2", "model.batch_norm=train"]
    imgcls.fit(imgcls.compose([*shared, "trainer.max_epochs=8", f"run_dir={folder / 'start'}"]))
    for name, *options in (("a", "seed=1"), ("b", "seed=2"), ("c", "optim.lr=2", "trainer.max_epochs=1")):
        imgcls.fit(imgcls.compose([*shared, *tuned, *options, f"run_dir={folder / 'search' / name}"]))
    return folder


@pytest.fixture(scope="module")
def made(world: Path) -> Run:
    return soup.soup([world / "search"], world / "made", onnx=False)


def test_the_soup_is_a_run_that_is_no_worse_on_validation_than_its_best_member(world: Path, made: Run) -> None:
    members = json.loads((made.folder / "soup.json").read_text())["members"]
    assert [Path(member["run"]).name for member in members if not member["averaged"]] == ["c"], "it has diverged"
    assert made.metrics["averaged_runs"] == 2
    losses = {name: imgcls.load(world / "search" / name).metrics["val/loss"] for name in "abc"}
    assert {Path(member["run"]).name: member["score"] for member in members} == pytest.approx(losses, rel=1e-4)
    assert made.metrics["val/loss"] <= min(losses.values()) + 1e-6
    assert made.status["state"] == "finished"
    assert (made.folder / "report.html").is_file()
    assert "left out" in (made.folder / "report.html").read_text()


def test_its_weights_are_the_mean_and_all_commands_take_it(world: Path, made: Run) -> None:
    state = read_checkpoint(made.folder / "checkpoints" / "best.ckpt")["state_dict"]
    name = next(name for name in state if name.endswith("weight"))
    own = [read_checkpoint(world / "search" / run / "checkpoints" / "best.ckpt")["state_dict"] for run in "ab"]
    assert torch.allclose(state[name], (own[0][name] + own[1][name]) / 2, atol=1e-6)
    statistics = next(name for name in state if name.endswith("running_mean"))
    assert not torch.allclose(state[statistics], (own[0][statistics] + own[1][statistics]) / 2), "computed anew"
    for split in ("val", "test"):
        found = imgcls.evaluate(made, split)["loss"]
        assert found == pytest.approx(made.metrics[f"{split}/loss"], abs=1e-4)
    answers = made.predict([world / "pictures" / row["file"] for row in made.predictions], top_k=1)
    assert [answer.label for answer in answers] == [row["predicted"] for row in made.predictions]
    exported = (made.folder / "model" / "model.safetensors").read_bytes()
    imgcls.export(made, onnx=False)
    assert (made.folder / "model" / "model.safetensors").read_bytes() == exported


def test_the_command_prints_what_it_did_and_writes_over_nothing(
    world: Path, made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [f"run={world / 'search' / name}" for name in "ca"]
    monkeypatch.setattr(sys, "argv", ["imgcls soup", *runs, "onnx=false", f"output={tmp_path / 'one'}"])
    with pytest.raises(SystemExit) as ended:
        soup.main()
    assert ended.value.code == 0
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first.split()[1:] == ["averaged", str(world / "search" / "a")]
    assert second.split()[1:3] == ["left", "out"]
    assert last == str(tmp_path / "one")
    alone = imgcls.load(tmp_path / "one")
    assert alone.metrics["averaged_runs"] == 1
    assert alone.metrics["val/loss"] == pytest.approx(imgcls.load(world / "search" / "a").metrics["val/loss"], rel=1e-4)
    with pytest.raises(UserError, match="already holds a run"):
        soup.soup([world / "search"], made.folder)


def copy_run(world: Path, target: Path, **changes: object) -> Run:
    """A copy of the run a whose options are changed."""
    from omegaconf import OmegaConf

    shutil.copytree(world / "search" / "a", target)
    cfg = OmegaConf.load(target / "config.yaml")
    for name, value in changes.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    OmegaConf.save(cfg, target / "config.yaml")
    return imgcls.load(target)


def test_runs_that_cannot_be_averaged_are_refused(world: Path, tmp_path: Path) -> None:
    first = imgcls.load(world / "search" / "a")
    for number, (changes, message) in enumerate(
        (
            ({"model__name": "test_vit"}, r"model\.name is test_resnet and test_vit"),
            ({"model__weights": "other.safetensors"}, r"model\.weights is .* and other\.safetensors"),
            ({"data__image_size": 32}, r"data\.image_size is 24 and 32"),
            ({"model__in_channels": 1}, r"model\.in_channels is 3 and 1"),
        )
    ):
        with pytest.raises(UserError, match=message):
            check_runs([first, copy_run(world, tmp_path / str(number), **changes)])
    with pytest.raises(UserError, match="needs several runs"):
        check_runs([first, first])
    random = [copy_run(world, tmp_path / f"seed{seed}", seed=seed, model__weights=None) for seed in (0, 1)]
    with pytest.raises(UserError, match="random weights of its own"):
        check_runs(random)
    other = copy_run(world, tmp_path / "split")
    identity = json.loads((other.folder / "data.json").read_text())
    identity["splits"]["val"][1] = "0" * 32
    (other.folder / "data.json").write_text(json.dumps(identity))
    with pytest.raises(UserError, match="not validated on the same images"):
        check_runs([first, other])
    unfinished = copy_run(world, tmp_path / "unfinished")
    (unfinished.folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match="has not finished"):
        check_runs([first, unfinished])


def test_other_validation_images_are_refused(world: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", {"train": 23, "test": 8})
    runs = [world / "search" / name for name in "ab"]
    with pytest.raises(UserError, match="are not those of"):
        soup.soup(runs, tmp_path / "made", overrides=[f"data.root={pictures}"], onnx=False)
    assert not (tmp_path / "made").exists()
