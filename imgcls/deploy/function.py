"""Creates, updates and publishes the Lambda function in front of an endpoint."""

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
from imgcls.deploy.state import call_existing
from imgcls.errors import UserError

log = logging.getLogger(__name__)

RUNTIME = "python3.13"
FILE = "lambda_function.py"
POLICY = "ask-endpoint"
ROLE_PATIENCE_SECONDS = 60.0  # until a new role is known to all services
READY_PATIENCE_SECONDS = 600.0
PERMISSIONS = {"url": "lambda:InvokeFunctionUrl", "url-invoke": "lambda:InvokeFunction"}
"""Since October 2025 a public URL needs both."""
MAX_ROLE_NAME_LENGTH = 64


@dataclass(frozen=True)
class FunctionOptions:
    """The options that docs/deploying.md explains."""

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
    """The published function."""

    name: str
    version: str
    address: str | None = None


def deploy_function(
    account: Account, options: FunctionOptions, wait: Callable[[float], None] = time.sleep
) -> Published:
    """Create or update the function, publish a version of it, and point the alias to that version.

    Raises UserError if AWS refuses.
    """
    client = account.client("lambda")
    role = (
        make_role(account, options)
        if options.make_role
        else account.find_role(str(options.role), "lambda.amazonaws.com")
    )
    code, settings = zipped(), configuration(options, role)
    with explain_refusals(f"create the function {options.function}"):
        function = call_existing(client.get_function, FunctionName=options.function)
        if function is None:
            tags = {**options.tags, **tags_of("function", options.endpoint)}
            request = {**settings, "Code": {"ZipFile": code}, "Tags": tags}
            _with_role(client.create_function, request, options.poll, wait)
            log.info("Created the function %s.", options.function)
        else:
            if TAG not in (function.get("Tags") or {}):
                raise UserError(f"The function {options.function} was not created by imgcls. Give another function=….")
            _ready(client, options, wait)
            client.update_function_code(FunctionName=options.function, ZipFile=code)
            _ready(client, options, wait)
            _with_role(client.update_function_configuration, settings, options.poll, wait)
        _ready(client, options, wait)
        version = str(client.publish_version(FunctionName=options.function)["Version"])
        _point_alias(client, options.function, version)
        _keep_warm(client, options)
    billed = f", whose provisioned={options.provisioned} is billed until you delete it" if options.provisioned else ""
    with explain_refusals(f"finish the function {options.function}{billed}"):
        if options.provisioned:
            _wait_until_warm(client, options, wait)
        address = _address(client, options)
    return Published(options.function, version, address)


