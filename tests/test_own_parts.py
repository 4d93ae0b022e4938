"""docs/own-parts.md: one training with the page's parts, resumed, evaluated and exported; errors in the user's code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import imgcls
from imgcls.errors import UserError
from imgcls.evaluate import evaluate
from imgcls.export import export
from imgcls.training.own_parts import with_code
from tests.documents import blocks, commands
from tests.trainings import Fit

PAGE = "docs/own-parts.md"
WORDS = ["loss=custom", "loss._target_=poly.Poly", "+loss.epsilon=2", "data.augment.mixing.mixup=0.2", "test=true"]
WORDS += [
    "+metrics.cost._target_=costs.Cost",
    "+metrics.cost.miss=5",
    "+metrics.kappa._target_=torchmetrics.CohenKappa",
]
WORDS += ["checkpoint.monitor=val/cost", "checkpoint.mode=min", "+callbacks.norm._target_=norms.LogNorm", "debug=off"]
WORDS += ["optim.schedule={_target_: restarts.restarts, epochs: 1}", "trainer.max_epochs=2"]

KILLING = """
from pathlib import Path

from poly import Poly


class Killing(Poly):
    def forward(self, logits, labels):
        if Path("run/metrics.csv").exists() and not Path("go").exists():
            raise RuntimeError("cut off")
        return super().forward(logits, labels)
"""

STOPPING = """
from pathlib import Path

ROOT = Path(__file__).parent


class Stopping:
    def __call__(self, image):
        if (ROOT / "run" / "metrics.csv").exists() and not (ROOT / "go").exists():
            raise RuntimeError("cut off")
        return image
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the page's files in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks():
        if block.page == PAGE and block.file is not None:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
            monkeypatch.delitem(sys.modules, Path(block.file).stem, raising=False)
    return tmp_path


def test_the_parts_of_the_page_train_resume_and_are_not_needed_afterwards(
    project: Path, fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "killing.py").write_text(KILLING)
    killed = [*WORDS, "loss._target_=killing.Killing"]
    with pytest.raises(RuntimeError, match="cut off"):
        fit(*killed, name="run")
    assert len(imgcls.load(project / "run").history) == 1
    (project / "go").touch()
    resumed, whole = fit(*killed, name="run"), fit(*killed, name="whole")

    names = ("val/cost", "val/kappa", "test/cost", "test/kappa", "test/loss")
    assert {name: resumed.metrics[name] for name in names} == {name: whole.metrics[name] for name in names}
    assert [row["lr"] for row in resumed.history] == [row["lr"] for row in whole.history]
    assert whole.metrics["best_epoch"] == min(whole.history, key=lambda row: (row["val/cost"], -row["epoch"]))["epoch"]
    assert "the norm of the head is" in capsys.readouterr().out
    stored = json.loads((whole.folder / "model" / "model.json").read_text())["metrics"]
    assert stored["test/cost"] == pytest.approx(whole.metrics["test/cost"])

    for name in ("poly", "killing", "costs", "norms", "restarts"):
        (project / f"{name}.py").unlink()
        monkeypatch.delitem(sys.modules, name, raising=False)
    measured = evaluate(whole)
    assert measured["loss"] == pytest.approx(whole.metrics["test/loss"], rel=1e-5)
    assert "cost" not in measured
    export(whole, onnx=False)
    assert whole.predict(next(project.rglob("*.png")))
    with pytest.raises(UserError, match=r"metrics.cost._target_=costs.Cost: No module named 'costs'"):
        evaluate(whole, trust=True)


def test_the_transforms_of_the_page_train_resume_and_are_not_needed_afterwards(
    project: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = "{_target_: torchvision.transforms.v2.RandomResizedCrop, size: 24}"
    stopping = "{_target_: stopping.Stopping}"
    words = ["+data.augment.extra=[{_target_: tint.Tint, strength: 0.1}]", "trainer.max_epochs=2", "debug=off"]
    words += [f"data.augment.per_image=[{crop},{{_target_: dust.Dust, specks: 5}},{stopping}]", "augment=none"]
    (project / "stopping.py").write_text(STOPPING)
    with pytest.raises(UserError, match="Stopping failed for train/"):
        fit(*words, name="run")
    (project / "go").touch()
    resumed, whole = fit(*words, name="run"), fit(*words, name="whole")
    assert resumed.history[0]["train/loss"] == whole.history[0]["train/loss"]
    assert resumed.metrics["test/loss"] == whole.metrics["test/loss"]
    assert resumed.history[-1]["train/loss"] == whole.history[-1]["train/loss"]

    for name in ("stopping", "dust", "tint"):
        (project / f"{name}.py").unlink()
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert evaluate(whole)["loss"] == pytest.approx(whole.metrics["test/loss"], rel=1e-5)
    export(whole, onnx=False)


def test_features_depend_on_the_code_of_a_transform(project: Path) -> None:
    def key(*overrides: str) -> str:
        return json.dumps(with_code(imgcls.compose(list(overrides)).data.augment))

    own = "data.augment.per_image=[{_target_: dust.Dust}]"
    before = key(own)
    assert key() == json.dumps(OmegaConf.to_container(imgcls.compose().data.augment, resolve=True))
    (project / "dust.py").write_text((project / "dust.py").read_text() + "# changed\n")
    assert key(own) != before


def test_every_command_of_the_page_composes(project: Path) -> None:
    for command in [command for command in commands() if command.page == PAGE]:
        imgcls.compose(command.words)
