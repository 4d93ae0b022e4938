"""Everything of a region that imgcls has made, by its tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.naming import NAME_PREFIX, TAG
from imgcls.aws.refusals import explain_refusals
from imgcls.deploy.names import ENDPOINT_TAG, REGION_TAG, ROLE_PATH, as_mapping
from imgcls.deploy.scaling import DIMENSION, NAMESPACE
from imgcls.deploy.state import described, tags_at

KINDS = ("endpoint", "function", "scaling", "alarm", "endpoint-config", "model", "role")
"""In the order in which they are shown, and can be removed but for the endpoint."""


@dataclass(frozen=True)
class Found:
    """Something that imgcls has made.

    Attributes:
        kind: one of KINDS.
        name: its own.
        endpoint: to which it belongs.
        about: its state, its machines.
        made: when.
        machines: (instance type, how many) of an endpoint that has machines.
        details: what removing it needs.
    """

    kind: str
    name: str
    endpoint: str
    about: str = ""
    made: datetime | str | None = None
    machines: tuple[str, int] | None = None
    details: dict[str, Any] = field(default_factory=dict)


def inventory(account: Account, endpoint: str | None = None) -> list[Found]:
    """What there is: all of it, or what belongs to one endpoint. Raises UserError where AWS does not let one look."""
    with explain_refusals(f"list what there is in {account.region}"):
        found = [
            *_endpoints(account, endpoint),
            *_functions(account),
            *_scaling(account),
            *_alarms(account),
            *_configs(account, endpoint),
            *_models(account, endpoint),
            *_roles(account),
        ]
    return [one for one in found if endpoint in (None, one.endpoint)]


def running_jobs(account: Account) -> int:
    """How many training and tuning jobs of imgcls run; `imgcls.jobs` is for them."""
    client = account.client("sagemaker")
    with explain_refusals("list the jobs"):
        training = client.list_training_jobs(NameContains=NAME_PREFIX, StatusEquals="InProgress")[
            "TrainingJobSummaries"
        ]
        tuning = client.list_hyper_parameter_tuning_jobs(NameContains=NAME_PREFIX, StatusEquals="InProgress")
    return len(training["TrainingJobSummaries"]) + len(tuning["HyperParameterTuningJobSummaries"])


def _pages(client: Any, operation: str, key: str, **words: Any) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator(operation).paginate(**words):
        yield from page[key]


def _endpoints(account: Account, only: str | None) -> Iterator[Found]:
    for one in _pages(account.client("sagemaker"), "list_endpoints", "Endpoints", NameContains=only or NAME_PREFIX):
        name = one["EndpointName"]
        if not name.startswith(NAME_PREFIX) or TAG not in tags_at(account, one["EndpointArn"]):
            continue
        endpoint = described(account, "Endpoint", name)
        variant = (endpoint.get("ProductionVariants") or [{}])[0]
        config = described(account, "EndpointConfig", endpoint["EndpointConfigName"]) if endpoint else {}
        settings = (config.get("ProductionVariants") or [{}])[0]
        machines, how = _machines(variant, settings)
        reason = f"; {endpoint['FailureReason']}" if endpoint.get("FailureReason") else ""
        yield Found("endpoint", name, name, f"{one['EndpointStatus']}, {how}{reason}", one["CreationTime"], machines)


def _machines(variant: dict[str, Any], settings: dict[str, Any]) -> tuple[tuple[str, int] | None, str]:
    """Type and number of an endpoint's machines, and the same in words."""
    served = settings.get("ServerlessConfig")
    if served:
        warm = served.get("ProvisionedConcurrency")
        return None, f"serverless, {served['MemorySizeInMB']} MB" + (f", {warm} kept warm" if warm else "")
    kind = str(settings.get("InstanceType", "?"))
    count = int(variant.get("CurrentInstanceCount", settings.get("InitialInstanceCount", 1)))
    return (kind, count), f"{count} x {kind}"


def _configs(account: Account, only: str | None) -> Iterator[Found]:
    client = account.client("sagemaker")
    for one in _pages(client, "list_endpoint_configs", "EndpointConfigs", NameContains=only or NAME_PREFIX):
        tags = tags_at(account, one["EndpointConfigArn"]) if one["EndpointConfigName"].startswith(NAME_PREFIX) else {}
        if TAG in tags:
            name = one["EndpointConfigName"]
            yield Found("endpoint-config", name, tags.get(ENDPOINT_TAG, ""), made=one["CreationTime"])


def _models(account: Account, only: str | None) -> Iterator[Found]:
    for one in _pages(account.client("sagemaker"), "list_models", "Models", NameContains=only or NAME_PREFIX):
        tags = tags_at(account, one["ModelArn"]) if one["ModelName"].startswith(NAME_PREFIX) else {}
        if TAG in tags:
            yield Found("model", one["ModelName"], tags.get(ENDPOINT_TAG, ""), made=one["CreationTime"])


def _functions(account: Account) -> Iterator[Found]:
    client = account.client("lambda")
    for one in _pages(client, "list_functions", "Functions"):
        if not one["FunctionName"].startswith(NAME_PREFIX):
            continue
        tags = client.list_tags(Resource=one["FunctionArn"])["Tags"]
        if TAG in tags:
            about = f"{one.get('Runtime', '')}, {one.get('MemorySize', '?')} MB"
            yield Found("function", one["FunctionName"], tags.get(ENDPOINT_TAG, ""), about, one.get("LastModified"))


def _roles(account: Account) -> Iterator[Found]:
    client = account.client("iam")
    for one in _pages(client, "list_roles", "Roles", PathPrefix=ROLE_PATH):
        tags = as_mapping(client.list_role_tags(RoleName=one["RoleName"])["Tags"])
        if TAG in tags and tags.get(REGION_TAG) == account.region:
            yield Found("role", one["RoleName"], tags.get(ENDPOINT_TAG, ""), made=one["CreateDate"])


def _alarms(account: Account) -> Iterator[Found]:
    client = account.client("cloudwatch")
    for one in _pages(client, "describe_alarms", "MetricAlarms", AlarmNamePrefix=NAME_PREFIX):
        tags = as_mapping(client.list_tags_for_resource(ResourceARN=one["AlarmArn"])["Tags"])
        if TAG in tags:
            yield Found("alarm", one["AlarmName"], tags.get(ENDPOINT_TAG, ""), str(one.get("MetricName", "")))


def _scaling(account: Account) -> Iterator[Found]:
    """Targets of our endpoints, and those that an endpoint left behind which somebody else deleted."""
    client = account.client("application-autoscaling")
    words = {"ServiceNamespace": NAMESPACE, "ScalableDimension": DIMENSION}
    for one in _pages(client, "describe_scalable_targets", "ScalableTargets", **words):
        name = one["ResourceId"].split("/")[1]
        if not name.startswith(NAME_PREFIX):
            continue
        endpoint = described(account, "Endpoint", name)
        if not endpoint or TAG in tags_at(account, endpoint["EndpointArn"]):
            about = f"{one['MinCapacity']} to {one['MaxCapacity']} machines"
            yield Found("scaling", one["ResourceId"], name, about, one.get("CreationTime"))
