"""The resources in a region that imgcls has created, found by their tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.naming import NAME_PREFIX, TAG
from imgcls.aws.refusals import explain_refusals, is_denied
from imgcls.deploy.names import ENDPOINT_TAG, REGION_TAG, ROLE_PATH, as_mapping
from imgcls.deploy.scaling import DIMENSION, NAMESPACE
from imgcls.deploy.state import describe_resource, read_tags_of
from imgcls.errors import UserError


@dataclass(frozen=True)
class Resource:
    """Something that imgcls has created.

    Attributes:
        kind: endpoint, function, scaling, alarm, endpoint-config, model or role.
        endpoint: name of the endpoint that it belongs to.
        about: its state and instances.
        made: time of creation.
        instances: (instance type, count) of an endpoint that has instances.
    """

    kind: str
    name: str
    endpoint: str
    about: str = ""
    made: datetime | str | None = None
    instances: tuple[str, int] | None = None


def list_resources(account: Account, endpoint: str | None = None, hidden: list[str] | None = None) -> list[Resource]:
    """All resources, or those of one endpoint. Raises UserError.

    Args:
        hidden: receives the kinds that AWS does not allow to list; None: that is an error. An endpoint is then in the
            result although it may not exist, because it is what is billed.
    """
    start = endpoint or NAME_PREFIX
    kinds: dict[str, Callable[[], Iterator[Resource]]] = {
        "endpoints": lambda: _endpoints(account, start),
        "functions": lambda: _functions(account),
        "autoscaling": lambda: _scaling(account),
        "alarms": lambda: _alarms(account),
        "endpoint configurations": lambda: _sagemaker(account, "endpoint-config", "EndpointConfig", start),
        "models": lambda: _sagemaker(account, "model", "Model", start),
        "roles": lambda: _roles(account),
    }
    resources: list[Resource] = []
    for kind, find in kinds.items():
        try:
            with explain_refusals(f"list the {kind} in {account.region}"):
                resources += [resource for resource in find() if endpoint in (None, resource.endpoint)]
        except UserError as error:
            if hidden is None or not is_denied(error):
                raise
            hidden.append(kind)
            if kind == "endpoints" and endpoint is not None:
                resources.append(Resource("endpoint", endpoint, endpoint, "if it exists"))
    return resources


def count_running_jobs(account: Account) -> int:
    """Number of running training and tuning jobs of imgcls, which `imgcls.jobs` manages."""
    client = account.client("sagemaker")
    with explain_refusals("list the jobs"):
        training = client.list_training_jobs(NameContains=NAME_PREFIX, StatusEquals="InProgress")
        tuning = client.list_hyper_parameter_tuning_jobs(NameContains=NAME_PREFIX, StatusEquals="InProgress")
    return len(training["TrainingJobSummaries"]) + len(tuning["HyperParameterTuningJobSummaries"])


def _pages(client: Any, operation: str, key: str, **options: Any) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator(operation).paginate(**options):
        yield from page[key]


def _endpoints(account: Account, start: str) -> Iterator[Resource]:
    for entry in _pages(account.client("sagemaker"), "list_endpoints", "Endpoints", NameContains=start):
        name = entry["EndpointName"]
        if not name.startswith(NAME_PREFIX) or TAG not in read_tags_of(account, entry["EndpointArn"]):
            continue
        endpoint = describe_resource(account, "Endpoint", name)
        variant = (endpoint.get("ProductionVariants") or [{}])[0]
        config = describe_resource(account, "EndpointConfig", endpoint["EndpointConfigName"]) if endpoint else {}
        settings = (config.get("ProductionVariants") or [{}])[0]
        instances, size = _instances(variant, settings)
        reason = f"; {endpoint['FailureReason']}" if endpoint.get("FailureReason") else ""
        about = f"{entry['EndpointStatus']}, {size}{reason}"
        yield Resource("endpoint", name, name, about, entry["CreationTime"], instances)


def _instances(variant: dict[str, Any], settings: dict[str, Any]) -> tuple[tuple[str, int] | None, str]:
    """Type and count of an endpoint's instances, and a description of them."""
    serverless = settings.get("ServerlessConfig")
    if serverless:
        warm = serverless.get("ProvisionedConcurrency")
        return None, f"serverless, {serverless['MemorySizeInMB']} MB" + (f", {warm} provisioned" if warm else "")
    kind = str(settings.get("InstanceType", "?"))
    count = int(variant.get("CurrentInstanceCount", settings.get("InitialInstanceCount", 1)))
    return (kind, count), f"{count} x {kind}"


def _sagemaker(account: Account, kind: str, what: str, start: str) -> Iterator[Resource]:
    """Endpoint configurations or models."""
    operation = {"EndpointConfig": "list_endpoint_configs", "Model": "list_models"}[what]
    for entry in _pages(account.client("sagemaker"), operation, f"{what}s", NameContains=start):
        name = entry[f"{what}Name"]
        tags = read_tags_of(account, entry[f"{what}Arn"]) if name.startswith(NAME_PREFIX) else {}
        if TAG in tags:
            yield Resource(kind, name, tags.get(ENDPOINT_TAG, ""), made=entry["CreationTime"])


def _functions(account: Account) -> Iterator[Resource]:
    client = account.client("lambda")
    for entry in _pages(client, "list_functions", "Functions"):
        name = entry["FunctionName"]
        tags = client.list_tags(Resource=entry["FunctionArn"])["Tags"] if name.startswith(NAME_PREFIX) else {}
        if TAG in tags:
            about = f"{entry.get('Runtime', '')}, {entry.get('MemorySize', '?')} MB"
            yield Resource("function", name, tags.get(ENDPOINT_TAG, ""), about, entry.get("LastModified"))


def _roles(account: Account) -> Iterator[Resource]:
    client = account.client("iam")
    for entry in _pages(client, "list_roles", "Roles", PathPrefix=ROLE_PATH):
        tags = as_mapping(client.list_role_tags(RoleName=entry["RoleName"])["Tags"])
        if TAG in tags and tags.get(REGION_TAG) == account.region:
            yield Resource("role", entry["RoleName"], tags.get(ENDPOINT_TAG, ""), made=entry["CreateDate"])


def _alarms(account: Account) -> Iterator[Resource]:
    client = account.client("cloudwatch")
    for entry in _pages(client, "describe_alarms", "MetricAlarms", AlarmNamePrefix=NAME_PREFIX):
        tags = as_mapping(client.list_tags_for_resource(ResourceARN=entry["AlarmArn"])["Tags"])
        if TAG in tags:
            yield Resource("alarm", entry["AlarmName"], tags.get(ENDPOINT_TAG, ""), str(entry.get("MetricName", "")))


def _scaling(account: Account) -> Iterator[Resource]:
    """Scalable targets of imgcls's endpoints, also of endpoints that were deleted without imgcls."""
    client = account.client("application-autoscaling")
    target = {"ServiceNamespace": NAMESPACE, "ScalableDimension": DIMENSION}
    for entry in _pages(client, "describe_scalable_targets", "ScalableTargets", **target):
        name = entry["ResourceId"].split("/")[1]
        if not name.startswith(NAME_PREFIX):
            continue
        endpoint = describe_resource(account, "Endpoint", name)
        if not endpoint or TAG in read_tags_of(account, endpoint["EndpointArn"]):
            about = f"{entry['MinCapacity']} to {entry['MaxCapacity']} instances"
            yield Resource("scaling", entry["ResourceId"], name, about, entry.get("CreationTime"))
