"""A search as a tuning job: moto takes the request, and trials whose results are written down here."""

from __future__ import annotations

import csv
import io
import json
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import imgcls
from imgcls.errors import UserError
from imgcls.jobs import _main as jobs
from imgcls.launch.rehearsal.aws import Call
from imgcls.launch.sagemaker.training_job import METRICS, metric_definitions
from imgcls.sweeps.sagemaker import trial
from imgcls.system.interrupts import Interrupted
from tests.aws_account import Jobs, Search, needs_moto

pytestmark = needs_moto

OVERRIDES = ["hydra/sweeper=sagemaker", "launch=sagemaker", "launch.image=own/image:1", "launch.role=trainer"]
OVERRIDES += ["launch.poll=0.05", "data=digits"]
SPACE = ["optim.lr=tag(log,interval(1e-3,1e-1))", "head=linear,mlp", "trainer.max_epochs=range(2,5)"]


def end_trials(account: Jobs, *, failing: Callable[[dict[str, str]], bool] = lambda values: False) -> None:
    """From now on a trial ends at once: the smaller its learning rate, the better."""

    def begin(request: dict[str, Any]) -> None:
        account.requests.append(request)
        values = request["HyperParameters"]
        if failing(values):
            account.finish(request, {}, "Failed")
            account.aws.job(
                request["TrainingJobName"]
            ).failure_reason = "AlgorithmError: out of luck\nmore, exit code: 1"
        else:
            rate = float(values["optim_lr"].strip('"'))
            metrics = {"val/accuracy": 1 - rate, "epochs": 2, "best_epoch": 1}
            account.finish(request, metrics)
            account.aws.job(request["TrainingJobName"]).billable_time_in_seconds = 30

    account.aws.run_job = begin


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def made(account: Jobs) -> list[dict[str, Any]]:
    """The requests of the tuning jobs, as boto3 was given them."""
    return [call.params for call in account.aws.calls if call.operation == "CreateHyperParameterTuningJob"]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_becomes_a_tuning_job_and_comes_back(
    signed_in: Jobs, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end_trials(signed_in, failing=lambda values: values["head"] == '"mlp"')
    options = [
        "search.trials=8",
        "search.workers=3",
        "search.tuning.stop_early=true",
        "search.tuning.patience=5",
        "seed=1",
    ]
    overrides = [*OVERRIDES, *SPACE, *options, "search.study=s", "+launch.tags.team=vision"]
    assert search(*overrides) == 0
    (request,) = made(signed_in)
    name = request["HyperParameterTuningJobName"]
    assert name.startswith("imgcls-tune-resnet18-")
    assert len(name) <= 32
    config = request["HyperParameterTuningJobConfig"]
    assert config["HyperParameterTuningJobObjective"] == {"Type": "Maximize", "MetricName": "val/accuracy"}
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 8, "MaxParallelTrainingJobs": 3}
    assert (config["Strategy"], config["TrainingJobEarlyStoppingType"], config["RandomSeed"]) == ("Bayesian", "Auto", 1)
    assert config["TuningJobCompletionCriteria"] == {
        "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5}
    }
    ranges = config["ParameterRanges"]
    assert ranges["ContinuousParameterRanges"] == [
        {"Name": "optim_lr", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
    ]
    assert ranges["IntegerParameterRanges"] == [
        {"Name": "trainer_max_epochs", "MinValue": "2", "MaxValue": "4", "ScalingType": "Linear"}
    ]
    assert ranges["CategoricalParameterRanges"] == [{"Name": "head", "Values": ['"linear"', '"mlp"']}]
    definition = request["TrainingJobDefinition"]
    assert definition["AlgorithmSpecification"]["MetricDefinitions"] == metric_definitions(METRICS)
    assert "ContainerEntrypoint" not in definition["AlgorithmSpecification"], "tuning jobs have no such field"
    assert {"Key": "imgcls", "Value": "tuning-job"} in request["Tags"]
    assert {"Key": "team", "Value": "vision"} in request["Tags"]

    folder = tmp_path / "sweeps" / "s"
    rows = table(folder)
    complete = [row for row in rows if row["state"] == "complete"]
    log = (folder / "launch.log").read_text()
    assert "To be billed: up to 192.0 hours of ml.g4dn.xlarge" in log
    assert f"Billed: {30 * len(complete)} s of ml.g4dn.xlarge in {len(complete)} jobs." in log
    assert [row["trial"] for row in rows] == [str(number) for number in range(8)]
    states = {row["head"]: row["state"] for row in rows}
    assert states == {"linear": "complete", "mlp": "failed"}
    assert {row["reason"] for row in rows if row["state"] == "failed"} == {"out of luck"}
    best = yaml.safe_load((folder / "best.yaml").read_text())
    rate = best["values"]["optim.lr"]
    assert rate == min(float(row["optim.lr"]) for row in rows if row["state"] == "complete")
    assert isinstance(best["values"]["trainer.max_epochs"], int)
    assert best["values"]["head"] == "linear"
    assert imgcls.compose([str(folder / "best.yaml"), "trust=true"]).optim.lr == rate, "it has launch.image"
    assert (folder / "sweep.html").is_file()
    run = imgcls.load(folder / str(best["trial"]))
    assert run.metrics["val/accuracy"] == pytest.approx(1 - rate)
    assert run.config.optim.lr == rate
    assert f"optim.lr={rate!r}" in yaml.safe_load((run.folder / "overrides.yaml").read_text())
    assert "8/8 trial" in capsys.readouterr().out

    assert search(*overrides) == 0
    assert "finished" in capsys.readouterr().out
    assert len(made(signed_in)) == 1

    jobs(["list"])
    listed = capsys.readouterr().out
    assert f"{name} " in listed
    assert f"{name}-001" not in listed, "its trials are its own business"
    jobs(["fetch", f"job={name}"])  # as on another machine
    assert table(tmp_path / "sweeps" / name) == rows
    assert imgcls.load(tmp_path / "sweeps" / name / str(best["trial"])).config.optim.lr == rate
    jobs(["fetch", f"job={signed_in.requests[0]['TrainingJobName']}", "to=one"])
    assert imgcls.load(tmp_path / "one").config.trainer.max_epochs in (2, 3, 4)


def test_the_toolkit_gets_a_trial_through_its_arguments(signed_in: Jobs, search: Search) -> None:
    """The bundle's own files, read as the container reads them."""
    normalization = "[[0.5,0.5,0.5],[0.2,0.2,0.2]]"
    space = ["optim.lr=choice(0.1,0.01)", "model=resnet18,resnet50", f"data.normalization=dataset,{normalization}"]
    assert search(*OVERRIDES, *space, "model.pretrained=false,true", "launch.wait=false") == 0
    until(lambda: bool(signed_in.requests))
    request = signed_in.requests[0]
    static = {name: json.loads(value) for name, value in request["HyperParameters"].items() if name.startswith("sage")}
    assert static["sagemaker_program"] == "train.py"
    code = next(channel for channel in request["InputDataConfig"] if channel["ChannelName"] == "code")
    uri = code["DataSource"]["S3DataSource"]["S3Uri"]
    assert static["sagemaker_submit_directory"] == "/opt/ml/input/data/code/source.tar.gz"
    assert request["Environment"]["BASH_ENV"] == "/opt/ml/input/data/code/signals.sh"
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    s3 = signed_in.cloud().client("s3")
    assert s3.get_object(Bucket=bucket, Key=f"{prefix}signals.sh")["Body"].read().decode() == trial.SIGNALS_TEXT
    content = s3.get_object(Bucket=bucket, Key=f"{prefix}source.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = tar.getnames()
        job = json.load(tar.extractfile("source/job.json"))  # type: ignore[arg-type]
    assert [name for name in names if "/" not in name] == ["train.py"], "a requirements.txt there would be installed"
    assert "source/imgcls/conf/train.yaml" in names
    texts = {"optim_lr": "0.01", "model": "resnet50", "data_normalization": normalization, "model_pretrained": "True"}
    config, overrides = trial.trial_configuration(job, texts)
    expected = imgcls.compose(["data=digits", "model=resnet50", "model.pretrained=true"])
    assert (config["optim"]["lr"], config["model"]["name"]) == (0.01, expected.model.name)
    assert config["trainer"]["max_epochs"] == expected.trainer.max_epochs, "which pretrained weights decide"
    assert config["data"]["normalization"] == [[0.5] * 3, [0.2] * 3]
    assert (config["test"], config["quiet"]) == (False, False)
    chosen = ["optim.lr=0.01", "model=resnet50", f"data.normalization={normalization}", "model.pretrained=True"]
    assert overrides[-4:] == chosen


def test_a_job_that_runs_is_found_again_and_stopped(
    signed_in: Jobs, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*OVERRIDES, "optim.lr=interval(0.001,0.1)", "search.trials=3", "search.study=s", "launch.wait=false"]
    assert search(*overrides) == 0
    assert search(*overrides) == 0
    (request,) = made(signed_in)
    name = request["HyperParameterTuningJobName"]
    assert "Attached" in capsys.readouterr().err
    jobs(["list"])
    printed = capsys.readouterr().out
    assert f"{name} runs: up to 72.0 more hours of ml.g4dn.xlarge" in printed
    assert f"stop it with: python -m imgcls.jobs stop job={name}" in printed
    with pytest.raises(UserError, match="still running"):
        jobs(["fetch", "run=sweeps/s"])
    until(lambda: bool(signed_in.requests))
    jobs(["stop", "run=sweeps/s"])
    assert signed_in.stopped == [signed_in.requests[0]["TrainingJobName"]]
    signed_in.finish(signed_in.requests[0], {"val/accuracy": 0.7}, "Stopped")
    with pytest.raises(UserError, match="No trial of the search"):
        jobs(["attach", "run=sweeps/s", "poll=0.1"])
    assert table(Path("sweeps/s"))[0]["reason"] == "ended by AWS at val/accuracy=0.7"


def test_a_signal_leaves_the_job_and_says_so(
    signed_in: Jobs, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(call: Call) -> None:
        if call.operation == "ListTrainingJobsForHyperParameterTuningJob":
            signal.raise_signal(signal.SIGTERM)

    signed_in.aws.refuse = stop
    assert search(*OVERRIDES, "optim.lr=interval(0.001,0.1)", "search.trials=3") == 128 + signal.SIGTERM
    name = made(signed_in)[0]["HyperParameterTuningJobName"]
    words = f"The job {name} is not affected: it continues and is billed.\n"
    assert f"{words}  To follow it again: python -m imgcls.jobs attach job={name}" in capsys.readouterr().err
    with pytest.raises(Interrupted):
        jobs(["attach", f"job={name}"])
    assert words in capsys.readouterr().err


def test_a_job_without_a_complete_trial_says_so(
    signed_in: Jobs, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    end_trials(signed_in, failing=lambda values: True)
    assert search(*OVERRIDES, "optim.lr=interval(0.001,0.1)", "search.trials=2") == 2
    printed = capsys.readouterr()
    assert "All training jobs failed" in printed.err
    assert "No trial of the search" in printed.err
    assert "failed (out of luck)" in printed.out


def test_on_this_machine_it_is_refused(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(OVERRIDES[0], "optim.lr=interval(0.001,0.1)", "launch=local") == 2
    assert "needs launch=sagemaker, or launch=rehearsal to try it here" in capsys.readouterr().err