def zipped() -> bytes:
    """The function's code as a .zip file with reproducible bytes."""
    content = resources.files("imgcls.serve").joinpath(FILE).read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(FILE, (2020, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, content)
    return buffer.getvalue()


def configuration(options: FunctionOptions, role: str) -> dict[str, Any]:
    """The function's settings, for creating and updating it."""
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


def role_name(function: str, region: str) -> str:
    """Name of the role of a function; it contains the region, because roles are global."""
    name = f"{function}-{region}"
    if len(name) <= MAX_ROLE_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{name[: MAX_ROLE_NAME_LENGTH - DIGEST_LENGTH - 1]}-{digest}"


def make_role(account: Account, options: FunctionOptions) -> str:
    """Create a role that may only invoke this endpoint and write this function's log. Returns its ARN."""
    client, name = account.client("iam"), role_name(options.function, account.region)
    names = Names(account.partition, account.region, account.number, options.endpoint, function=options.function)
    with explain_refusals(f"create the role {name}"):
        answer = call_existing(client.get_role, RoleName=name)
        if answer is not None and TAG not in as_mapping(answer["Role"].get("Tags") or []):
            raise UserError(f"The role {name} was not created by imgcls. Give another function=…, or role=NAME.")
        if answer is None:
            tags = {**options.tags, **tags_of("role", options.endpoint, {REGION_TAG: account.region})}
            answer = client.create_role(
                RoleName=name,
                Path=ROLE_PATH,
                AssumeRolePolicyDocument=json.dumps(lambda_trust()),
                Description=f"For the function {options.function}: may invoke {options.endpoint}.",
                Tags=as_list(tags),
            )
            log.info("Created the role %s.", name)
        client.put_role_policy(RoleName=name, PolicyName=POLICY, PolicyDocument=json.dumps(lambda_policy(names)))
    return str(answer["Role"]["Arn"])


def _with_role(call: Callable[..., Any], request: dict[str, Any], poll: float, wait: Callable[[float], None]) -> None:
    """Create or update the function with its role, which Lambda may not know yet."""
    began, logged = time.monotonic(), False
    while True:
        try:
            call(**request)
            return
        except Exception as error:
            message = str(error).lower()
            if "assume" not in message or "role" not in message:
                raise
            if time.monotonic() - began > ROLE_PATIENCE_SECONDS:
                raise UserError(
                    f"Lambda cannot assume the role {request['Role']}. It must exist and trust lambda.amazonaws.com."
                ) from error
        if not logged:
            log.info("Waiting until Lambda knows the role.")
        logged = True
        wait(poll)


def _ready(client: Any, options: FunctionOptions, wait: Callable[[float], None]) -> None:
    """Wait until the last change of the function has taken effect."""
    began = time.monotonic()
    while True:
        now = client.get_function_configuration(FunctionName=options.function)
        if now.get("State") == "Failed" or now.get("LastUpdateStatus") == "Failed":
            reason = now.get("StateReason") or now.get("LastUpdateStatusReason") or "AWS gives no reason"
            raise UserError(f"The function {options.function} failed: {reason}")
        if now.get("State", "Active") in ("Active", "Inactive") and now.get("LastUpdateStatus") != "InProgress":
            return
        if time.monotonic() - began > READY_PATIENCE_SECONDS:
            raise UserError(f"The function {options.function} is not ready after 10 minutes. Try again.")
        wait(options.poll)


def _point_alias(client: Any, function: str, version: str) -> None:
    alias = {"FunctionName": function, "Name": ALIAS, "FunctionVersion": version}
    if call_existing(client.update_alias, **alias) is None:
        client.create_alias(**alias)


def _keep_warm(client: Any, options: FunctionOptions) -> None:
    """Set the provisioned concurrency of the alias, or remove it."""
    alias = {"FunctionName": options.function, "Qualifier": ALIAS}
    if options.provisioned:
        client.put_provisioned_concurrency_config(**alias, ProvisionedConcurrentExecutions=options.provisioned)
    else:
        call_existing(client.delete_provisioned_concurrency_config, **alias)


def _wait_until_warm(client: Any, options: FunctionOptions, wait: Callable[[float], None]) -> None:
    alias = {"FunctionName": options.function, "Qualifier": ALIAS}
    began = time.monotonic()
    while True:
        now = client.get_provisioned_concurrency_config(**alias)
        if now["Status"] == "READY":
            log.info("%s: provisioned concurrency %d, billed per hour.", options.function, options.provisioned)
            return
        if now["Status"] == "FAILED" or time.monotonic() - began > READY_PATIENCE_SECONDS:
            raise UserError(
                f"{options.function}: provisioned={options.provisioned} is not available: "
                f"{now.get('StatusReason', now['Status'])}"
            )
        wait(options.poll)


def _address(client: Any, options: FunctionOptions) -> str | None:
    """Set up the function URL: none, with AWS signatures, or public. Returns it."""
    alias = {"FunctionName": options.function, "Qualifier": ALIAS}
    config = call_existing(client.get_function_url_config, **alias)
    if options.url != "public":
        for statement in PERMISSIONS:
            call_existing(client.remove_permission, **alias, StatementId=statement)
    if options.url == "false":
        if config is not None:
            client.delete_function_url_config(**alias)
        return None
    kind = "NONE" if options.url == "public" else "AWS_IAM"
    if config is None:
        config = client.create_function_url_config(**alias, AuthType=kind)
    elif config["AuthType"] != kind:
        client.update_function_url_config(**alias, AuthType=kind)
    if options.url == "public":
        for statement, action in PERMISSIONS.items():
            call_existing(client.remove_permission, **alias, StatementId=statement)
            more = {"FunctionUrlAuthType": "NONE"} if statement == "url" else {"InvokedViaFunctionUrl": True}
            client.add_permission(**alias, StatementId=statement, Action=action, Principal="*", **more)
    return str(config["FunctionUrl"])


def ask(account: Account, function: str, picture: bytes) -> dict[str, Any]:
    """The body of the function's response to an image. Raises UserError if the function fails."""
    event = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
    try:
        answer = account.client("lambda").invoke(FunctionName=function, Qualifier=ALIAS, Payload=event)
    except Exception as error:
        raise explain(error, f"invoke the function {function}") or error from error
    content = json.loads(answer["Payload"].read() or b"null")
    if answer.get("FunctionError") or not isinstance(content, dict) or content.get("statusCode") != 200:
        raise UserError(f"The function {function} failed: {json.dumps(content)[:300]}")
    return dict(json.loads(content["body"]))
