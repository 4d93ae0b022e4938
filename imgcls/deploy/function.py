"""The Lambda function in front of an endpoint: made, changed, published."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.naming import TAG
from imgcls.aws.refusals import explain, explain_refusals
from imgcls.deploy.names import ALIAS, DIGEST_LENGTH, REGION_TAG, ROLE_PATH, as_list, as_mapping, tags_of
from imgcls.deploy.policies import Names, lambda_policy, lambda_trust
from imgcls.deploy.state import gone
from imgcls.errors import UserError

log = logging.getLogger(__name__)

RUNTIME = "python3.13"
FILE = "lambda_function.py"
POLICY = "ask-endpoint"
ROLE_PATIENCE = 60.0  # seconds until AWS everywhere knows a new role
READY_PATIENCE = 600.0
PERMISSIONS = {"url": "lambda:InvokeFunctionUrl", "url-invoke": "lambda:InvokeFunction"}
"""Since October 2025 an address for everybody needs both."""
LONGEST_ROLE = 64


@dataclass(frozen=True)
class FunctionOptions:
    """What docs/deploying.md explains."""

    endpoint: str
    function: str
    role: str | None = None
    make_role: bool = False
    memory: int = 256
    timeout: int = 30
    provisioned: int = 0
    url: str = "false"
    poll: float = 2.0
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """The function as it is now."""

    name: str
    version: str
    address: str | None = None


def deploy_function(
    account: Account, options: FunctionOptions, wait: Callable[[float], None] = time.sleep
) -> Published:
    """Make the function, or give it this code and these settings; publish it; point the alias to it.

    Raises UserError for what AWS refuses.
    """
    client = account.client("lambda")
    role = make_role(account, options) if options.make_role else role_arn(account, str(options.role))
    code, settings = zipped(), configuration(options, role)
    with explain_refusals(f"make the function {options.function}"):
        there = _function(client, options.function)
        if there is None:
            tags = {**options.tags, **tags_of("function", options.endpoint)}
            _create(client, {**settings, "Code": {"ZipFile": code}, "Tags": tags}, options.poll, wait)
            log.info("Made the function %s.", options.function)
        else:
            _check_ours(there, options)
            _ready(client, options, wait)
            client.update_function_code(FunctionName=options.function, ZipFile=code)
            _ready(client, options, wait)
            client.update_function_configuration(**settings)
        _ready(client, options, wait)
        version = str(client.publish_version(FunctionName=options.function)["Version"])
        _point_alias(client, options.function, version)
        _keep_warm(client, options, wait)
        address = _address(client, options)
    return Published(options.function, version, address)


def zipped() -> bytes:
    """The function's code; the same bytes every time."""
    content = resources.files("imgcls.serve").joinpath(FILE).read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(FILE, (2020, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, content)
    return buffer.getvalue()


def configuration(options: FunctionOptions, role: str) -> dict[str, Any]:
    """The function's settings, as both making and changing it take them."""
    variables = {"ENDPOINT_NAME": options.endpoint, "TIMEOUT": str(max(1, options.timeout - 5))}
    return {
        "FunctionName": options.function,
        "Runtime": RUNTIME,
        "Handler": "lambda_function.lambda_handler",
        "Role": role,
        "MemorySize": options.memory,
        "Timeout": options.timeout,
        "Environment": {"Variables": variables},
        "Description": f"Asks the endpoint {options.endpoint}.",
    }


def role_arn(account: Account, role: str) -> str:
    """The ARN of a role that is given by its name or ARN."""
    return role if role.startswith("arn:") else f"arn:{account.partition}:iam::{account.number}:role/{role}"


def role_name(function: str, region: str) -> str:
    """The role that is made for a function: roles know no regions, so that its name has it."""
    name = f"{function}-{region}"
    if len(name) <= LONGEST_ROLE:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{name[: LONGEST_ROLE - DIGEST_LENGTH - 1]}-{digest}"


def make_role(account: Account, options: FunctionOptions) -> str:
    """A role that may ask this endpoint and write this function's log, and nothing else. Returns its ARN."""
    client, name = account.client("iam"), role_name(options.function, account.region)
    names = Names(account.partition, account.region, account.number, options.endpoint, function=options.function)
    with explain_refusals(f"make the role {name}"):
        try:
            there = client.get_role(RoleName=name)["Role"]
            arn = str(there["Arn"])
            if TAG not in as_mapping(there.get("Tags") or []):
                raise UserError(f"The role {name} was not made by imgcls. Give another function=…, or role=NAME.")
        except UserError:
            raise
        except Exception as error:
            if not gone(error):
                raise
            tags = {**options.tags, **tags_of("role", options.endpoint, {REGION_TAG: account.region})}
            made = client.create_role(
                RoleName=name,
                Path=ROLE_PATH,
                AssumeRolePolicyDocument=json.dumps(lambda_trust()),
                Description=f"For the function {options.function}: may ask {options.endpoint}.",
                Tags=as_list(tags),
            )
            arn = str(made["Role"]["Arn"])
            log.info("Made the role %s.", name)
        client.put_role_policy(RoleName=name, PolicyName=POLICY, PolicyDocument=json.dumps(lambda_policy(names)))
    return arn


def _function(client: Any, name: str) -> dict[str, Any] | None:
    try:
        return dict(client.get_function(FunctionName=name))
    except Exception as error:
        if gone(error):
            return None
        raise


def _check_ours(there: dict[str, Any], options: FunctionOptions) -> None:
    if TAG not in (there.get("Tags") or {}):
        raise UserError(f"The function {options.function} was not made by imgcls. Give another function=….")


def _create(client: Any, request: dict[str, Any], poll: float, wait: Callable[[float], None]) -> None:
    """Make the function; a role that was made this minute may not be known yet to Lambda."""
    began, said = time.monotonic(), False
    while True:
        try:
            client.create_function(**request)
            return
        except Exception as error:
            message = str(error).lower()
            if "assume" not in message or "role" not in message:
                raise
            if time.monotonic() - began > ROLE_PATIENCE:
                raise UserError(
                    f"Lambda cannot take on the role {request['Role']}. It must exist and trust lambda.amazonaws.com."
                ) from error
        if not said:
            log.info("Waiting until Lambda knows the role.")
        said = True
        wait(poll)


def _ready(client: Any, options: FunctionOptions, wait: Callable[[float], None]) -> None:
    """Wait until the last change has been made."""
    began = time.monotonic()
    while True:
        now = client.get_function_configuration(FunctionName=options.function)
        if now.get("State") == "Failed" or now.get("LastUpdateStatus") == "Failed":
            reason = now.get("StateReason") or now.get("LastUpdateStatusReason") or "AWS gives no reason"
            raise UserError(f"The function {options.function} failed: {reason}")
        if now.get("State", "Active") in ("Active", "Inactive") and now.get("LastUpdateStatus") != "InProgress":
            return
        if time.monotonic() - began > READY_PATIENCE:
            raise UserError(f"The function {options.function} is not ready after ten minutes. Try again.")
        wait(options.poll)


def _point_alias(client: Any, function: str, version: str) -> None:
    try:
        client.update_alias(FunctionName=function, Name=ALIAS, FunctionVersion=version)
    except Exception as error:
        if not gone(error):
            raise
        client.create_alias(FunctionName=function, Name=ALIAS, FunctionVersion=version)


def _keep_warm(client: Any, options: FunctionOptions, wait: Callable[[float], None]) -> None:
    """Provisioned concurrency of the alias: as asked for, or none."""
    place = {"FunctionName": options.function, "Qualifier": ALIAS}
    if not options.provisioned:
        try:
            client.delete_provisioned_concurrency_config(**place)
        except Exception as error:
            if not gone(error):
                raise
        return
    client.put_provisioned_concurrency_config(**place, ProvisionedConcurrentExecutions=options.provisioned)
    began = time.monotonic()
    while True:
        now = client.get_provisioned_concurrency_config(**place)
        if now["Status"] == "READY":
            log.info("%s: %d are kept warm, and cost by the hour.", options.function, options.provisioned)
            return
        if now["Status"] == "FAILED" or time.monotonic() - began > READY_PATIENCE:
            raise UserError(
                f"{options.function}: provisioned={options.provisioned} is not to be had: "
                f"{now.get('StatusReason', now['Status'])}"
            )
        wait(options.poll)


def _address(client: Any, options: FunctionOptions) -> str | None:
    """The function URL, as asked for: none, for AWS's signatures, or for everybody."""
    place = {"FunctionName": options.function, "Qualifier": ALIAS}
    try:
        there = client.get_function_url_config(**place)
    except Exception as error:
        if not gone(error):
            raise
        there = None
    if options.url != "public":
        for statement in PERMISSIONS:
            _forbid(client, place, statement)
    if options.url == "false":
        if there is not None:
            client.delete_function_url_config(**place)
        return None
    kind = "NONE" if options.url == "public" else "AWS_IAM"
    if there is None:
        there = client.create_function_url_config(**place, AuthType=kind)
    elif there["AuthType"] != kind:
        client.update_function_url_config(**place, AuthType=kind)
    if options.url == "public":
        for statement, action in PERMISSIONS.items():
            _forbid(client, place, statement)
            more = {"FunctionUrlAuthType": "NONE"} if statement == "url" else {"InvokedViaFunctionUrl": True}
            client.add_permission(**place, StatementId=statement, Action=action, Principal="*", **more)
    return str(there["FunctionUrl"])


def _forbid(client: Any, place: dict[str, str], statement: str) -> None:
    try:
        client.remove_permission(**place, StatementId=statement)
    except Exception as error:
        if not gone(error):
            raise


def ask(account: Account, function: str, picture: bytes) -> dict[str, Any]:
    """The body of the function's answer to a picture. Raises UserError where it has none."""
    event = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
    try:
        answer = account.client("lambda").invoke(FunctionName=function, Qualifier=ALIAS, Payload=event)
    except Exception as error:
        raise explain(error, f"ask the function {function}") or error from error
    content = json.loads(answer["Payload"].read() or b"null")
    if answer.get("FunctionError") or not isinstance(content, dict) or content.get("statusCode") != 200:
        raise UserError(f"The function {function} does not answer: {json.dumps(content)[:300]}")
    return dict(json.loads(content["body"]))
