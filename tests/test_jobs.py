"""`python -m imgcls.jobs`, against moto."""

from __future__ import annotations

import itertools
import json
import re
import signal
from pathlib import Path

import pytest

from imgcls.errors import UserError
from imgcls.jobs import _main
from imgcls.launch.rehearsal.aws import Call
from imgcls.launch.sagemaker.leftovers import find_leftovers
from imgcls.system.interrupts import Interrupted
from tests.aws_account import Jobs, needs_moto, needs_sdk
from tests.documents import commands
from tests.launch.sagemaker.test_training_job import launch

pytestmark = needs_moto

WORDS = ["data=digits", "launch=sagemaker", "launch.wait=false", "launch.image=own/image:1"]


@needs_sdk
def test_jobs_are_listed_followed_fetched_and_stopped(
    signed_in: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _main([])
    assert "imgcls has no jobs in us-east-1." in capsys.readouterr().out
    folder = tmp_path / "runs" / "dogs"
    launch(signed_in, folder, WORDS)
    name = signed_in.requests[0]["TrainingJobName"]
    documented = [
        command.words
        for command in commands()
        if command.module == "jobs" and not {"policies", "clean"} & set(command.words)
    ]
    assert len(documented) == 4
    capsys.readouterr()
    _main(["list"])
    printed = capsys.readouterr().out
    assert f"{name} runs: up to 24.0 more hours of ml.g4dn.xlarge" in printed
    assert f"stop it with: python -m imgcls.jobs stop job={name}" in printed
    with pytest.raises(UserError, match="still running"):
        _main(["fetch", f"job={name}"])

    _main(["stop", "run=runs/dogs"])
    assert signed_in.stopped == [name]
    signed_in.finish(signed_in.requests[-1], {"val/accuracy": 0.5})
    for words in documented:
        _main(words)
        capsys.readouterr()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["resumed"], status["job"]) == ("finished", 2, name)
    assert (folder / "model" / "model.json").is_file()

    _main(["fetch", f"job={name}"])  # on another machine
    other = tmp_path / "runs" / name
    assert json.loads((other / "metrics.json").read_text())["val/accuracy"] == 0.5
    assert "digits" in (other / "config.yaml").read_text().lower()
    assert "50.00%" in capsys.readouterr().out


@needs_sdk
def test_a_signal_that_ends_the_following_leaves_the_job_and_says_so(
    signed_in: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(signed_in, tmp_path / "run", WORDS)
    name = signed_in.requests[0]["TrainingJobName"]
    looks = itertools.count()

    def stop(call: Call) -> None:
        if call.operation == "DescribeTrainingJob" and next(looks):
            signal.raise_signal(signal.SIGTERM)

    signed_in.aws.refuse = stop
    with pytest.raises(Interrupted):
        _main(["attach", f"run={tmp_path / 'run'}", "poll=0.01"])
    said = capsys.readouterr().err
    assert re.search(rf"The job {name} is not affected: it continues and is billed until 20.* at most\.", said)
    assert f"python -m imgcls.jobs attach job={name}" in said


@needs_sdk
def test_a_failed_and_a_stopped_job_say_why(signed_in: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launch(signed_in, folder, WORDS)
    signed_in.finish(signed_in.requests[-1], {"val/accuracy": 0.5}, "Failed")
    signed_in.aws.job(
        signed_in.requests[0]["TrainingJobName"]
    ).failure_reason = "AlgorithmError: data.root=x: no such folder.\nmore, exit code: 2"
    request = signed_in.requests[0]["CheckpointConfig"]["S3Uri"].removeprefix("s3://")
    bucket, _, prefix = request.partition("/")
    signed_in.cloud().client("s3").put_object(Bucket=bucket, Key=f"{prefix}/log.txt", Body=b"its last words")
    with pytest.raises(UserError, match=r"failed: data\.root=x: no such folder\.\nIts log: .*job\.log"):
        _main(["attach", f"run={folder}"])
    assert (folder / "log.txt").read_text() == "its last words"
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


@needs_sdk
def test_what_jobs_have_left_is_listed_and_removed(
    signed_in: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _main(["clean"])
    assert "Jobs have left nothing in s3://" in capsys.readouterr().out
    launch(signed_in, tmp_path / "run", WORDS)
    launch(signed_in, tmp_path / "other", WORDS)
    signed_in.finish(signed_in.requests[0], {"val/accuracy": 0.5})
    s3, places = signed_in.cloud().client("s3"), signed_in.cloud().places
    s3.put_object(Bucket=places.bucket, Key=places.key("data", "dogs-1", "a.jpg"), Body=b"x" * 3_000_000)
    s3.put_object(Bucket=places.bucket, Key=places.key("endpoints", "dogs", "model.tar.gz"), Body=b"x")
    ended, running = (request["TrainingJobName"] for request in signed_in.requests)
    capsys.readouterr()

    def names() -> set[tuple[str, str]]:
        return {(entry.kind, entry.name) for entry in find_leftovers(signed_in.cloud())}

    before = names()
    _main(["clean"])
    printed = capsys.readouterr().out
    assert "data     dogs-1" in printed
    assert [line for line in printed.splitlines() if "3.0" in line and "dogs-1" in line]
    assert [line for line in printed.splitlines() if running in line and "in use by a running job" in line]
    with pytest.raises(UserError, match=r"no terminal for the confirmation\. Give yes=true"):
        _main(["clean", "older=0"])
    _main(["clean", "older=1", "yes=true"])
    assert names() == before, "everything is from today"
    _main(["clean", "older=0", "what=jobs", "yes=true"])
    assert ("data", "dogs-1") in names()
    assert ("jobs", running) in names()
    assert ("jobs", ended) not in names()
    _main(["clean", "yes=true"])
    assert {kind for kind, _ in names()} == {"jobs"}
    assert s3.head_object(Bucket=places.bucket, Key=places.key("endpoints", "dogs", "model.tar.gz"))
    with pytest.raises(UserError, match="Did you mean jobs"):
        _main(["clean", "what=job"])


def test_what_is_asked_wrongly(tmp_path: Path) -> None:
    for words, said in [
        (["lst"], "Did you mean list"),
        (["stop"], "Give run=DIR or job=NAME"),
        (["stop", "job=a", "run=b"], "Give run=DIR or job=NAME"),
        (["fetch", f"run={tmp_path}"], "records no job"),
        (["list", "most=many"], "most=many: must be a whole number of at least 1"),
        (["list", "poll=0"], "poll=0.0: must be a number above 0"),
        (["list", "stop"], "Unexpected argument 'stop'"),
        (["list", "regio=x"], "Did you mean region"),
    ]:
        with pytest.raises(UserError, match=said):
            _main(words)
