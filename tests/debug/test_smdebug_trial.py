"""The rules on an smdebug trial."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from imgcls.debug.recheck import build_rules
from imgcls.debug.rules import ISSUES, NO_ISSUES
from imgcls.debug.smdebug_callback import SMDebug
from imgcls.errors import UserError
from imgcls.report.__main__ import report
from tests.debug.test_smdebug_callback import needs_smdebug
from tests.debug.trainings import deep_backbone, healthy_backbone, train


@needs_smdebug
def test_rules_check_a_trial_of_imgcls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imgcls.debug.smdebug_trial import read_trial

    fired, page = {}, tmp_path / "page.html"
    for name, backbone in {"sick": deep_backbone(nn.Sigmoid), "healthy": healthy_backbone()}.items():
        recorder = train(tmp_path / name, backbone, callbacks=(SMDebug(tmp_path / name / "trial", every=1),))
        report([f"trial={tmp_path / name / 'trial'}", f"output={page}"])
        printed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]}
        assert set(printed) == set(build_rules())
        assert set(printed.values()) <= {ISSUES, NO_ISSUES}
        fired[name] = {rule for rule, status in printed.items() if status == ISSUES}
        assert "steps of an smdebug trial" in page.read_text()
        record = read_trial(tmp_path / name / "trial")
        assert record.losses == pytest.approx(recorder.losses, rel=1e-5)
        assert [row["val/loss"] for row in record.history] == pytest.approx(
            [row["val/loss"] for row in recorder.record.history], rel=1e-3
        )
        assert record.observations[0].update_ratio
    assert "VanishingGradient" in fired["sick"]
    assert fired["healthy"] == set()


@needs_smdebug
def test_rules_check_a_trial_written_by_smdebugs_own_hook(tmp_path: Path) -> None:
    from smdebug.pytorch import Hook, SaveConfig, modes

    from imgcls.debug.smdebug_trial import read_trial

    torch.manual_seed(0)
    network, loss = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), nn.CrossEntropyLoss()
    hook = Hook(
        out_dir=str(tmp_path / "trial"),
        save_config=SaveConfig(save_interval=1),
        include_collections=["losses", "gradients", "weights"],
    )
    hook.register_module(network)
    hook.register_loss(loss)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
    hook.set_mode(modes.TRAIN)
    for _ in range(50):
        optimiser.zero_grad()
        loss(network(torch.randn(16, 8)), torch.randint(0, 2, (16,))).backward()
        optimiser.step()
    hook.close()
    record = read_trial(tmp_path / "trial")
    assert len(record.losses) == 50
    fired = {name for name, rule in build_rules().items() if rule.check(record).status == ISSUES}
    assert "UnchangedTensor" in fired
    assert "ExplodingTensor" not in fired


@needs_smdebug
def test_a_folder_without_a_trial_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an smdebug trial"):
        report([f"trial={tmp_path}"])


def test_a_trial_without_smdebug_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.system.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trial=… needs|pip install"):
        report([f"trial={tmp_path}"])
