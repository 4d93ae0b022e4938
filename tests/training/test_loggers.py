"""Loggers log metrics and figures, and are not imported by a run that uses none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.errors import UserError
from imgcls.training import loggers
from tests.trainings import Fit


class Fake:
    def __init__(self) -> None:
        self.shown: dict[str, bytes] = {}

    def log_figure(self, name: str, file: Path) -> None:
        self.shown[name] = file.read_bytes()


def test_figures_go_to_loggers_that_support_them(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curves.png").write_bytes(b"png")
    fake: Any = Fake()
    loggers.log_figures(fake, tmp_path)
    assert fake.shown == {"curves": b"png"}
    loggers.log_figures(None, tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else find(module))
    with pytest.raises(UserError, match=rf"pip install 'imgcls\[{name}\]'"):
        imgcls.compose([f"logger={name}"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    assert imgcls.compose([f"logger={name}"]).logger["_target_"].startswith("imgcls.training.loggers.")


def test_an_unknown_logger_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean tensorboard"):
        imgcls.compose(["logger=tensorbord"])


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_run_logs_metrics_and_figures(name: str, tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    if name == "mlflow":
        pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    overrides = {"wandb": ["logger.offline=true"]}.get(name, [])
    run = fit(f"logger={name}", *overrides, "trainer.max_epochs=2", "debug=off", "report=true")
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run.folder / "tensorboard"))
        events.Reload()
        tags = events.Tags()
        assert {"val/accuracy", "train/loss", "test/accuracy"} <= set(tags["scalars"])
        assert "figures/curves" in tags["images"]
    elif name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{run.folder}/mlflow.db")
        experiment = client.get_experiment_by_name("imgcls")
        logged = client.search_runs([experiment.experiment_id])[0]
        assert logged.data.metrics["val/accuracy"] == pytest.approx(run.history[-1]["val/accuracy"], rel=1e-5)
        assert any(file.path.endswith("curves.png") for file in client.list_artifacts(logged.info.run_id, "figures"))
        assert list((run.folder / "mlflow_artifacts").rglob("figures/curves.png"))
        assert not (tmp_path / "mlruns").exists(), "the current folder stays clean"
    else:
        written = [file.name for file in run.folder.glob("wandb/*run*/**/*") if file.is_file()]
        assert any("curves" in file for file in written)


def test_nothing_is_imported_without_a_logger(fit: Fit) -> None:
    before = {name for name in ("mlflow", "wandb") if name in sys.modules}
    run = fit("trainer.max_epochs=1", "debug=off")
    assert (run.folder / "metrics.csv").is_file()
    assert {name for name in ("mlflow", "wandb") if name in sys.modules} == before
