"""A tuning job whose trials really run, through the toolkit of AWS's images."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import imgcls
from imgcls.errors import UserError
from imgcls.launch.rehearsal import image
from imgcls.launch.rehearsal.tuner import suggestions
from imgcls.sweeps.sagemaker.ranges import Ranges
from imgcls.sweeps.space import parse_space
from tests.aws_account import Search, needs_moto
from tests.launch.rehearsal.test_job import namespaces
from tests.trainings import DIGITS

TOOLKIT = all(importlib.util.find_spec(module) for module in image.TOOLKIT)


@needs_moto
@pytest.mark.skipif(not namespaces(), reason="namespaces are not allowed here")
@pytest.mark.skipif(not TOOLKIT, reason="the toolkit of AWS's images is not installed (the extra tuning)")
def test_trials_run_through_the_toolkit_and_hear_when_they_are_stopped(search: Search, tmp_path: Path) -> None:
    """With `launch.interrupt` each trial loses its machine after an epoch, and goes on from its checkpoint."""
    words = ["hydra/sweeper=sagemaker", "launch=rehearsal", "launch.interrupt=true", "launch.image=own/image:1"]
    space = ["head=mlp", "optim.lr=choice(0.01)", "search.tuning.strategy=grid", "search.study=s"]
    assert search(*words, *DIGITS, "trainer.max_epochs=2", "report=false", *space) == 0
    folder = tmp_path / "sweeps" / "s"
    with (folder / "sweep.csv").open() as file:
        (row,) = csv.DictReader(file)
    run = imgcls.load(folder / "0")
    assert (row["state"], float(row["val/accuracy"])) == ("complete", pytest.approx(run.metrics["val/accuracy"], 1e-5))
    lines = (run.folder / "job.log").read_text()
    assert lines.count("-- train.py --optim_lr 0.01\n") == 2, "the toolkit has started the script, and again"
    assert lines.count("the checkpoint has been written") == 1, "SIGTERM reached it through bash and the toolkit"
    assert [record["epoch"] for record in run.history] == [1, 2]
    assert (run.config.optim.lr, run.config.model.head.hidden) == (0.01, imgcls.compose(["head=mlp"]).model.head.hidden)
    assert yaml.safe_load((folder / "best.yaml").read_text())["values"] == {"optim.lr": 0.01}


def test_signals_reach_the_child_of_a_first_process(tmp_path: Path) -> None:
    """What `signals.sh` does, where bash is not process 1: the condition is taken out, the rest is as it is."""
    from imgcls.sweeps.sagemaker.trial import PROCESS, SIGNALS_TEXT

    (tmp_path / "signals.sh").write_text(
        SIGNALS_TEXT.replace('"$$" = 1', "1 = 1").replace(str(PROCESS), str(tmp_path / "pid"))
    )
    (tmp_path / "start.sh").write_text(image.START)
    (tmp_path / "train").write_text(
        f"#!{sys.executable}\nimport os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'heard\\n'), sys.exit(7)))\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "os.write(1, f\"ready {os.environ.get('BASH_ENV')}\\n\".encode())\ntime.sleep(60)\n"
    )
    (tmp_path / "train").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "BASH_ENV": str(tmp_path / "signals.sh")}
    first = subprocess.Popen(
        ["bash", "-m", str(tmp_path / "start.sh"), "train"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "ready None\n", "no other bash of the container reads the file"
    first.terminate()
    assert first.stdout.readline() == "heard\n"
    assert first.wait(30) == 7, "the exit code is that of the training"
    first.stdout.close()


def test_values_are_those_of_the_space_and_of_the_seed() -> None:
    space, _ = parse_space(["a.b=tag(log,interval(1e-3,1e-1))", "c.d=range(2,5)", "e.f=x,y"])
    config = {"ParameterRanges": Ranges(space).request, "Strategy": "Bayesian", "RandomSeed": 3}
    values = suggestions(config)
    found = [next(values) for _ in range(50)]
    again = suggestions(config)
    assert [next(again) for _ in range(50)] == found
    typed = [Ranges(space).values(one) for one in found]
    assert {one["c.d"] for one in typed} == {2, 3, 4}
    assert {one["e.f"] for one in typed} == {"x", "y"}
    rates = sorted(one["a.b"] for one in typed)
    assert 0.005 < rates[25] < 0.02, "half of them are below the middle of the scale"


def test_the_toolkit_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"and sagemaker-pytorch-training: pip install 'imgcls\[tuning\]'"):
        image.check_toolkit()
