"""What imgcls has made, taken away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import split_uri
from imgcls.deploy import scaling
from imgcls.deploy.endpoint import delete_endpoint
from imgcls.deploy.inventory import Found
from imgcls.deploy.state import described, gone

log = logging.getLogger(__name__)


def remove(account: Account, found: Sequence[Found], *, poll: float, say: Callable[[str], None]) -> None:
    """Remove all of `found`: what costs first; what is gone already is no error.

    Args:
        account: what is asked.
        found: of the inventory.
        poll: seconds between two looks at an endpoint that is being deleted.
        say: gets a line for each thing.
    """
    removers: dict[str, Callable[[Account, Found], None]] = {
        "function": _function,
        "scaling": lambda account, one: _scaling(account, one),
        "endpoint": lambda account, one: _endpoint(account, one, poll),
        "alarm": lambda account, one: scaling.delete_alarms(account, [one.name]),
        "endpoint-config": _config,
        "model": _model,
        "role": _role,
    }
    for kind, remover in removers.items():
        for one in found:
            if one.kind == kind:
                with explain_refusals(f"remove the {kind} {one.name}"):
                    remover(account, one)
                say(f"removed {kind:<16} {one.name}")


def _ignoring_gone(call: Callable[..., Any], **words: Any) -> None:
    try:
        call(**words)
    except Exception as error:
        if not gone(error):
            raise


def _function(account: Account, one: Found) -> None:
    """Its versions, alias, address and warm instances go with it."""
    _ignoring_gone(account.client("lambda").delete_function, FunctionName=one.name)


def _scaling(account: Account, one: Found) -> None:
    _ignoring_gone(
        account.client("application-autoscaling").deregister_scalable_target,
        ServiceNamespace=scaling.NAMESPACE,
        ResourceId=one.name,
        ScalableDimension=scaling.DIMENSION,
    )


def _endpoint(account: Account, one: Found, poll: float) -> None:
    delete_endpoint(account, one.name, poll=poll)


def _config(account: Account, one: Found) -> None:
    _ignoring_gone(account.client("sagemaker").delete_endpoint_config, EndpointConfigName=one.name)


def _model(account: Account, one: Found) -> None:
    """With the archive that was uploaded for it."""
    model = described(account, "Model", one.name)
    place = str((model.get("PrimaryContainer") or {}).get("ModelDataUrl", ""))
    if f"/endpoints/{one.endpoint}/" in place:
        bucket, key = split_uri(place)
        account.client("s3").delete_object(Bucket=bucket, Key=key)
    _ignoring_gone(account.client("sagemaker").delete_model, ModelName=one.name)


def _role(account: Account, one: Found) -> None:
    client = account.client("iam")
    for name in client.list_role_policies(RoleName=one.name)["PolicyNames"]:
        client.delete_role_policy(RoleName=one.name, PolicyName=name)
    _ignoring_gone(client.delete_role, RoleName=one.name)
