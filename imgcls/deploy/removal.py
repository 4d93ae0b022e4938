"""Removes the resources that imgcls has created."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import split_uri
from imgcls.deploy import scaling
from imgcls.deploy.endpoint import delete_endpoint
from imgcls.deploy.inventory import Resource
from imgcls.deploy.state import call_existing, describe_resource
from imgcls.errors import UserError


def remove(account: Account, resources: Sequence[Resource], *, poll: float, report: Callable[[str], None]) -> None:
    """Remove `resources`, endpoints first, which are billed; one that no longer exists is no error.

    Args:
        poll: seconds between two checks of an endpoint that is being deleted.
        report: receives a line for each resource.
    """
    removers: dict[str, Callable[[Account, Resource], object]] = {
        "endpoint": lambda account, resource: delete_endpoint(account, resource.name, poll=poll),
        "function": _remove_function,
        "scaling": _remove_scaling,
        "alarm": lambda account, resource: scaling.delete_alarms(account, [resource.name]),
        "endpoint-config": _remove_config,
        "model": _remove_model,
        "role": _remove_role,
    }
    for kind, remover in removers.items():
        for resource in resources:
            if resource.kind == kind:
                try:
                    with explain_refusals(f"remove the {kind} {resource.name}"):
                        remover(account, resource)
                except UserError as error:
                    if kind != "endpoint":
                        raise
                    raise UserError(f"{error}\n{resource.name} is billed until it is deleted.") from error
                report(f"removed {kind:<16} {resource.name}")


def _remove_function(account: Account, resource: Resource) -> None:
    """AWS removes its versions, alias, address and warm instances with it."""
    call_existing(account.client("lambda").delete_function, FunctionName=resource.name)


def _remove_scaling(account: Account, resource: Resource) -> None:
    call_existing(
        account.client("application-autoscaling").deregister_scalable_target,
        ServiceNamespace=scaling.NAMESPACE,
        ResourceId=resource.name,
        ScalableDimension=scaling.DIMENSION,
    )


def _remove_config(account: Account, resource: Resource) -> None:
    call_existing(account.client("sagemaker").delete_endpoint_config, EndpointConfigName=resource.name)


def _remove_model(account: Account, resource: Resource) -> None:
    """With the archive that was uploaded for it."""
    model = describe_resource(account, "Model", resource.name)
    uri = str((model.get("PrimaryContainer") or {}).get("ModelDataUrl", ""))
    if f"/endpoints/{resource.endpoint}/" in uri:
        bucket, key = split_uri(uri)
        account.client("s3").delete_object(Bucket=bucket, Key=key)
    call_existing(account.client("sagemaker").delete_model, ModelName=resource.name)


def _remove_role(account: Account, resource: Resource) -> None:
    client = account.client("iam")
    for name in client.list_role_policies(RoleName=resource.name)["PolicyNames"]:
        client.delete_role_policy(RoleName=resource.name, PolicyName=name)
    call_existing(client.delete_role, RoleName=resource.name)
