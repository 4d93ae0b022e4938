"""What is there: an endpoint with its configuration and model, as AWS describes them; and waiting for it to settle."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.naming import TAG
from imgcls.aws.refusals import explain_refusals
from imgcls.deploy.names import as_mapping
from imgcls.errors import UserError
from imgcls.launch.sagemaker.progress import PATIENCE, passes

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/Endpoints"
BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
SAYS = {
    "Creating": "starting machines, fetching the image and the model",
    "Updating": "starting the new machines beside the old ones",
    "SystemUpdating": "AWS maintains it",
    "RollingBack": "the update failed; going back to what was there",
    "Deleting": "being deleted",
}
NOT_FOUND = (
    "ResourceNotFound",
    "ResourceNotFoundException",
    "NoSuchEntity",
    "ObjectNotFoundException",
    "ProvisionedConcurrencyConfigNotFoundException",
)
SPOKEN_EVERY = 60.0  # seconds, also where nothing changes
LAST_LINES = 15


@dataclass(frozen=True)
class Deployed:
    """An endpoint.

    Attributes:
        endpoint: what DescribeEndpoint answers.
        config: what DescribeEndpointConfig answers; empty where the configuration is gone.
        model: what DescribeModel answers; empty where the model is gone.
    """

    endpoint: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the endpoint."""
        return str(self.endpoint["EndpointName"])

    @property
    def arn(self) -> str:
        """Of the endpoint."""
        return str(self.endpoint["EndpointArn"])

    @property
    def status(self) -> str:
        """InService, Creating, …"""
        return str(self.endpoint["EndpointStatus"])

    @property
    def config_name(self) -> str:
        """Of the configuration that it has."""
        return str(self.endpoint["EndpointConfigName"])

    @property
    def variant(self) -> dict[str, Any]:
        """The production variant of the configuration."""
        variants = self.config.get("ProductionVariants") or [{}]
        return dict(variants[0])

    @property
    def container(self) -> dict[str, Any]:
        """Image, model data and environment of the model."""
        return dict(self.model.get("PrimaryContainer") or {})


def gone(error: Exception) -> bool:
    """Whether AWS says that there is no such thing."""
    answer = (getattr(error, "response", None) or {}).get("Error", {})
    code, message = str(answer.get("Code", "")), str(answer.get("Message", "")).lower()
    return code in NOT_FOUND or (
        code == "ValidationException" and ("could not find" in message or "does not exist" in message)
    )


def described(account: Account, what: str, name: str) -> dict[str, Any]:
    """What AWS knows of an Endpoint, EndpointConfig or Model (`what`); empty where there is none. Raises UserError."""
    operation = {"Endpoint": "describe_endpoint", "EndpointConfig": "describe_endpoint_config"}.get(
        what, "describe_model"
    )
    with explain_refusals(f"look at {name}"):
        try:
            answer = dict(getattr(account.client("sagemaker"), operation)(**{f"{what}Name": name}))
        except Exception as error:
            if gone(error):
                return {}
            raise
    answer.pop("ResponseMetadata", None)
    return answer


def deployed(account: Account, name: str) -> Deployed | None:
    """The endpoint `name`; None where there is none. Raises UserError where imgcls has not made it."""
    endpoint = described(account, "Endpoint", name)
    if not endpoint:
        return None
    if TAG not in tags_at(account, str(endpoint["EndpointArn"])):
        raise UserError(f"The endpoint {name} was not made by imgcls (it has no tag {TAG}). Give another name=….")
    config = described(account, "EndpointConfig", endpoint["EndpointConfigName"])
    variants = config.get("ProductionVariants") or [{}]
    model = described(account, "Model", variants[0]["ModelName"]) if "ModelName" in variants[0] else {}
    return Deployed(endpoint, config, model)


def needed(account: Account, name: str) -> Deployed:
    """The endpoint `name`. Raises UserError where there is none."""
    found = deployed(account, name)
    if found is None:
        raise UserError(f"There is no endpoint {name} in {account.region}. `python -m imgcls.deploy list` shows them.")
    return found


def tags_at(account: Account, arn: str) -> dict[str, str]:
    """The tags of something of SageMaker; none where it is gone."""
    with explain_refusals(f"read the tags of {arn.rpartition('/')[2]}"):
        try:
            answer = account.client("sagemaker").list_tags(ResourceArn=arn)
        except Exception as error:
            if gone(error):
                return {}
            raise
    return as_mapping(answer["Tags"])


def settle(
    account: Account, name: str, *, poll: float, wait: Callable[[float], None] = time.sleep, whole: bool = True
) -> Deployed | None:
    """Wait until the endpoint is no longer being changed, and say what it does meanwhile.

    Passing faults of the network are waited out.

    Args:
        account: what is asked.
        name: of the endpoint.
        poll: seconds between two looks.
        wait: called with `poll`.
        whole: also describe its configuration and model.

    Returns:
        The endpoint; None where there is none (any more).
    """
    began = spoken = answered = time.monotonic()
    status = ""
    while True:
        try:
            endpoint = described(account, "Endpoint", name)
            answered = time.monotonic()
        except UserError as error:
            if not passes(error) or time.monotonic() - answered > PATIENCE:
                raise
            log.warning("%s The endpoint goes on; trying again.", error)
            wait(poll)
            continue
        if not endpoint:
            return None
        now = str(endpoint["EndpointStatus"])
        passed = time.monotonic()
        if now not in BUSY:
            if status:
                log.info("%s: %s after %s.", name, now, clock(passed - began))
            return deployed(account, name) if whole else Deployed(endpoint, {}, {})
        if now != status or passed - spoken >= SPOKEN_EVERY:
            status, spoken = now, passed
            log.info("%s: %s, %s (%s).", name, now, SAYS[now], clock(passed - began))
        wait(poll)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75.3)
    '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def why(account: Account, found: Deployed) -> str:
    """What AWS gives as the reason of a failure, and the last lines of the endpoint's log."""
    reason = " ".join(str(found.endpoint.get("FailureReason") or "AWS gives no reason").split())
    lines = last_lines(account, found.name)
    log_text = "".join(f"\n  {line}" for line in lines)
    return f"{reason.rstrip('.')}.{log_text}\nIts log: CloudWatch, {LOG_GROUP}/{found.name}"


def last_lines(account: Account, name: str) -> list[str]:
    """The end of the endpoint's log; nothing where it has none, or may not be read."""
    group = f"{LOG_GROUP}/{name}"
    try:
        client = account.client("logs")
        streams = client.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=1)
        stream = streams["logStreams"][0]["logStreamName"]
        events = client.get_log_events(logGroupName=group, logStreamName=stream, limit=LAST_LINES, startFromHead=False)
        return [str(event["message"]).rstrip()[:300] for event in events["events"]]
    except Exception:  # a hint beside the reason, which is known already
        return []
