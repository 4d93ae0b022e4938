"""The profile of real runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgcls.data.loader import Loader
from imgcls.debug.rules import ISSUES
from imgcls.debug.storage import read_record
from tests.clock import Clock
from tests.trainings import Fit


def test_a_slow_loader_is_detected_and_operators_are_listed(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    original, clock = Loader.__iter__, Clock()

    def slow(self: Loader) -> Any:
        for batch in original(self):
            clock.ahead += 1.0
            yield batch

    monkeypatch.setattr(Loader, "__iter__", slow)
    for module in ("imgcls.callbacks.timing", "imgcls.debug.profiler"):
        monkeypatch.setattr(f"{module}.time", clock)
    run = fit("debug.profile=kernels", "debug.sample_seconds=0.1", "data.store=none")
    folder = run.folder / "debug" / "profile"
    profile = json.loads((folder / "profile.json").read_text())
    outcomes = {outcome["rule"]: outcome for outcome in profile["rules"]}
    assert outcomes["Dataloader"]["status"] == ISSUES
    assert "data.store=memory would save" in outcomes["Dataloader"]["advice"]
    assert profile["steps"]["parts"]["data_wait"]["seconds"] > 0.2
    assert profile["steps"]["count"] == 12
    assert set(profile["summary"]) == {"initialisation", "training", "validation", "finalisation"}
    assert all(part["seconds"] > 0 for part in profile["summary"].values())
    assert run.metrics["data_wait_fraction"] == pytest.approx(profile["steps"]["parts"]["data_wait"]["share"], abs=0.01)
    assert profile["timeline"]
    trace = json.loads((folder / "kernels" / "trace.json").read_text())
    assert any("conv" in str(event.get("name")) for event in trace["traceEvents"])
    assert "aten::convolution_backward" in (folder / "kernels" / "operators.csv").read_text()


@pytest.mark.parametrize(
    ("rule", "lr", "reason"),
    [("UnchangedTensor", "1e-9", "do not change"), ("ExplodingTensor", "1e30", "no longer finite")],
)
def test_a_run_ended_by_a_rule_has_its_test_and_report(fit: Fit, rule: str, lr: str, reason: str) -> None:
    stop = (f"debug.stop_on=[{rule}]", f"optim.lr={lr}", "trainer.max_epochs=9")
    run = fit(*stop, "debug.profile=false", "report=true")
    assert run.status["state"] == "finished"
    assert run.status["stopped_by"] == rule
    assert reason in run.status["reason"]
    assert len(run.history) <= 2, "a warm-up of one epoch is left alone"
    assert len(read_record(run.folder / "debug", []).losses) < 9 * 4
    assert "test/accuracy" in run.metrics
    assert f"The rule {rule} ended the training" in run.report_file.read_text()
    assert not (run.folder / "debug" / "profile").exists()
