"""Existing endpoints with their configurations and models, as AWS describes them, and waiting for their changes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.naming import TAG
from imgcls.aws.refusals import error_code, explain_refusals, is_refusal
from imgcls.deploy.names import as_mapping
from imgcls.errors import UserError
from imgcls.launch.sagemaker.progress import PATIENCE_SECONDS, is_transient

log = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/Endpoints"
BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
STATUS_TEXTS = {
    "Creating": "starting instances, downloading the container image and the model",
    "Updating": "starting the new instances beside the old ones",
    "SystemUpdating": "maintenance by AWS",
    "RollingBack": "the update failed; rolling back",
    "Deleting": "being deleted",
}
NOT_FOUND = (
    "ResourceNotFound",
    "ResourceNotFoundException",
    "NoSuchEntity",
    "ObjectNotFoundException",
    "ProvisionedConcurrencyConfigNotFoundException",
)
LOG_INTERVAL_SECONDS = 60.0  # if nothing changes
LAST_LINES = 15


@dataclass(frozen=True)
class EndpointState:
    """The responses of DescribeEndpoint, DescribeEndpointConfig and DescribeModel; empty for what was deleted."""

    endpoint: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the endpoint."""
        return str(self.endpoint["EndpointName"])

    @property
    def arn(self) -> str:
        """ARN of the endpoint."""
        return str(self.endpoint["EndpointArn"])

    @property
    def status(self) -> str:
        """InService, Creating, …"""
        return str(self.endpoint["EndpointStatus"])

    @property
    def config_name(self) -> str:
        """Name of the endpoint's configuration."""
        return str(self.endpoint["EndpointConfigName"])

    @property
    def variant(self) -> dict[str, Any]:
        """The production variant of the configuration."""
        return dict((self.config.get("ProductionVariants") or [{}])[0])

    @property
    def container(self) -> dict[str, Any]:
        """Image, model data and environment of the model."""
        return dict(self.model.get("PrimaryContainer") or {})


def is_missing(error: Exception) -> bool:
    """Whether AWS reports that a resource does not exist."""
    code, message = error_code(error), str(error).lower()
    return code in NOT_FOUND or (
        code == "ValidationException" and ("could not find" in message or "does not exist" in message)
    )


def call_existing(call: Callable[..., Any], **request: Any) -> Any:
    """The response of `call`; None if AWS reports that the resource does not exist."""
    try:
        return call(**request)
    except Exception as error:
        if not is_missing(error):
            raise
        return None


def describe_resource(account: Account, what: str, name: str) -> dict[str, Any]:
    """AWS's description of an Endpoint, EndpointConfig or Model; empty if it does not exist. Raises UserError."""
    client = account.client("sagemaker")
    operations = {"EndpointConfig": client.describe_endpoint_config, "Model": client.describe_model}
    with explain_refusals(f"describe {name}"):
        answer = call_existing(operations.get(what, client.describe_endpoint), **{f"{what}Name": name}) or {}
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}


def find_endpoint(account: Account, name: str) -> EndpointState | None:
    """The endpoint `name`; None if it does not exist. Raises UserError if imgcls did not create it."""
    endpoint = describe_resource(account, "Endpoint", name)
    if not endpoint:
        return None
    if TAG not in read_tags_of(account, str(endpoint["EndpointArn"])):
        raise UserError(f"The endpoint {name} was not created by imgcls (it has no tag {TAG}). Give another name=….")
    config = describe_resource(account, "EndpointConfig", endpoint["EndpointConfigName"])
    state = EndpointState(endpoint, config, {})
    model = describe_resource(account, "Model", state.variant["ModelName"]) if "ModelName" in state.variant else {}
    return EndpointState(endpoint, config, model)


def get_endpoint(account: Account, name: str) -> EndpointState:
    """The endpoint `name`. Raises UserError if it does not exist."""
    state = find_endpoint(account, name)
    if state is None:
        raise UserError(f"There is no endpoint {name} in {account.region}. `python -m imgcls.deploy list` shows them.")
    return state


def read_tags_of(account: Account, arn: str) -> dict[str, str]:
    """The tags of a SageMaker resource; empty if it does not exist."""
    with explain_refusals(f"read the tags of {arn.rpartition('/')[2]}"):
        answer = call_existing(account.client("sagemaker").list_tags, ResourceArn=arn)
    return as_mapping(answer["Tags"]) if answer else {}


def retry(ask: Callable[[], dict[str, Any]], poll: float, wait: Callable[[float], None]) -> dict[str, Any]:
    """The answer of AWS; network errors are ridden out for half an hour, with `wait(poll)` between two attempts."""
    began = time.monotonic()
    while True:
        try:
            return ask()
        except UserError as error:
            if not is_transient(error) or time.monotonic() - began > PATIENCE_SECONDS:
                raise
            log.warning("%s Trying again; nothing changes in AWS.", error)
            wait(poll)


def wait_until_settled(
    account: Account, name: str, *, poll: float, wait: Callable[[float], None] = time.sleep, whole: bool = True
) -> EndpointState | None:
    """Wait until no change of the endpoint is in progress, and log its status; ride out network errors.

    Args:
        poll: seconds between two requests.
        wait: called with `poll`.
        whole: also describe the endpoint's configuration and model.

    Returns:
        The endpoint; None if it does not exist (any more).
    """
    began = logged = time.monotonic()
    status = ""
    while True:
        endpoint = retry(lambda: describe_resource(account, "Endpoint", name), poll, wait)
        if not endpoint:
            return None
        previous, status = status, str(endpoint["EndpointStatus"])
        now = time.monotonic()
        if status not in BUSY:
            if previous:
                log.info("%s: %s after %s.", name, status, format_duration(now - began))
            return find_endpoint(account, name) if whole else EndpointState(endpoint, {}, {})
        if status != previous or now - logged >= LOG_INTERVAL_SECONDS:
            logged = now
            log.info("%s: %s, %s (%s).", name, status, STATUS_TEXTS[status], format_duration(now - began))
        wait(poll)


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """While AWS is waited for: say `text`, what goes on and is billed, if that ends early."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.warning("%s", text)
        raise
    except UserError as error:
        if is_refusal(error):
            raise UserError(f"{error}\n{text}") from error
        raise


def format_duration(seconds: float) -> str:
    """Duration as minutes:seconds.

    >>> format_duration(75.3)
    '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def explain_failure(account: Account, state: EndpointState) -> str:
    """AWS's reason of a failure, and the last lines of the endpoint's log."""
    reason = " ".join(str(state.endpoint.get("FailureReason") or "AWS gives no reason").split())
    log_text = "".join(f"\n  {line}" for line in last_lines(account, state.name))
    return f"{reason.rstrip('.')}.{log_text}\nIts log: CloudWatch, {LOG_GROUP}/{state.name}"


def last_lines(account: Account, name: str) -> list[str]:
    """The last lines of the endpoint's log; none if it cannot be read."""
    group = f"{LOG_GROUP}/{name}"
    try:
        client = account.client("logs")
        streams = client.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=1)
        stream = streams["logStreams"][0]["logStreamName"]
        events = client.get_log_events(logGroupName=group, logStreamName=stream, limit=LAST_LINES, startFromHead=False)
        return [str(event["message"]).rstrip()[:300] for event in events["events"]]
    except Exception:  # only a hint: AWS's reason is known
        return []
