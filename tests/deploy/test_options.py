"""What cannot be right is said before anything is imported or made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imgcls.cli import read_options
from imgcls.deploy.__main__ import ACTIONS, command
from imgcls.deploy.names import MAX_NAME_LENGTH, endpoint_name, name_by_content, name_of_job, name_of_run
from imgcls.deploy.options import ENDPOINT, Options, create_options
from imgcls.errors import UserError

RUN = "run=runs/dogs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give the model to deploy"),
        (["name=x"], "Give the model to deploy"),
        ([RUN, "job=x"], "Give the model to deploy"),
        (["rollbak", "name=x"], "Did you mean rollback"),
        (["rollback"], "Give the endpoint"),
        (["rollback", "name=x", "run=y"], "Give the endpoint"),
        (["rollback", "name=x", "instance_count=2"], "Unknown option 'instance_count'"),
        ([RUN, "instanc_type=ml.m5.large"], "Did you mean instance_type"),
        ([RUN, "--force"], "Options are given as name=value"),
        ([RUN, "here"], "Choose one of"),
        ([RUN, "mode=server-less"], "Did you mean serverless"),
        ([RUN, "target=cloud"], "Choose one of: aws, local, rehearsal"),
        ([RUN, "instance_type=m5.large"], "such as ml.m5.large"),
        ([RUN, "instance_type=ml.inf2.xlarge"], "NVIDIA"),
        ([RUN, "instance_count=0"], "a whole number from 1 to 100"),
        ([RUN, "instance_count=two"], "a whole number"),
        ([RUN, "wait=maybe"], "true or false"),
        ([RUN, "mode=serverless", "instance_type=ml.m5.large"], "has no instances"),
        ([RUN, "mode=serverless", "max_instances=2"], "has no instances"),
        ([RUN, "mode=serverless", "memory=1500"], "must be one of 1024, 2048, 3072, 4096, 5120, 6144"),
        ([RUN, "mode=serverless", "memory=8192"], "from 1024 to 6144"),
        ([RUN, "mode=serverless", "concurrency=2", "provisioned=3"], "must not exceed concurrency"),
        ([RUN, "mode=serverless", "capture=10"], "support no VPC, network_isolation and capture"),
        ([RUN, "memory=2048"], "memory is for mode=serverless"),
        ([RUN, "output=s3://b/x"], "output is for mode=asynchronous"),
        ([RUN, "mode=asynchronous", "output=/tmp"], "expected s3://bucket/folder"),
        ([RUN, "mode=asynchronous", "success_topic=mine"], "the ARN of an SNS topic"),
        ([RUN, "mode=asynchronous", "max_instances=2", "invocations_per_instance=3"], "scales by backlog_per_instance"),
        ([RUN, "min_instances=0", "max_instances=2"], "min_instances=0 is for mode=asynchronous"),
        ([RUN, "min_instances=3", "max_instances=2"], "at least min_instances=3"),
        ([RUN, "min_instances=3"], "needs max_instances"),
        ([RUN, "scale_in_cooldown=3"], "needs max_instances"),
        ([RUN, "subnets=subnet-1"], "belong together"),
        ([RUN, "kms_key=mine"], "the ARN of a KMS key"),
        ([RUN, "bucket=s3://mine"], "not a valid bucket name"),
        ([RUN, "role=a b"], "must be a role name or an ARN"),
        ([RUN, "image=a/b:1", "framework_version=2.6.0"], "give one of them"),
        ([RUN, "pictures=nowhere"], "no such folder"),
        (["test", RUN, "pictures=s3://b"], "no such folder"),
        (["rollback", "name=x", "poll=0"], "poll=0.0: must be a number from 0.01 to 600"),
        ([RUN, "tags.imgcls=x"], "are reserved"),
        ([RUN, "environment.A-B=x"], "a variable name"),
        ([RUN, "environment.SAGEMAKER_PROGRAM=x"], "a variable name"),
        ([RUN, "name=two words"], "letters, digits"),
        ([RUN, f"name={'x' * 60}"], "must have up to 47 characters"),
        (["run=nowhere"], "no such folder"),
        (["delete"], "Give the endpoint"),
        (["delete", "--all", "name=x"], "give either --all, or name= or run="),
        (["delete", "name=x", "yes=1"], "true or false"),
        (["lambda", "name=x"], "Give the role of the function"),
        (["lambda", "name=x", "role=a", "make_role=true"], "Give the role of the function"),
        (["lambda", "name=x", "role=a", "url=everybody"], "Choose one of"),
        (["lambda", "name=x", "role=a", "memory=1"], "from 128 to 10240"),
        (["test", "name=x"], "Give the run to compare"),
    ],
)
def test_invalid_options(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "dogs").mkdir(parents=True)
    (tmp_path / "runs" / "dogs" / "model").symlink_to(model)
    with pytest.raises(UserError, match=said) as raised:
        command(words)
    assert len(str(raised.value).splitlines()) <= 2


def test_arguments_become_values() -> None:
    words = ["run=x", "max_instances=3", "subnets=[a, b]", "security_groups=c", "wait=false", "job=", "prefix="]
    values, _, _ = read_options(words, ENDPOINT, usage="")
    options = create_options(values, ["tags.team=vision=1", "environment.IMGCLS_URLS=true"])
    assert (options.max_instances, options.subnets, options.wait, options.job) == (3, ["a", "b"], False, None)
    assert (options.prefix, options.alarms, options.poll) == (Options().prefix, [], 10.0)
    assert (options.tags, options.environment) == ({"team": "vision=1"}, {"IMGCLS_URLS": "true"})


def test_names_follow_from_run_and_content(tmp_path: Path) -> None:
    assert endpoint_name("dogs") == endpoint_name("imgcls-dogs") == "imgcls-dogs"
    long = tmp_path / ("a run's name that is far too long: " + "x" * 80)
    name = name_of_run(long, "anna")
    assert name == name_of_run(long, "anna") != name_of_run(tmp_path / "other", "anna")
    assert len(name) <= MAX_NAME_LENGTH
    assert endpoint_name(name) == name, "it is a name that AWS takes"
    job = "imgcls-" + "x" * 50 + "-123"
    assert endpoint_name(name_of_job(job)) == name_of_job(job)
    assert name_by_content("imgcls-dogs", {"a": 1, "b": 2}) == name_by_content("imgcls-dogs", {"b": 2, "a": 1})
    assert len(name_by_content("x" * MAX_NAME_LENGTH, {})) == 63


def test_mistakes_are_said_without_loading_anything_heavy() -> None:
    code = """
import sys
from imgcls.deploy.__main__ import main
try:
    main(["run=nowhere", "mode=serverless"])
except SystemExit as end:
    heavy = {"torch", "lightning", "boto3", "sagemaker", "hydra"} & set(sys.modules)
    print(end.code, sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 []\n", done.stderr
    assert done.stderr == "imgcls: error: nowhere: no such folder.\n"


def test_help_names_every_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    printed = capsys.readouterr().out
    assert all(f"imgcls.deploy {action}" in printed for action in ACTIONS if action != "deploy")
    assert not [name for name in ACTIONS["deploy"] if name not in printed and name not in ("to", "port")]
