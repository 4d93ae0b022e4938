"""A linear head on a frozen backbone is solved, in a run that has everything else that a run has."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import imgcls
from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.errors import UserError
from imgcls.evaluate import evaluate
from imgcls.models.backbones import create_network
from imgcls.runs.run import print_summary
from imgcls.training import head_start
from imgcls.training.plan import freezes_norms
from tests.trainings import Fit

FROZEN = ["data=cifar10", "model.freeze=backbone"]


@pytest.fixture
def fit(fit: Fit, tmp_path: Path) -> Fit:
    """The small training on a frozen backbone, with no option that needs steps."""
    torch.manual_seed(0)
    file = tmp_path / "backbone.safetensors"
    save_file(create_network("test_resnet", 3).backbone.state_dict(), file)
    return functools.partial(
        fit, "trainer.max_epochs=${by_start:10,${preset.length},30}", f"model.weights={file}", *FROZEN[1:]
    )


def test_a_solved_head_is_a_complete_run(fit: Fit, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("report=true")
    [row] = run.history
    assert row["lr"] == 0, "no step has changed the solution"
    assert run.metrics["epochs"] == 0
    assert "best_epoch" not in run.metrics
    capsys.readouterr()
    print_summary(run)
    assert "features and the solved head in " in capsys.readouterr().out
    assert row["train/accuracy"] > 0.9
    assert not any(name.startswith("train/") for name in run.metrics), "each metric there has an interval"
    assert evaluate(run)["loss"] == pytest.approx(run.metrics["test/loss"], abs=1e-4)
    answers = run.predict([pictures / row["file"] for row in run.predictions], top_k=1)
    assert [answer[0][0] for answer in answers] == [row["predicted"] for row in run.predictions]
    assert (run.folder / "report.html").is_file()
    trained = fit("model.solve_head=false", name="trained")
    assert len(trained.history) == 10
    assert run.metrics["val/loss"] < trained.metrics["val/loss"], "ten epochs do not reach the optimum"


def test_a_killed_run_resumes_with_the_solution(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_end", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(BaseException, match=r".*"):
            fit(name="killed")
    with monkeypatch.context() as patch:
        patch.setattr(head_start, "solve_head", lambda *_, **__: pytest.fail("it is solved again"))
        resumed = fit(name="killed")
    weights = [load_file(run.folder / "model" / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_fine_tuning_starts_from_the_solution(fit: Fit) -> None:
    solved = fit(name="solved")
    still = ("model.freeze=none", "optim.lr=1e-12", "trainer.max_epochs=1", "augment=none")
    tuned = fit(*still, name="tuned")
    assert tuned.metrics["val/loss"] == pytest.approx(solved.metrics["val/loss"], rel=1e-3)
    random = fit(*still, "model.solve_head=false", name="random")
    assert random.metrics["val/loss"] > 2 * solved.metrics["val/loss"]
    further = fit(*still, f"model.weights={random.folder}", name="further")
    assert further.metrics["val/loss"] == pytest.approx(random.metrics["val/loss"], rel=1e-3), "its head was trained"


@pytest.mark.parametrize(("choice", "moves"), [("auto", False), ("frozen", False), ("train", True)])
def test_few_images_do_not_move_the_statistics_of_batch_norms(
    choice: str, moves: bool, fit: Fit, tmp_path: Path
) -> None:
    run = fit("model.freeze=none", "trainer.max_epochs=1", f"model.batch_norm={choice}", "optim.lr=0.01")
    before = load_file(tmp_path / "backbone.safetensors")
    after = load_file(run.folder / "model" / "model.safetensors")
    changed = {name: not torch.equal(value, after[f"backbone.{name}"]) for name, value in before.items()}
    assert any(value for name, value in changed.items() if name.endswith("running_mean")) is moves
    assert all(value for name, value in changed.items() if name.endswith("conv1.weight")), "the weights train"


def test_statistics_adapt_to_many_images_and_to_random_weights() -> None:
    trained = imgcls.compose(["data=cifar10"])
    assert freezes_norms(trained, 9_999)
    assert not freezes_norms(trained, 10_000)
    assert not freezes_norms(imgcls.compose(["data=cifar10", "model.pretrained=false"]), 100)


def test_what_is_too_large_to_solve_is_trained(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.training.solved_head.MOST_VALUES", 100)
    assert len(fit().history) == 10


def test_without_validation_images_folds_choose(fit: Fit) -> None:
    run = fit("data.val_fraction=0", "loss.class_weights=balanced")
    assert "thirds of them" in (run.folder / "log.txt").read_text()
    assert run.metrics["test/accuracy"] > 0.8


@pytest.mark.parametrize(
    ("overrides", "solved"),
    [
        ([], True),
        (["loss.class_weights=balanced", "data.batch_size=8", "debug=off", "checkpoint.monitor=val/loss"], True),
        (["model.freeze=none", "optim=sgd", "trainer.max_epochs=3", "model.head.dropout=0.1"], True),
        (["model.freeze=none", "optim.lr=auto"], False),
        (["model.freeze=none", "model.pretrained=false"], False),
        (["model.freeze=none", "model.stem=small"], False),
        (["model.freeze=none", "head=mlp"], False),
        (["model.freeze=head_first"], False),
        (["optim=sgd"], False),
        (["optim.lr=0.01"], False),
        (["optim.ema=0.9"], False),
        (["trainer.max_epochs=10"], False),
        (["head=mlp"], False),
        (["model.head.dropout=0.1"], False),
        (["model.feature_views=4"], False),
        (["model.feature_views=null", "data.augment.mixing.mixup=0.2"], False),
        (["loss.focal_gamma=2"], False),
        (["loss=custom", "loss._target_=torch.nn.functional.cross_entropy"], False),
        (["trainer.max_epochs=10", "model.solve_head=true"], True),
    ],
)
def test_options_that_need_steps_train_the_head(overrides: list[str], solved: bool) -> None:
    assert imgcls.compose([*FROZEN, *overrides]).model.solve_head is solved


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.freeze=none", "model.pretrained=false"], "model.pretrained=true"),
        (["head=mlp"], "head=linear"),
        (["loss.focal_gamma=2"], "loss.focal_gamma=0"),
        (["model.feature_views=4"], "model.feature_views=0"),
    ],
)
def test_what_cannot_be_solved_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        imgcls.compose([*FROZEN, "model.solve_head=true", *overrides])
