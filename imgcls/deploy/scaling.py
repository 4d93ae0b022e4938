"""Autoscaling of an endpoint's instances, and the alarms for scaling and updates."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.deploy.names import SCALING_TAG, VARIANT, as_list, tags_of
from imgcls.deploy.options import ASYNCHRONOUS, Options
from imgcls.deploy.state import EndpointState, read_tags_of

log = logging.getLogger(__name__)

NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
INVOCATIONS_METRIC = "SageMakerVariantInvocationsPerInstance"
CONCURRENT = "SageMakerVariantConcurrentRequestsPerModelHighResolution"  # reacts within seconds, not minutes
INVOCATIONS, BACKLOG = 100.0, 5.0  # per instance: requests per minute, waiting requests
SCALE_OUT_SECONDS, SCALE_IN_SECONDS = 60, 300
ERROR_RATE = 0.01  # share of failing requests above which an update is rolled back


def resource_of(endpoint: str) -> str:
    """The ID of an endpoint's instances in Application Auto Scaling."""
    return f"endpoint/{endpoint}/variant/{VARIANT}"


def alarm_names(endpoint: str) -> dict[str, str]:
    """Names of an endpoint's alarms."""
    return {"errors": f"{endpoint}-errors", "waiting": f"{endpoint}-waiting"}


def target_of(account: Account, endpoint: str) -> dict[str, Any]:
    """The endpoint's scalable target; empty if it is not scaled."""
    with explain_refusals(f"read the autoscaling of {endpoint}"):
        targets = account.client("application-autoscaling").describe_scalable_targets(
            ServiceNamespace=NAMESPACE, ResourceIds=[resource_of(endpoint)], ScalableDimension=DIMENSION
        )["ScalableTargets"]
    return dict(targets[0]) if targets else {}


@dataclass(frozen=True)
class Scaling:
    """How the number of instances follows the load.

    Attributes:
        low, high: minimum and maximum number of instances.
        load: target per instance: requests per minute, or waiting requests of asynchronous endpoints.
        out, back: cooldown in seconds after scaling out and in.
        concurrent: whether `load` is of requests that are answered at the same time, which AWS measures every 10 s.
    """

    low: int
    high: int
    load: float
    out: int
    back: int
    concurrent: int = 0

    def __str__(self) -> str:
        return " ".join(f"{part.name}={getattr(self, part.name):g}" for part in fields(self))

    @classmethod
    def read(cls, text: str) -> Scaling | None:
        """The inverse of `str`; None for an invalid text.

        >>> Scaling.read(str(Scaling(1, 3, 10.0, 30, 120)))
        Scaling(low=1, high=3, load=10.0, out=30, back=120)
        """
        try:
            values = dict(part.split("=", 1) for part in text.split())
            whole = {name: int(values[name]) for name in ("low", "high", "out", "back")}
            return cls(load=float(values["load"]), **whole, concurrent=int(values.get("concurrent", 0)))
        except (KeyError, ValueError):
            return None


def select_scaling(options: Options, mode: str, before: Scaling | None) -> Scaling | None:
    """The requested scaling, with values from `before` where the options give none. None: no scaling."""
    if options.max_instances is None:
        return before
    if options.max_instances == 0:
        return None
    queued, concurrent = mode == ASYNCHRONOUS, options.concurrent_per_instance
    load = options.backlog_per_instance if queued else concurrent or options.invocations_per_instance
    low, out, back = options.min_instances, options.scale_out_cooldown, options.scale_in_cooldown
    default_load = BACKLOG if queued else INVOCATIONS
    kept = before or Scaling(1, options.max_instances, default_load, SCALE_OUT_SECONDS, SCALE_IN_SECONDS)
    return Scaling(
        min(kept.low, options.max_instances) if low is None else low,
        options.max_instances,
        kept.load if load is None else load,
        kept.out if out is None else out,
        kept.back if back is None else back,
        kept.concurrent if load is None else int(concurrent is not None),
    )


def recorded_scaling(account: Account, state: EndpointState) -> Scaling | None:
    """The scaling recorded in the endpoint's tags."""
    return Scaling.read(read_tags_of(account, state.arn).get(SCALING_TAG, ""))


