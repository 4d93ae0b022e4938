"""AWS fails at each call of each command: a line says what failed, another what is billed, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.deploy import deployment, state
from imgcls.deploy.__main__ import command
from imgcls.errors import UserError
from imgcls.serve.client import Client
from tests.aws_account import needs_moto
from tests.deploy.conftest import QUICK, ROLE, Account
from tests.outages import FAILURES, failing, outages, work

pytestmark = needs_moto
HINTS = {"GetRole", "GetProducts", "ListTrainingJobs", "ListHyperParameterTuningJobs"}
"""Calls whose answers a command can do without."""
LISTS = {"DescribeEndpoint", "DescribeEndpointConfig", "DescribeScalableTargets", "DescribeAlarms"}
LISTED = ("TagsForResource", "Endpoints", "EndpointConfigs", "Functions", "Models", "Roles", "Tags", "RoleTags")
LISTS |= {f"List{what}" for what in LISTED}
"""What need not be allowed to delete an endpoint."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, account: Account, run: Path) -> None:
    """What is not reachable is not waited for."""
    monkeypatch.setattr(state, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr("imgcls.serve.client.Retry.sleep", lambda retry: None)
    monkeypatch.setattr("imgcls.deploy.registry_command.write_archive", deployment.write_archive)  # the quick one


def endpoint(name: str, *words: str) -> None:
    """Create an endpoint, or update it."""
    command(["run=runs/dogs", f"name={name}", *QUICK, "samples=1", "max_instances=2", *words])


def is_billed(account: Account, name: str) -> bool:
    return f"imgcls-{name}" in account.endpoints


def test_endpoints_are_created(account: Account) -> None:
    for name, operation, message in outages(account.aws, endpoint, HINTS):
        assert ("is billed" in message) >= is_billed(account, name), f"{operation}: {message}"
        assert ("is billed" in message) == (f"python -m imgcls.deploy delete name=imgcls-{name}" in message), message
        if is_billed(account, name):
            endpoint(name)  # resumes
            requests = [request["EndpointName"] for request in account.sent("CreateEndpoint")]
            assert requests.count(f"imgcls-{name}") - (operation == "CreateEndpoint") == 1


def test_endpoints_are_updated_rolled_back_and_asked(account: Account) -> None:
    endpoint("n0")
    for _, operation, message in outages(
        account.aws, lambda name: endpoint("n0", f"environment.TRY={name}", "test=false"), HINTS
    ):
        began = operation != "UpdateEndpoint" and account.sent("UpdateEndpoint")
        assert ("imgcls-n0 is billed" in message) == bool(began), message
    for words in (["rollback", "name=n0", "poll=0.01"], ["test", "run=runs/dogs", "name=n0", "samples=1"], ["list"]):
        list(outages(account.aws, lambda name, words=words: command(words), HINTS | LISTS))
    for kind in FAILURES:
        failing(account.aws, "InvokeEndpoint", kind)
        client = Client("imgcls-n0", runtime=account.cloud().client("sagemaker-runtime"))
        with pytest.raises(UserError, match="InvokeEndpoint") as raised:
            client.predict_one("pictures/00.jpg")
        assert "\n" not in str(raised.value)
    work(account.aws)
    assert is_billed(account, "n0")


def test_what_is_not_deleted_is_billed(account: Account) -> None:
    def delete(name: str) -> None:
        refuse = account.aws.refuse
        work(account.aws)
        if not is_billed(account, "n0"):
            endpoint("n0", "test=false")
        account.aws.calls.clear()
        account.aws.refuse = refuse
        command(["delete", "name=n0", "yes=true", "poll=0.01"])

    for _, _, message in outages(account.aws, delete, HINTS | LISTS):
        assert ("billed" in message) >= is_billed(account, "n0"), message


def test_functions_whose_instances_are_billed(account: Account) -> None:
    endpoint("n0", "test=false")
    words = ["lambda", "name=n0", "make_role=true", "poll=0.01", "url=iam", "provisioned=1"]
    for name, operation, message in outages(account.aws, lambda name: command([*words, f"function={name}"]), HINTS):
        provisioned = [
            request["FunctionName"]
            for request in account.sent("PutProvisionedConcurrencyConfig")
            if operation != "PutProvisionedConcurrencyConfig"
        ]
        assert ("billed" in message) == (f"imgcls-{name}" in provisioned), message


def test_versions_and_batches(account: Account, run: Path) -> None:
    s3 = account.cloud().client("s3")
    s3.create_bucket(Bucket="pictures")
    s3.put_object(Bucket="pictures", Key="a.jpg", Body=(Path("pictures") / "00.jpg").read_bytes())

    def register(name: str) -> None:
        command(["register", "run=runs/dogs", f"name={name}", "image=own/image:1", "approve=true"])
        command(["reject", f"package={name}/1"])
        command(["packages", f"name={name}"])

    for name, operation, _ in outages(account.aws, register):
        if operation == "DescribeModelPackage":
            register(name)  # finds the version
            assert len(account.sent("CreateModelPackage")) == 1

    def transform(name: str) -> None:
        Path("answers.jsonl").unlink(missing_ok=True)
        command(["batch", "s3://pictures", "run=runs/dogs", "image=own/image:1", ROLE, "poll=0.01", f"name={name}"])

    for name, operation, message in outages(account.aws, transform, HINTS):
        assert not Path("answers.jsonl").exists()
        created = [] if operation == "CreateTransformJob" else account.sent("CreateTransformJob")
        if operation == "DescribeTransformJob" and created:
            assert "continues and is billed" in message
            assert f"stop-transform-job --transform-job-name {created[0]['TransformJobName']}" in message
        if created:
            transform(name)  # fetches the answers of the same job
            assert Path("answers.jsonl").exists()
            assert len(account.sent("CreateTransformJob")) == 1
