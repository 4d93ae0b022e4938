from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imgcls.config import composition
from imgcls.config.composition import compose, plain
from imgcls.config.explain import compose_unchecked
from imgcls.config.groups import config_dir
from imgcls.errors import UserError


@pytest.fixture(autouse=True)
def plain_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here Hydra reads the files of `conf/` each time: undoes `quick_composition`."""
    monkeypatch.setattr(composition, "compose_unchecked", compose_unchecked)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=resnet19"], ["model=resnet19", "resnet18"]),
        (["data=cifar"], ["data=cifar", "cifar10"]),
        (["modle=resnet18"], ["modle", "model"]),
        (["optim.lrr=1"], ["optim.lrr", "optim.lr"]),
        (["optm.lr=1"], ["optm.lr", "optim.lr"]),
        (["trainer.max_epoch=1"], ["trainer.max_epoch", "trainer.max_epochs"]),
        (["trainer.accumulate_grad_batches=2"], ["data.batch_size is the effective batch"]),
        (["optim.learning_rate=1"], ["optim.lr"]),
        (["epochs=3"], ["trainer.max_epochs"]),
        (["debug.rules.Overfitt.patience=2"], ["Did you mean debug.rules.Overfit.patience?"]),
        (["early_stopping.patience=3"], ["It is an option of early_stopping=patience."]),
        (["model.head.hidden=[10]"], ["It is an option of head=mlp."]),
        (["search.tuning.patience=5"], ["It is an option of hydra/sweeper=sagemaker."]),
        (["hydra/sweeper=sagemaker", "search.tuning.patienc=5"], ["Did you mean search.tuning.patience?"]),
        (["data.augment.policy.magnitude=3"], ["data.augment.policy is null"]),
        (["optim.momentum=0.9"], ["optim=muon or optim=sgd"]),
        (["data.test_fraction=0.1"], ["data=imagefolder"]),
        (["launch.spot=true"], ["launch=rehearsal or launch=sagemaker"]),
        (["search.pruner.n_warmup_steps=1"], ["search/pruner=median"]),
        (["optim.lr=-1"], ["optim.lr=-1", "above 0"]),
        (["optim.lr=fast"], ["optim.lr=fast", "auto"]),
        (["data.batch_size=0"], ["data.batch_size=0", "at least 1"]),
        (["data.batch_size=1.5"], ["data.batch_size=1.5", "whole number"]),
        (["data.root=/no/such/folder"], ["data.root=/no/such/folder", "no such folder"]),
        (["model.weights=/no/such/file"], ["model.weights=/no/such/file", "no such file"]),
        (["model.name=resnet5O"], ["model.name=resnet5O", "resnet50"]),
        (["model=resnet34"], ["model=resnet34", "Give a network of timm as model.name=resnet34."]),
        (["optim.schedule=cosin"], ["optim.schedule=cosin", "cosine"]),
        (["model.freeze=backbon"], ["model.freeze=backbon", "backbone"]),
        (["model.freeze=backbone", "model.pretrained=false"], ["freezes random weights"]),
        (["resume=yes"], ["resume"]),
        (["data.val_fraction=1.5"], ["data.val_fraction=1.5"]),
        (["trainer.devices=0"], ["trainer.devices=0"]),
        (["trainer.max_epochs=-1"], ["optim.schedule=constant"]),
        (["seed="], ["seed"]),
        (["optim.lr=["], ["optim.lr"]),
    ],
)
def test_a_wrong_name_or_value_is_one_clear_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert len(str(caught.value).splitlines()) <= 2
    for word in words:
        assert word in str(caught.value)


def test_only_what_can_be_chosen_is_named() -> None:
    with pytest.raises(UserError, match=r"no loss called 'asymmetric'\. .* imgcls options asymmetric$"):
        compose(["data=digits", "loss=asymmetric"])
    with pytest.raises(UserError, match=r"no model called 'zebra'\. Choose one of: cifarnet, [\w, ]+\.$"):
        compose(["model=zebra"])


def test_options_of_ones_own_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "conf" / "head" / "cosine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package model.head\n_target_: cosine.Cosine\nscale: 16.0\n")
    (own.parent / "torn.yaml").write_text("a: [")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="It is an option of head=cosine"):
        compose(["model.head.scale=8"])


def test_defaults_depend_on_where_the_weights_start() -> None:
    scratch = compose(["data=cifar10", "model.pretrained=false"])
    tuned = compose(["data=cifar10"])
    frozen = compose(["data=cifar10", "model.freeze=backbone"])
    assert tuned.optim.lr < frozen.optim.lr
    assert tuned.optim.lr < scratch.optim.lr
    assert scratch.data.image_size == 32
    assert tuned.data.image_size == 224


def test_the_quick_start_needs_no_network() -> None:
    cfg = compose()
    assert cfg.model.pretrained is False
    assert cfg.data._target_.endswith("Digits")


def test_an_override_beats_what_the_data_set_recommends() -> None:
    assert compose(["model.pretrained=true"]).model.pretrained is True


def test_several_devices_and_lists_pass() -> None:
    assert plain(compose(["trainer.devices=[0,1]"]))["trainer"]["devices"] == [0, 1]


def test_every_option_has_a_comment() -> None:
    missing = []
    for file in config_dir().rglob("*.yaml"):
        if "hydra" in file.parts:
            continue
        for line in file.read_text().splitlines():
            option = line.strip()
            if not option or option.startswith(
                ("#", "- ", "defaults:", "_target_: ", "hydra:", "run:", "sweep:", "dir:")
            ):
                continue
            opens_a_group = option.endswith(":")
            if not opens_a_group and "#" not in option and "subdir" not in option:
                missing.append(f"{file.relative_to(config_dir())}: {option}")
    assert not missing


def test_help_and_mistakes_answer_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys, runpy\n"
        "sys.argv = ['imgcls.train', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('imgcls.train', run_name='__main__')\n"
        "except SystemExit as exit: print('code', exit.code)\n"
        "print('heavy', [name for name in ('torch', 'lightning', 'timm') if name in sys.modules])\n"
    )
    for arguments, code in (
        (["--help"], "0"),
        (["optim.lrr=1"], "2"),
        (["+loss.gama=2"], "2"),
        (["model.name=resnet5O"], "2"),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert "heavy []" in ran.stdout, ran.stderr
        assert f"code {code}" in ran.stdout
        assert "Traceback" not in ran.stderr


def test_the_options_of_tuning_jobs_come_with_their_sweeper() -> None:
    assert "tuning" not in compose().search
    assert compose(["hydra/sweeper=sagemaker", "search=bin_counts"]).search.tuning.strategy == "bayesian"


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("+loss.gama=2", "loss.gama"),
        ("+nonsense.foo=2", "nonsense"),
        ("++model.naem=resnet50", "model.naem"),
        ("+search.trails=3", "search.trails"),
    ],
)
def test_a_plus_does_not_hide_an_unknown_option(override: str, name: str) -> None:
    with pytest.raises(UserError, match=f"Unknown option '{name}'"):
        compose([override])


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (["+loss._target_=mine.MyLoss"], "choose loss=custom"),
        (["loss._target_=mine.MyLoss"], "loss=custom"),
        (["loss=custom"], "loss._target_ has no value"),
        (["optim.schedule={factor: 2}"], "optim.schedule"),
        (["checkpoint.monitor=val/kappa"], "checkpoint.monitor=val/kappa"),
    ],
)
def test_parts_of_the_users_own_have_their_places(overrides: list[str], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        compose(overrides)


def test_open_places_take_new_names(tmp_path: Path) -> None:
    cfg = compose(["+callbacks.mine._target_=a.B", "+trainer.fast_dev_run=true", "model.options={act_layer: gelu}"])
    assert cfg.callbacks.mine._target_ == "a.B"
    compose(
        [
            "+data.augment.jitter={_target_: imgcls.data.policies.ColorJitter}",
            "+launch.tags.team=vision",
            "launch=sagemaker",
        ]
    )