def scale(account: Account, endpoint: str, scaling: Scaling, mode: str) -> None:
    """Set up autoscaling."""
    client = account.client("application-autoscaling")
    target = {"ServiceNamespace": NAMESPACE, "ResourceId": resource_of(endpoint), "ScalableDimension": DIMENSION}
    with explain_refusals(f"set up the autoscaling of {endpoint}"):
        client.register_scalable_target(**target, MinCapacity=scaling.low, MaxCapacity=scaling.high)
        client.put_scaling_policy(
            **target,
            PolicyName=f"{endpoint}-load",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=load_policy(endpoint, scaling, mode),
        )
        if scaling.low == 0:
            _scale_from_zero(account, endpoint, target)
    each = "requests at a time" if scaling.concurrent else "requests per minute"
    what = "waiting requests" if mode == ASYNCHRONOUS else each
    log.info("%s: %d to %d instances, about %g %s each.", endpoint, scaling.low, scaling.high, scaling.load, what)


def load_policy(endpoint: str, scaling: Scaling, mode: str) -> dict[str, Any]:
    """The target-tracking policy: by requests per minute or, of an asynchronous endpoint, by waiting requests."""
    policy: dict[str, Any] = {
        "TargetValue": scaling.load,
        "ScaleOutCooldown": scaling.out,
        "ScaleInCooldown": scaling.back,
    }
    if mode != ASYNCHRONOUS:
        metric = {"PredefinedMetricType": CONCURRENT if scaling.concurrent else INVOCATIONS_METRIC}
        return {**policy, "PredefinedMetricSpecification": metric}
    backlog = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
        "Statistic": "Average",
    }
    return {**policy, "CustomizedMetricSpecification": backlog}


def _scale_from_zero(account: Account, endpoint: str, target: dict[str, str]) -> None:
    """Start an instance when requests wait and there is none: the backlog per instance is undefined then.

    https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
    """
    steps = {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Average",
        "Cooldown": SCALE_IN_SECONDS,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
    }
    made = account.client("application-autoscaling").put_scaling_policy(
        **target, PolicyName=f"{endpoint}-wake", PolicyType="StepScaling", StepScalingPolicyConfiguration=steps
    )
    _put_alarm(
        account,
        endpoint,
        AlarmName=alarm_names(endpoint)["waiting"],
        AlarmDescription="Requests wait, and the endpoint has no instance.",
        MetricName="HasBacklogWithoutCapacity",
        Dimensions=[{"Name": "EndpointName", "Value": endpoint}],
        DatapointsToAlarm=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
        AlarmActions=[made["PolicyARN"]],
    )


def _put_alarm(account: Account, endpoint: str, **fields: Any) -> None:
    account.client("cloudwatch").put_metric_alarm(
        Namespace="AWS/SageMaker",
        Statistic="Average",
        Period=60,
        EvaluationPeriods=1,
        Tags=as_list(tags_of("alarm", endpoint)),
        **fields,
    )


def unscale(account: Account, endpoint: str) -> bool:
    """Switch autoscaling off, with its policies. Returns whether it was on."""
    if not target_of(account, endpoint):
        return False
    with explain_refusals(f"end the autoscaling of {endpoint}"):
        account.client("application-autoscaling").deregister_scalable_target(
            ServiceNamespace=NAMESPACE, ResourceId=resource_of(endpoint), ScalableDimension=DIMENSION
        )
    delete_alarms(account, [alarm_names(endpoint)["waiting"]])
    return True


def watch_errors(account: Account, endpoint: str) -> str:
    """Create or update the alarm that rolls an update back. Returns its name."""
    name = alarm_names(endpoint)["errors"]
    with explain_refusals(f"create the alarm {name}"):
        _put_alarm(
            account,
            endpoint,
            AlarmName=name,
            AlarmDescription="Requests fail with errors of the endpoint.",
            MetricName="Invocation5XXErrors",
            Dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": VARIANT}],
            Threshold=ERROR_RATE,
            ComparisonOperator="GreaterThanThreshold",
            TreatMissingData="notBreaching",
        )
    return name


def delete_alarms(account: Account, names: list[str]) -> None:
    """Delete the alarms that exist: AWS would delete none if one of them does not."""
    client = account.client("cloudwatch")
    with explain_refusals(f"delete the alarms {', '.join(names)}"):
        existing = [alarm["AlarmName"] for alarm in client.describe_alarms(AlarmNames=names)["MetricAlarms"]]
        if existing:
            client.delete_alarms(AlarmNames=existing)
