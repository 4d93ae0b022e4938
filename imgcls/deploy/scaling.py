"""Autoscaling of an endpoint's machines, and the alarms that imgcls makes for it and for updates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.deploy.names import SCALING_TAG, VARIANT, as_list, tags_of
from imgcls.deploy.options import ASYNCHRONOUS, Options

log = logging.getLogger(__name__)

NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
INVOCATIONS, BACKLOG = 100.0, 5.0  # a machine: requests a minute, requests that wait
SCALE_OUT, SCALE_IN = 60, 300  # seconds
FAILING = 0.01  # share of requests with a fault of the server at which an update is taken back


def resource_of(endpoint: str) -> str:
    """How Application Auto Scaling names the machines of an endpoint."""
    return f"endpoint/{endpoint}/variant/{VARIANT}"


def alarm_names(endpoint: str) -> dict[str, str]:
    """The alarms of an endpoint that imgcls makes."""
    return {"errors": f"{endpoint}-errors", "waiting": f"{endpoint}-waiting"}


def target_of(account: Account, endpoint: str) -> dict[str, Any]:
    """The endpoint's scalable target; empty where it is not scaled."""
    with explain_refusals(f"look at the autoscaling of {endpoint}"):
        found = account.client("application-autoscaling").describe_scalable_targets(
            ServiceNamespace=NAMESPACE, ResourceIds=[resource_of(endpoint)], ScalableDimension=DIMENSION
        )
    targets = found["ScalableTargets"]
    return dict(targets[0]) if targets else {}


@dataclass(frozen=True)
class Scaling:
    """How the number of machines follows the work.

    Attributes:
        low, high: machines.
        load: what one machine is to have to do: requests a minute, or requests that wait.
        out, back: seconds between two steps up, two steps down.
    """

    low: int
    high: int
    load: float
    out: int
    back: int

    def __str__(self) -> str:
        return " ".join(f"{one.name}={getattr(self, one.name):g}" for one in fields(self))

    @classmethod
    def read(cls, text: str) -> Scaling | None:
        """What `str` of it says; None for another text.

        >>> Scaling.read(str(Scaling(1, 3, 10.0, 30, 120)))
        Scaling(low=1, high=3, load=10.0, out=30, back=120)
        """
        try:
            found = dict(word.split("=", 1) for word in text.split())
            whole = {name: int(found[name]) for name in ("low", "high", "out", "back")}
            return cls(load=float(found["load"]), **whole)
        except (KeyError, ValueError):
            return None


def wanted(options: Options, mode: str, before: Scaling | None) -> Scaling | None:
    """The scaling that the options ask for; what they do not say is as it was `before`. None: none at all."""
    if options.max_instances is None:
        return before
    if options.max_instances == 0:
        return None
    queued = mode == ASYNCHRONOUS
    load = options.backlog_per_instance if queued else options.invocations_per_instance
    low, out, back = options.min_instances, options.scale_out_cooldown, options.scale_in_cooldown
    kept = before or Scaling(1, options.max_instances, BACKLOG if queued else INVOCATIONS, SCALE_OUT, SCALE_IN)
    return Scaling(
        min(kept.low, options.max_instances) if low is None else low,
        options.max_instances,
        kept.load if load is None else load,
        kept.out if out is None else out,
        kept.back if back is None else back,
    )


def noted(tags: Mapping[str, str]) -> Scaling | None:
    """The scaling that an endpoint's tags name."""
    return Scaling.read(tags.get(SCALING_TAG, ""))


