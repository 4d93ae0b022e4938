"""What is observed of a training, and that observing does not change it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.debug import recorder, storage
from imgcls.debug.activations import ActivationProbe
from imgcls.debug.observations import Record
from imgcls.debug.recheck import recheck
from imgcls.debug.rules import ISSUES, Outcome
from imgcls.debug.series import Series
from imgcls.debug.storage import read_observations, read_record
from imgcls.debug.tensor_rules import ExplodingTensor, SaturatedActivation, VanishingGradient
from imgcls.errors import UserError
from imgcls.report.__main__ import report
from imgcls.system.interrupts import Interrupted
from imgcls.system.lightning_internals import batch_number
from tests.debug.trainings import WIDTH, deep_backbone, healthy_backbone, train
from tests.debug.trainings import pictures as noise
from tests.trainings import Fit


def test_watching_a_run_does_not_change_its_model(fit: Fit) -> None:
    watched = fit("debug.every=3", name="watched")
    alone = fit("debug=off", name="alone")
    outcomes = json.loads((watched.folder / "debug" / "rules.json").read_text())
    assert len(outcomes) == 16
    assert {outcome["status"] for outcome in outcomes} <= {"NoIssuesFound", "IssuesFound"}
    single = json.loads((watched.folder / "debug" / "rules" / "VanishingGradient.json").read_text())
    assert set(single) == {"RuleTriggered", "Violations", "Details", "Datapoints", "RuleParameters"}
    steps = [observation.step for observation in read_observations(watched.folder / "debug")]
    assert steps == [0, 1, 2, 3, 4, 6, 9]
    assert not (alone.folder / "debug").exists()
    model = Path("model") / "model.safetensors"
    assert (watched.folder / model).read_bytes() == (alone.folder / model).read_bytes()


def test_a_resumed_run_has_the_same_record(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit("debug.every=3", name="whole")
    original = Checkpoints.on_train_batch_end

    def interrupt(self: Checkpoints, trainer: L.Trainer, *args: Any) -> None:
        if batch_number(trainer) == 5:
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", interrupt)
        with pytest.raises(Interrupted):
            fit("debug.every=3", name="resumed")
    resumed = fit("debug.every=3", name="resumed")
    assert read_record(resumed.folder / "debug", []) == read_record(whole.folder / "debug", [])
    rules = Path("debug") / "rules.json"
    assert (resumed.folder / rules).read_text() == (whole.folder / rules).read_text()


def test_gradients_and_updates_are_those_of_the_optimiser(tmp_path: Path) -> None:
    class Reference(L.Callback):
        def __init__(self) -> None:
            self.size: list[float] = []
            self.ratio: list[float] = []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            weight = pl_module.network.backbone[0].weight
            self.size.append(float(weight.grad.abs().mean()))
            self.ratio.append(float(0.05 * weight.grad.abs().max() / weight.abs().max()))

    reference = Reference()
    backbone = nn.Sequential(nn.Conv2d(3, WIDTH, 8), nn.Flatten())
    recorder = train(tmp_path, backbone, epochs=1, every=1, callbacks=(reference,), accumulate_grad_batches=5)
    assert len(recorder.observations) == 1
    size, ratio = (getattr(recorder.observations[0], name) for name in ("gradient_size", "update_ratio"))
    assert size["backbone.0.weight"] == pytest.approx(reference.size[0], rel=1e-4)
    assert 0 < ratio["backbone.0.weight"] <= 1.91 * reference.ratio[0]  # Nesterov's first step is 1.9 gradients
    assert ratio["backbone.0.weight"] == pytest.approx(1.9 * reference.ratio[0], rel=1e-3)


def test_frozen_layers_are_left_out(tmp_path: Path) -> None:
    recorder = train(tmp_path, healthy_backbone(), epochs=1, freeze="backbone")
    assert set(recorder.observations[-1].gradient_size) == {"head.weight"}


def test_a_compiled_network_is_watched_without_its_activations(tmp_path: Path) -> None:
    backbone = healthy_backbone()
    recorder = train(tmp_path, backbone, epochs=1)
    assert recorder.observations[0].active
    backbone.compile(backend="eager")
    probe = ActivationProbe(backbone, torch.zeros(1, 3, 8, 8), SaturatedActivation())
    backbone(torch.zeros(2, 3, 8, 8))
    assert probe.end().read()["active"] == {}


def test_rules_are_checked_again_with_other_thresholds(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit("debug.every=3", "debug.rules.Overfit.ratio_threshold=0.4")
    rules = run.folder / "debug" / "rules.json"
    before = json.loads(rules.read_text())
    recheck(run.folder)
    assert json.loads(rules.read_text()) == before
    report([f"run={run.folder}", "debug.rules.WeightUpdateRatio.large_threshold=1e-6"])
    assert "WeightUpdateRatio          IssuesFound" in capsys.readouterr().out
    after = {outcome["rule"]: outcome for outcome in json.loads(rules.read_text())}
    assert after["WeightUpdateRatio"]["parameters"]["large_threshold"] == 1e-6
    assert after["Overfit"]["parameters"]["ratio_threshold"] == 0.4
    assert "WeightUpdateRatio</strong>" in run.report_file.read_text()
    for override, message in {
        "debug.rules.Overfitt.patience=2": "Did you mean",
        "debug.every=3": "only thresholds can be changed",
    }.items():
        with pytest.raises(UserError, match=message):
            report([f"run={run.folder}", override])
    (run.folder / "debug" / "steps.npz").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        recheck(run.folder)
    (run.folder / "debug" / "steps.npz").unlink()
    with pytest.raises(UserError, match="debug=off"):
        recheck(run.folder)


def test_a_rule_ends_the_training_within_an_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = {"ExplodingTensor": ExplodingTensor(), "VanishingGradient": VanishingGradient()}
    sick: dict[str, Any] = {"backbone": deep_backbone(nn.ReLU, 3), "lr": 1e8, "epochs": 9, "rules": rules}
    recorder = train(tmp_path / "stopped", **sick, data=noise(640), stop_on=("ExplodingTensor",))
    assert recorder.stopped_by == "ExplodingTensor"
    assert len(recorder.losses) < 20, "in the middle of the first epoch"
    assert "val/loss" in recorder.record.history[-1]
    assert recorder.outcomes["ExplodingTensor"].status == ISSUES
    assert "no longer finite" in caplog.text
    with pytest.raises(UserError, match="Did you mean ExplodingTensor"):
        train(tmp_path, healthy_backbone(), rules=rules, stop_on=("ExplodingTensors",))


def test_findings_are_logged_once_or_only_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = {"ExplodingTensor": ExplodingTensor()}
    loud = train(tmp_path / "loud", deep_backbone(nn.ReLU, 3), lr=1e8, epochs=2, rules=rules)
    assert caplog.text.count("no longer finite") == 1
    assert len(loud.losses) == 10
    caplog.clear()
    quiet = train(tmp_path / "quiet", deep_backbone(nn.ReLU, 3), lr=1e8, epochs=2, rules=rules, warn=False)
    assert "no longer finite" not in caplog.text
    assert quiet.outcomes["ExplodingTensor"].status == ISSUES
    assert "IssuesFound" in (tmp_path / "quiet" / "rules.json").read_text()


def test_only_new_steps_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of steps that have been written stay; those of an earlier attempt, which came further, do not."""
    monkeypatch.setattr(storage, "STEPS_IN_A_FILE", 10)

    def write(steps: int, before: int = 0) -> list[Path]:
        old = {file: file.stat().st_ino for file in tmp_path.glob("steps*")}
        losses, rates = Series(range(steps)), Series(range(1, steps + 1))
        storage.write_steps(tmp_path, Record((), losses, rates), before)
        found = read_record(tmp_path, [])
        assert (found.losses, found.rates) == (losses, rates)
        return sorted(file for file in tmp_path.glob("steps*") if file.stat().st_ino != old.get(file))

    names = ["steps.npz", "steps_000000010.npz", "steps_000000020.npz"]
    files = [tmp_path / name for name in names]
    assert write(7) == files[:1]
    assert write(25, 7) == files
    assert write(28, 25) == files[2:]
    assert write(12) == files[:2]
    assert not files[2].exists()


