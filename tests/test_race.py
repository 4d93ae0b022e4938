"""The race against published scripts, with a script that prints what they print."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = """
import pathlib, time
assert pathlib.Path("cifar10/cifar-10-batches-py/data_batch_1").is_file()
print("-" * 40)
print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
for run in ("warmup", *range(200)):
    print(f"|  {run}  |  0  |  0.3  |  0.4  |    |  1.0  |")
    seconds = 90.0 if run == "warmup" else 2.0 + run
    print(f"|    |  eval  |  0.9  |  0.93  |  0.94  |  {seconds}  |", flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("race")


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "pictures" / "cifar-10-batches-py" / "data_batch_1").touch()
    return tmp_path / "pictures"


def test_the_warm_up_is_not_counted_and_the_script_is_stopped(
    race: Any, cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "airbench94_muon.py").write_text(SCRIPT)
    asked: list[list[str]] = []

    def fit(words: list[str]) -> Any:
        asked.append(words)
        return SimpleNamespace(metrics={"test/accuracy": 0.95, "wall_seconds": 40.0 if len(asked) == 1 else 6.0})

    monkeypatch.setattr("imgcls.fit", fit, raising=False)
    race.main(
        ["--airbench", str(tmp_path), "--cifar10", str(cifar10), "--runs", "3", "--targets", "94", "--overrides", "a=1"]
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["94"]
    assert found["published"]["seconds"] == pytest.approx(3.0), "2, 3 and 4"
    assert found["published"]["accuracy"] == pytest.approx(0.94)
    assert found["imgcls"] == {"accuracy": 0.95, "accuracy_std": 0.0, "seconds": 6.0, "seconds_std": 0.0}
    assert found["ratio"] == pytest.approx(2.0)
    assert len(asked) == 4
    assert asked[-1][0] == "experiment=cifar10_fast"
    assert "seed=2" in asked[-1]
    assert asked[-1][-1] == "a=1"


def test_a_script_that_fails_is_an_error(race: Any, cifar10: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="after 0 trainings, with exit code 3"):
        race.run_published(tmp_path / "broken.py", cifar10, 2)
