"""Endpoints made, updated, rolled back and tested, against moto; their containers answer in this process."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from imgcls.deploy.__main__ import command
from imgcls.errors import UserError
from tests.aws_account import needs_moto
from tests.deploy.conftest import Account, deploy

pytestmark = needs_moto

DOGS = "imgcls-dogs"


def variant(account: Account) -> dict[str, Any]:
    """Of the latest configuration that was made."""
    return dict(account.sent("CreateEndpointConfig")[-1]["ProductionVariants"][0])


def test_a_run_becomes_an_endpoint_that_answers_as_it_does(
    account: Account, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy("environment.IMGCLS_URLS=true", "tags.team=vision", "startup_timeout=600", "instance_count=2")
    said = capsys.readouterr()
    assert "test: 8 of 8 images with the same top class as the local model" in said.out
    assert f"python -m imgcls.deploy delete name={DOGS}" in said.out
    assert "2 x ml.m5.large, billed as long as the endpoint exists" in said.err
    assert said.err.index("2 x ml.m5.large") < said.err.index("Created the endpoint")
    assert account.endpoint(DOGS)["EndpointStatus"] == "InService"

    [model] = account.sent("CreateModel")
    container = model["PrimaryContainer"]
    assert container["Image"] == "own/image:1"
    assert container["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    assert container["Environment"]["IMGCLS_URLS"] == "true"
    assert account.starts[0] == container["Environment"], "what was deployed is what runs"
    assert model["ExecutionRoleArn"] == "arn:aws:iam::123456789012:role/endpoints"
    tags = {one["Key"]: one["Value"] for one in model["Tags"]}
    assert tags == {"team": "vision", "imgcls": "model", "imgcls:endpoint": DOGS}
    assert variant(account)["InitialInstanceCount"] == 2
    assert variant(account)["ContainerStartupHealthCheckTimeoutInSeconds"] == 600
    assert json.loads((run / "deploy.json").read_text())["name"] == DOGS


def test_the_same_command_again_changes_nothing(
    account: Account, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy()
    command(["run=runs/dogs", "poll=0.01"])  # the folder knows its endpoint, the endpoint its image and role
    assert f"{DOGS} has this model and this configuration already." in capsys.readouterr().err
    assert [len(account.sent(one)) for one in ("CreateModel", "CreateEndpoint", "UpdateEndpoint")] == [1, 1, 0]
    assert len(account.sent("PutObject")) == 1, "the archive was sent once"


@pytest.mark.parametrize("last", ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"])
def test_a_killed_command_is_gone_on_with(account: Account, run: Path, last: str) -> None:
    """Each step in turn is the last one that is still done."""
    session = account.aws.session

    class Killed(BaseException):
        pass

    def ending(who: str = "person") -> Any:
        made = session(who)
        if who == "person":
            made.events.register("after-call", kill)
        return made

    def kill(model: Any, **_: Any) -> None:
        if model.name == last:
            raise Killed

    account.aws.session = ending
    with pytest.raises(Killed):
        deploy()
    account.aws.session = session
    deploy()
    assert account.endpoints == [DOGS]
    assert len({one["ModelName"] for one in account.sent("CreateModel")}) == 1
    assert [len(account.sent(one)) for one in ("CreateModel", "CreateEndpointConfig", "CreateEndpoint")] == [1, 1, 1]


def test_update_and_back(account: Account, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy("environment.IMGCLS_URLS=true", "capture=20")
    first = account.endpoint(DOGS)["EndpointConfigName"]
    command(["run=runs/dogs", "name=dogs", "poll=0.01", "instance_count=4", "traffic=canary", "bake=60", "alarms=mine"])
    [update] = account.sent("UpdateEndpoint")
    second = update["EndpointConfigName"]
    assert account.endpoint(DOGS)["EndpointConfigName"] == second != first
    routing = update["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert routing == {
        "Type": "CANARY",
        "WaitIntervalInSeconds": 60,
        "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 10},
    }
    alarms = update["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]
    assert alarms == [{"AlarmName": "mine"}, {"AlarmName": f"{DOGS}-errors"}]
    [alarm] = account.sent("PutMetricAlarm")
    assert (alarm["MetricName"], alarm["Statistic"], alarm["Threshold"]) == ("Invocation5XXErrors", "Average", 0.01)
    assert len(account.sent("CreateModel")) == 1, "the model is the same, with what was said of it before"
    assert account.sent("CreateEndpointConfig")[-1]["DataCaptureConfig"]["InitialSamplingPercentage"] == 20

    capsys.readouterr()
    for expected in (first, second, first):
        command(["rollback", "run=runs/dogs", "poll=0.01"])
        assert account.endpoint(DOGS)["EndpointConfigName"] == expected
        assert f"Rolled {DOGS} back to {expected}." in capsys.readouterr().out


def test_rollback_without_a_note_goes_to_the_configuration_before(account: Account, run: Path) -> None:
    with pytest.raises(UserError, match=r"There is no endpoint imgcls-dogs in us-east-1\."):
        command(["rollback", "name=dogs"])
    deploy()
    with pytest.raises(UserError, match="has had no other configuration"):
        command(["rollback", "name=dogs", "poll=0.01"])
    first = account.endpoint(DOGS)["EndpointConfigName"]
    deploy("instance_count=2")
    arn = account.endpoint(DOGS)["EndpointArn"]
    account.cloud().client("sagemaker").delete_tags(ResourceArn=arn, TagKeys=["imgcls:previous"])
    command(["rollback", "name=dogs", "poll=0.01"])
    assert account.endpoint(DOGS)["EndpointConfigName"] == first


def test_an_endpoint_that_fails_says_why(account: Account, run: Path) -> None:
    account.broken = "The primary container did not pass the ping health check."
    logs, group = account.cloud().client("logs"), f"/aws/sagemaker/Endpoints/{DOGS}"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="AllTraffic/i-1")
    events = [{"timestamp": int(1000 * time.time()), "message": "No module named 'own'"}]
    logs.put_log_events(logGroupName=group, logStreamName="AllTraffic/i-1", logEvents=events)
    with pytest.raises(UserError, match=r"failed: The primary container did not pass") as raised:
        deploy()
    assert "No module named 'own'" in str(raised.value)
    assert account.endpoints == [DOGS]
    account.broken = None
    deploy()
    assert len(account.sent("DeleteEndpoint")) == 1, "AWS cannot update an endpoint that has failed"
    assert account.endpoint(DOGS)["EndpointStatus"] == "InService"


def test_an_endpoint_that_fails_is_removed_where_that_is_asked(account: Account, run: Path) -> None:
    account.broken = "no"
    with pytest.raises(UserError, match=r"(?s)failed: no\..*The endpoint was removed"):
        deploy("on_failure=undo")
    assert not account.endpoints
    assert not account.cloud().client("sagemaker").list_models()["Models"]


def test_a_failed_update_leaves_what_was_there(account: Account, run: Path) -> None:
    deploy()
    first = account.endpoint(DOGS)["EndpointConfigName"]
    account.broken = "One or more configured alarm(s) went into ALARM state"
    with pytest.raises(UserError, match=r"The update of imgcls-dogs failed, and AWS rolled it back: .* ALARM state"):
        deploy("instance_count=2")
    assert account.endpoint(DOGS)["EndpointConfigName"] == first
    account.broken = None
    deploy("instance_count=3")
    command(["rollback", "name=dogs", "poll=0.01"])
    assert account.endpoint(DOGS)["EndpointConfigName"] == first


@pytest.mark.parametrize("after", ["keep", "undo"])
def test_wrong_answers_are_found(account: Account, run: Path, after: str) -> None:
    account.lies = True
    with pytest.raises(UserError, match=r"answers differ from the local model's: 0 of 3 images") as raised:
        deploy("samples=3", f"on_failure={after}")
    assert account.endpoints == ([DOGS] if after == "keep" else [])
    assert ("The endpoint was removed" if after == "undo" else f"delete name={DOGS}") in str(raised.value)


def test_an_endpoint_is_not_compared_with_a_model_that_lost_its_certificate(
    account: Account, run: Path, model: Path
) -> None:
    deploy()
    (run / "model").unlink()
    shutil.copytree(model, run / "model")
    (run / "model" / "certificate.json").write_text(json.dumps({"passed": True, "sha256": {}}))
    with pytest.raises(UserError, match="changed after the certificate was written"):
        command(["test", f"run={run}", "name=dogs"])


def test_an_update_that_answers_wrongly_is_rolled_back(account: Account, run: Path) -> None:
    deploy()
    first = account.endpoint(DOGS)["EndpointConfigName"]
    account.lies = True
    with pytest.raises(UserError, match=f"Rolled back to {first}"):
        deploy("instance_count=2", "on_failure=undo")
    assert account.endpoint(DOGS)["EndpointConfigName"] == first


def test_an_endpoint_that_cannot_answer(account: Account, run: Path) -> None:
    account.asked_fails = True
    with pytest.raises(UserError, match=r"imgcls-dogs refused \(500\): out of memory"):
        deploy()
    with pytest.raises(UserError, match="out of memory"):
        command(["test", "run=runs/dogs"])
    account.asked_fails = False
    command(["test", "run=runs/dogs", "pictures=pictures"])


def test_serverless(account: Account, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy("mode=serverless", "memory=2048", "concurrency=7", "provisioned=2")
    served = {"MemorySizeInMB": 2048, "MaxConcurrency": 7, "ProvisionedConcurrency": 2}
    assert variant(account)["ServerlessConfig"] == served
    assert "InstanceType" not in variant(account)
    assert account.starts[0]["SAGEMAKER_MODEL_SERVER_WORKERS"] == "1"
    assert "Requests are billed, and provisioned concurrency per hour" in capsys.readouterr().err
    deploy("concurrency=9")
    assert variant(account)["ServerlessConfig"] == {**served, "MaxConcurrency": 9}
    assert "DeploymentConfig" not in account.sent("UpdateEndpoint")[0], "AWS knows none for serverless endpoints"
    with pytest.raises(UserError, match="is serverless, which cannot be changed"):
        deploy("mode=real-time")


def test_serverless_limits_are_looked_at_before_anything_is_made(
    account: Account, run: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted((run.parent.parent / "pictures").iterdir())
    pictures[0].write_bytes(pictures[0].read_bytes() + bytes(4 << 20))
    deploy("mode=serverless", "wait=true", "test=true", "memory=3072")
    assert "1 of the 12 images in the test set" in capsys.readouterr().err
    command(["delete", "name=dogs", "yes=true", "poll=0.01"])
    made = len(account.sent("CreateModel"))

    for picture in pictures:
        picture.write_bytes(picture.read_bytes() + bytes(4 << 20))
    with pytest.raises(UserError, match=r"All 12 images in .* are larger than 4 MB"):
        deploy("mode=serverless")
    (run / "model").unlink()
    (run / "model").mkdir()
    for file in model.iterdir():
        (run / "model" / file.name).write_bytes(file.read_bytes())
    with (run / "model" / "model.safetensors").open("r+b") as weights:
        weights.truncate(1200 << 20)  # sparse: it takes no room
    with pytest.raises(UserError, match=r"memory=3072: the model has 1200 MB of weights .* Use memory=4096\."):
        deploy("mode=serverless", "test=false")
    assert len(account.sent("CreateModel")) == made


def test_asynchronous(account: Account, run: Path) -> None:
    topic = "arn:aws:sns:us-east-1:123456789012:done"
    deploy("mode=asynchronous", "concurrency=2", f"success_topic={topic}")
    queued = account.sent("CreateEndpointConfig")[0]["AsyncInferenceConfig"]
    assert queued["ClientConfig"] == {"MaxConcurrentInvocationsPerInstance": 2}
    place = f"s3://sagemaker-us-east-1-123456789012/imgcls/async/{DOGS}/answers"
    assert queued["OutputConfig"] == {
        "S3OutputPath": place,
        "S3FailurePath": f"{place}/failed",
        "NotificationConfig": {"SuccessTopic": topic},
    }
    assert len(account.sent("InvokeEndpointAsync")) == 8
    account.asked_fails = True
    with pytest.raises(UserError, match=r"imgcls-dogs failed: .*out of memory"):
        command(["test", "run=runs/dogs", "poll=0.01"])


def test_autoscaling_as_in_a_reference_system(account: Account, run: Path) -> None:
    """Reference system 002: up to 3 machines, 10 requests each, 30 s up, 120 s down."""
    words = ["max_instances=3", "invocations_per_instance=10", "scale_out_cooldown=30", "scale_in_cooldown=120"]
    deploy(*words)
    [target] = account.sent("RegisterScalableTarget")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    assert target["ResourceId"] == f"endpoint/{DOGS}/variant/AllTraffic"
    [policy] = account.sent("PutScalingPolicy")
    assert policy["TargetTrackingScalingPolicyConfiguration"] == {
        "TargetValue": 10.0,
        "ScaleOutCooldown": 30,
        "ScaleInCooldown": 120,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }
    deploy("environment.A=1")
    assert account.sent("UpdateEndpoint")[0]["RetainAllVariantProperties"] is True
    assert not account.sent("DeregisterScalableTarget")

    deploy("instance_type=ml.c5.large", "max_instances=5")
    assert len(account.sent("DeregisterScalableTarget")) == 1, "AWS changes no machine of an endpoint that is scaled"
    assert "RetainAllVariantProperties" not in account.sent("UpdateEndpoint")[1]
    assert account.sent("RegisterScalableTarget")[-1]["MaxCapacity"] == 5
    last = account.sent("PutScalingPolicy")[-1]["TargetTrackingScalingPolicyConfiguration"]
    assert (last["TargetValue"], last["ScaleInCooldown"]) == (10.0, 120), "what is not said stays"

    command(["rollback", "name=dogs", "poll=0.01"])
    client = account.cloud().client("application-autoscaling")
    assert len(client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]) == 1
    deploy("max_instances=0")
    assert not client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]


def test_asynchronous_endpoints_scale_with_their_queue_down_to_nothing(account: Account, run: Path) -> None:
    deploy("mode=asynchronous", "min_instances=0", "max_instances=2", "backlog_per_instance=7")
    load, wake = account.sent("PutScalingPolicy")
    metric = load["TargetTrackingScalingPolicyConfiguration"]["CustomizedMetricSpecification"]
    assert metric["MetricName"] == "ApproximateBacklogSizePerInstance"
    assert wake["PolicyType"] == "StepScaling"
    [alarm] = account.sent("PutMetricAlarm")
    assert alarm["MetricName"] == "HasBacklogWithoutCapacity"
    assert "scalingPolicy" in alarm["AlarmActions"][0]
    deploy("max_instances=0")
    assert not account.cloud().client("cloudwatch").describe_alarms(AlarmNamePrefix=DOGS + "-w")["MetricAlarms"]


def test_somebody_elses_endpoint_is_left_alone(account: Account, run: Path) -> None:
    client = account.cloud().client("sagemaker")
    client.create_model(ModelName="m", ExecutionRoleArn="arn:aws:iam::123456789012:role/x", PrimaryContainer={})
    made = {"VariantName": "v", "ModelName": "m", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[made])
    account.broken = "not ours"
    client.create_endpoint(EndpointName=DOGS, EndpointConfigName="c")
    with pytest.raises(UserError, match="was not created by imgcls"):
        deploy()
    with pytest.raises(UserError, match="was not created by imgcls"):
        command(["rollback", "name=dogs"])


def test_ctrl_c_leaves_the_endpoint_and_says_so(
    account: Account, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "imgcls.deploy.endpoint.wait_until_settled", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        deploy()
    said = capsys.readouterr().err
    assert "AWS continues by itself, and imgcls-dogs is billed" in said
    assert f"python -m imgcls.deploy delete name={DOGS}" in said
    monkeypatch.undo()


def test_without_waiting(account: Account, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    from imgcls.launch.rehearsal import endpoints as running

    before = running.Endpoints._serve
    monkeypatch.setattr(running.Endpoints, "_serve", lambda self, config: (hold.wait(30), before(self, config)))
    deploy("wait=false", "max_instances=2")
    assert account.endpoint(DOGS)["EndpointStatus"] == "Creating"
    assert not account.sent("RegisterScalableTarget")
    threading.Timer(0.05, hold.set).start()
    deploy("max_instances=2")  # waits for what goes on, and goes on with it
    assert len(account.sent("RegisterScalableTarget")) == 1
    assert len(account.sent("CreateEndpoint")) == 1


def test_no_role_and_no_pictures(account: Account, run: Path) -> None:
    with pytest.raises(UserError, match=r"no role for the endpoint\. Give role=NAME.*imgcls\.deploy policies"):
        command(["run=runs/dogs", "poll=0.01"])
    (run / "predictions.csv").unlink()
    with pytest.raises(UserError, match=r"has no images to test the endpoint with\. Give pictures=FOLDER"):
        deploy()
    deploy("test=false")
    assert account.endpoints == [DOGS]


def test_quota(account: Account, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    def refuse(model: Any, **_: Any) -> None:
        if model.name == "CreateEndpoint":
            answer: Any = {
                "Error": {"Code": "ResourceLimitExceeded", "Message": "ml.m5.large for endpoint usage is 0."}
            }
            raise ClientError(answer, model.name)

    session = account.aws.session

    def limited(who: str = "person") -> Any:
        made = session(who)
        made.events.register("before-call", refuse)
        return made

    monkeypatch.setattr(account.aws, "session", limited)
    with pytest.raises(UserError, match=r"Could not create the endpoint imgcls-dogs: .* usage is 0\. Ask for a higher"):
        deploy()


def test_a_fault_of_the_network_is_waited_out(account: Account, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from botocore.exceptions import EndpointConnectionError

    session, faults = account.aws.session, [1, 2]

    def fail(model: Any, **_: Any) -> None:
        if model.name == "DescribeEndpoint" and account.sent("CreateEndpoint") and faults:
            faults.pop()
            raise EndpointConnectionError(endpoint_url="https://sagemaker")

    def shaky(who: str = "person") -> Any:
        made = session(who)
        made.events.register("before-call", fail)
        return made

    account.aws.session = shaky
    deploy("samples=1")
    assert not faults
    assert capsys.readouterr().err.count("Trying again; nothing changes in AWS.") == 2