def scale(account: Account, endpoint: str, scaling: Scaling, mode: str) -> None:
    """Let AWS choose the number of machines."""
    client = account.client("application-autoscaling")
    place = {
        "ServiceNamespace": NAMESPACE,
        "ResourceId": resource_of(endpoint),
        "ScalableDimension": DIMENSION,
    }
    with explain_refusals(f"set up the autoscaling of {endpoint}"):
        client.register_scalable_target(**place, MinCapacity=scaling.low, MaxCapacity=scaling.high)
        client.put_scaling_policy(
            **place,
            PolicyName=f"{endpoint}-load",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=load_policy(endpoint, scaling, mode),
        )
        if scaling.low == 0:
            _wake(account, endpoint, place)
    what = "requests that wait" if mode == ASYNCHRONOUS else "requests a minute"
    log.info("%s: %d to %d machines, about %g %s each.", endpoint, scaling.low, scaling.high, scaling.load, what)


def load_policy(endpoint: str, scaling: Scaling, mode: str) -> dict[str, Any]:
    """A target-tracking policy: of the requests a minute, or, of an asynchronous endpoint, of those that wait."""
    policy: dict[str, Any] = {
        "TargetValue": scaling.load,
        "ScaleOutCooldown": scaling.out,
        "ScaleInCooldown": scaling.back,
    }
    if mode != ASYNCHRONOUS:
        metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        return {**policy, "PredefinedMetricSpecification": metric}
    metric_of = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
        "Statistic": "Average",
    }
    return {**policy, "CustomizedMetricSpecification": metric_of}


def _wake(account: Account, endpoint: str, place: dict[str, str]) -> None:
    """Start a machine where there is none and something waits: the backlog a machine is not known without machines.

    https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
    """
    steps = {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Average",
        "Cooldown": SCALE_IN,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
    }
    made = account.client("application-autoscaling").put_scaling_policy(
        **place, PolicyName=f"{endpoint}-wake", PolicyType="StepScaling", StepScalingPolicyConfiguration=steps
    )
    account.client("cloudwatch").put_metric_alarm(
        AlarmName=alarm_names(endpoint)["waiting"],
        AlarmDescription="Requests wait, and the endpoint has no machine.",
        Namespace="AWS/SageMaker",
        MetricName="HasBacklogWithoutCapacity",
        Dimensions=[{"Name": "EndpointName", "Value": endpoint}],
        Statistic="Average",
        Period=60,
        EvaluationPeriods=1,
        DatapointsToAlarm=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
        AlarmActions=[made["PolicyARN"]],
        Tags=as_list(tags_of("alarm", endpoint)),
    )


def unscale(account: Account, endpoint: str) -> bool:
    """Leave the number of machines as it is from now on; whether AWS had chosen it. Its policies go with it."""
    if not target_of(account, endpoint):
        return False
    with explain_refusals(f"end the autoscaling of {endpoint}"):
        account.client("application-autoscaling").deregister_scalable_target(
            ServiceNamespace=NAMESPACE, ResourceId=resource_of(endpoint), ScalableDimension=DIMENSION
        )
    delete_alarms(account, [alarm_names(endpoint)["waiting"]])
    return True


def watch_errors(account: Account, endpoint: str) -> str:
    """The alarm that takes an update back; made where it is missing."""
    name = alarm_names(endpoint)["errors"]
    with explain_refusals(f"make the alarm {name}"):
        account.client("cloudwatch").put_metric_alarm(
            AlarmName=name,
            AlarmDescription="Requests fail by a fault of the endpoint.",
            Namespace="AWS/SageMaker",
            MetricName="Invocation5XXErrors",
            Dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": VARIANT}],
            Statistic="Average",
            Period=60,
            EvaluationPeriods=1,
            Threshold=FAILING,
            ComparisonOperator="GreaterThanThreshold",
            TreatMissingData="notBreaching",
            Tags=as_list(tags_of("alarm", endpoint)),
        )
    return name


def delete_alarms(account: Account, names: list[str]) -> None:
    """Delete those of the alarms that are there: AWS deletes none where one is not."""
    client = account.client("cloudwatch")
    with explain_refusals(f"delete the alarms {', '.join(names)}"):
        there = [one["AlarmName"] for one in client.describe_alarms(AlarmNames=names)["MetricAlarms"]]
        if there:
            client.delete_alarms(AlarmNames=there)