def test_a_long_training_is_not_checked_and_written_more_often_than_it_can_afford(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write_steps, check = storage.write_steps, ExplodingTensor.find

    def count_steps(folder: Path, record: Record, before: int) -> None:
        written.append(len(record.losses))
        write_steps(folder, record, before)

    def count_checks(rule: ExplodingTensor, record: Record) -> Outcome:
        checked.append(len(record.losses))
        return check(rule, record)

    monkeypatch.setattr(storage, "write_steps", count_steps)
    monkeypatch.setattr(ExplodingTensor, "find", count_checks)
    for share, most in ((-1.0, [50, 100]), (1e9, None)):
        checked: list[int] = []
        written.clear()
        monkeypatch.setattr(recorder, "MAX_CHECK_SHARE", share)
        rules = {"ExplodingTensor": ExplodingTensor()}
        train(tmp_path / str(share), healthy_backbone(), epochs=2, data=noise(200), batch_size=4, rules=rules)
        assert (sorted(set(checked)) == most and written == most) if most else (len(checked) > 50 and len(written) > 4)
        found = read_record(tmp_path / str(share), [])
        assert [observation.step for observation in found.observations] == list(range(100))
        assert len(found.losses) == 100


def test_the_longer_a_training_the_fewer_steps_are_observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "DENSE", 4)
    found = train(tmp_path, healthy_backbone(), epochs=1, data=noise(160), batch_size=4)
    steps = [observation.step for observation in found.observations]
    assert steps == [*range(8), *range(8, 16, 2), *range(16, 32, 4), 32]
