"""The actions of `python -m imgcls.deploy` besides deploying: test, rollback, list, delete, lambda, policies."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.costs import hourly_price
from imgcls.aws.iam import split
from imgcls.aws.naming import NAME_PREFIX, default_bucket
from imgcls.aws.refusals import is_denied
from imgcls.aws.rules import role_resource
from imgcls.cli import confirm_removal
from imgcls.deploy import endpoint, inventory, policies, registry_command
from imgcls.deploy.deployment import create_ask, run_test
from imgcls.deploy.function import FunctionOptions, ask, deploy_function
from imgcls.deploy.inventory import Resource
from imgcls.deploy.lookup import Values, connect, resolve_endpoint
from imgcls.deploy.names import ALIAS
from imgcls.deploy.options import ASYNCHRONOUS, SERVERLESS, read_tags
from imgcls.deploy.removal import remove
from imgcls.deploy.requests import ARM_TYPE, FRAMEWORK, INSTANCE_TYPE, image_uri, mode_of
from imgcls.deploy.samples import find_samples
from imgcls.deploy.source import SERVERLESS_LIMIT, request_limit
from imgcls.deploy.state import get_endpoint
from imgcls.errors import UserError
from imgcls.launch.sagemaker.policies import repository_arn
from imgcls.serve.predictor import model_folder

log = logging.getLogger("imgcls.deploy")

MAX_FUNCTION_NAME_LENGTH = 64


def test(values: Values, more: list[str]) -> None:
    """`test run=DIR [name=…]`: test an existing endpoint."""
    if values["run"] is None:
        raise UserError("Give the run to compare the endpoint with: run=DIR.")
    run = Path(values["run"]).expanduser()
    model = model_folder(run)
    name, account = resolve_endpoint({**values, "run": None} if values["name"] is not None else values)
    mode = mode_of(get_endpoint(account, name).config)
    samples = find_samples(run, values["pictures"], values["samples"], request_limit(mode))
    run_test(create_ask(account, name, mode, poll=values["poll"]), model, samples, values["tolerance"])


def roll_back(values: Values, more: list[str]) -> None:
    """`rollback name=…`."""
    name, account = resolve_endpoint(values)
    previous = endpoint.roll_back(account, name, poll=values["poll"])
    print(f"Rolled {name} back to {previous}. Run rollback again to undo it.")


def list_resources(values: Values, more: list[str]) -> None:
    """`list`."""
    account = connect(values)
    hidden: list[str] = []
    resources = inventory.list_resources(account, hidden=hidden)
    print_hidden(hidden)
    if resources:
        print_table(resources)
        print_costs(account, resources)
    elif not hidden:
        print(f"There are no resources of imgcls in {account.region}.")
    print_running_jobs(account)


def print_hidden(kinds: list[str]) -> None:
    """Print the kinds of resources that AWS does not allow to list."""
    if kinds:
        print(f"You may not list {', '.join(kinds)}: there may be more than is shown.")


def print_table(resources: list[Resource]) -> None:
    """Print a line for each resource."""
    width = max(len(resource.name) for resource in resources)
    print(f"{'what':<16} {'name':<{width}} {'made':<16} ")
    for resource in resources:
        time = resource.made
        made = time.strftime("%Y-%m-%d %H:%M") if isinstance(time, datetime) else str(time or "")[:16]
        print(f"{resource.kind:<16} {resource.name:<{width}} {made.replace('T', ' '):<16} {resource.about}".rstrip())


def print_costs(account: Account, resources: list[Resource]) -> None:
    """Print the cost of the endpoints that have instances."""
    for resource in resources:
        if resource.instances is None:
            continue
        kind, count = resource.instances
        price = hourly_price(account, kind, "Hosting") if count else None
        cost = f"{count * price:.2f} USD per hour" if price else "per hour, see aws.amazon.com/sagemaker/pricing"
        print(f"\n{resource.name} is {f'billed {cost}' if count else 'not billed now'}.")
        print(f"  delete it with: python -m imgcls.deploy delete name={resource.name}")


def print_running_jobs(account: Account) -> None:
    """Print the number of running jobs, if there are any."""
    try:
        jobs = inventory.count_running_jobs(account)
    except UserError as error:
        if not is_denied(error):
            raise
        print_hidden(["jobs"])
        return
    if jobs:
        print(f"{jobs} training or tuning jobs are running and billed: python -m imgcls.jobs")


def delete(values: Values, more: list[str]) -> None:
    """`delete name=…`, `delete --all`, `delete package=…`."""
    if values["package"] is not None:
        if values["all"] or values["name"] is not None or values["run"] is not None:
            raise UserError("package deletes a registered version: give it without name=, run= and --all.")
        registry_command.remove(values)
        return
    if values["all"]:
        if values["name"] is not None or values["run"] is not None:
            raise UserError("--all deletes everything: give either --all, or name= or run=.")
        name, account = None, connect(values)
    else:
        name, account = resolve_endpoint(values)
    hidden: list[str] = []
    try:
        resources = inventory.list_resources(account, name, hidden)
    except UserError as error:
        raise UserError(f"{error}\nNothing was removed, and endpoints are billed until they are deleted.") from error
    print_hidden(hidden)
    if resources:
        print_table(resources)
        if not values["yes"]:
            confirm_removal(f"Remove these {len(resources)}?")
        remove(account, resources, poll=values["poll"], report=print)
        print("Logs, captured requests and answers of asynchronous endpoints are kept.")
    elif not hidden:
        print(f"There are no resources of {name or 'imgcls'} in {account.region}.")
    if values["all"]:
        print_running_jobs(account)


def deploy_lambda(values: Values, more: list[str]) -> None:
    """`lambda name=…`."""
    if values["make_role"] == (values["role"] is not None):
        raise UserError("Give the role of the function: role=NAME, or make_role=true to create one.")
    name, account = resolve_endpoint(values)
    function = values["function"] or name
    function = function if function.startswith(NAME_PREFIX) else f"{NAME_PREFIX}{function}"
    if len(function) > MAX_FUNCTION_NAME_LENGTH:
        raise UserError(f"function={function}: must have up to {MAX_FUNCTION_NAME_LENGTH} characters.")
    options = FunctionOptions(
        name,
        function,
        tags=read_tags(more),
        **{key: values[key] for key in ("role", "make_role", "memory", "timeout", "provisioned", "url", "poll")},
    )
    if mode_of(get_endpoint(account, name).config) == ASYNCHRONOUS:
        raise UserError(f"{name} is asynchronous: it reads images from S3, so no function can ask it.")
    if options.url == "public":
        log.warning("url=public: anyone who knows the URL can use the function and the endpoint at your expense.")
    made = deploy_function(account, options)
    print(f"{made.name}, version {made.version}, alias {ALIAS}: invokes {name}.")
    if made.address:
        print(f"{made.address}  ({'public' if options.url == 'public' else 'with AWS signatures'})")
    if values["pictures"] or values["run"]:
        run = Path(values["run"] or ".").expanduser()
        [sample] = find_samples(run, values["pictures"], 1, SERVERLESS_LIMIT).pictures
        best = ask(account, made.name, sample.content)["predictions"][0]["classes"][0]
        print(f"test: {sample.name} is {best['class']} ({best['probability']:.1%})")


def print_policies(values: Values, more: list[str]) -> None:
    """`policies name=…`."""
    role = role_resource("role", values["role"])
    function_role = role_resource("function_role", values["function_role"])
    name, account = resolve_endpoint(values)
    bucket = values["bucket"] or default_bucket(account.region, account.number)
    prefix = values["prefix"].strip("/")
    answers = values["output"] or f"s3://{bucket}/{prefix}/async/{name}/answers"
    images = (
        [values["image"]]
        if values["image"]
        else [image_uri(FRAMEWORK, kind, account.region) for kind in (INSTANCE_TYPE, ARM_TYPE)]
    )
    names = policies.Names(
        account.partition,
        account.region,
        account.number,
        name,
        bucket=bucket,
        prefix=prefix,
        role=role,
        function=values["function"] or name,
        images=[repository_arn(image, account.partition) for image in images],
        kms_key=values["kms_key"],
        function_role=function_role,
        subnets=values["subnets"] or (["*"] if values["vpc"] else []),
        security_groups=values["security_groups"] or (["*"] if values["vpc"] else []),
        output=answers if values["mode"] == ASYNCHRONOUS else None,
        topics=values["topics"],
        capture=values["capture"] and values["mode"] != SERVERLESS,
        batch=values["images"],
        default_bucket=not values["bucket"],
    )
    parts: dict[str, Any] = {
        "trust": policies.trust_policy(names),
        "role": policies.role_policy(names),
        **split("person", policies.person_policy(names)),
        "lambda_trust": policies.lambda_trust(),
        "lambda": policies.lambda_policy(names),
    }
    print(json.dumps(parts, indent=2))
