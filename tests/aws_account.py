"""Fixtures for all tests: an AWS account on loopback, whose jobs are only recorded, and a search that starts them."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

MOTO = importlib.util.find_spec("moto") is not None and importlib.util.find_spec("flask") is not None
SDK = MOTO and importlib.util.find_spec("sagemaker") is not None

needs_moto = pytest.mark.skipif(not MOTO, reason="moto and flask are not installed")
needs_sdk = pytest.mark.skipif(not SDK, reason="the SageMaker SDK or moto is not installed (the extra rehearsal)")


class Jobs:
    """The requests of CreateTrainingJob and StopTrainingJob."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.aws: Any = None

    def begin(self, request: dict[str, Any]) -> None:
        self.requests.append(request)
        job = self.aws.job(request["TrainingJobName"])
        job.training_job_status, job.secondary_status = "InProgress", "Training"

    def finish(self, request: dict[str, Any], metrics: dict[str, float], state: str = "Completed") -> None:
        """Let the job of `request` end as in AWS, with its archives."""
        name, s3 = request["TrainingJobName"], self.cloud().client("s3")
        files = {
            "model": {"model.json": "{}"},
            "output": {"metrics.json": json.dumps({"images_per_second": 9, **metrics})},
        }
        for archive, content in files.items():
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz") as tar:
                for place, text in {**content, "status.json": '{"resumed": 2}', "config.yaml": "{}"}.items():
                    info = tarfile.TarInfo(place)
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
            bucket, _, prefix = request["OutputDataConfig"]["S3OutputPath"].removeprefix("s3://").partition("/")
            s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}/output/{archive}.tar.gz", Body=packed.getvalue())
        job = self.aws.job(name)
        job.final_metric_data_list = [
            {"MetricName": metric, "Value": value, "Timestamp": 0} for metric, value in metrics.items()
        ]
        job.training_job_status = job.secondary_status = state

    def cloud(self, **options: Any) -> Any:
        from imgcls.aws.account import Account

        return Account(self.aws.session(), **{"role": "trainer", **options})


@pytest.fixture(scope="session", autouse=True)
def service_models() -> Iterator[None]:
    """What each of AWS's services takes is read once, not in each session: megabytes of JSON."""
    if not MOTO:
        yield
        return
    import botocore.session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


def check_settings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each job the SDK checks its own, unchanged settings eight times, which takes longer than all else."""
    import jsonschema

    check, checked = jsonschema.validate, set()

    def once(instance: object, schema: object, **options: Any) -> None:
        content = id(schema), json.dumps(instance, sort_keys=True, default=str)
        if content not in checked:
            check(instance, schema, **options)
            checked.add(content)

    monkeypatch.setattr(jsonschema, "validate", once)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    from imgcls.launch.rehearsal.aws import LocalAws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if SDK:
        check_settings_once(monkeypatch)
    jobs = Jobs()
    with LocalAws(jobs.begin, jobs.stopped.append, strict=True) as jobs.aws:
        jobs.aws.add_role("trainer")
        yield jobs


@pytest.fixture
def signed_in(account: Jobs, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """The commands find this account."""
    monkeypatch.setattr(
        "imgcls.aws.account.Account.connect", lambda region=None, profile=None, **more: account.cloud(**more)
    )
    return account


Search = Callable[..., int]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Search:
    """Run `python -m imgcls.train -m …` in this process; its exit code."""
    from hydra.core.global_hydra import GlobalHydra

    from imgcls.train import main

    def run(*words: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["imgcls.train", "-m", *words])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run
