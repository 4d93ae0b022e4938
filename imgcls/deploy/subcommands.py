"""The other forms of `python -m imgcls.deploy`: test, rollback, list, delete, lambda, policies."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.aws.naming import NAME_PREFIX, default_bucket
from imgcls.aws.rules import check_role_name
from imgcls.deploy.lookup import Values, connect, which
from imgcls.deploy.names import ALIAS, endpoint_name
from imgcls.deploy.options import ASYNCHRONOUS, SERVERLESS
from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.aws.account import Account
    from imgcls.deploy.inventory import Found

log = logging.getLogger("imgcls.deploy")

LONGEST_FUNCTION = 64


def test(values: Values, more: list[str]) -> None:
    """`test run=DIR [name=…]`: ask an endpoint that is there."""
    from imgcls.deploy import probe
    from imgcls.deploy.requests import mode_of
    from imgcls.deploy.samples import find_samples
    from imgcls.deploy.source import request_limit
    from imgcls.deploy.state import needed
    from imgcls.serve.predictor import model_folder

    if values["run"] is None:
        raise UserError("Which model shall it be compared with? Give run=DIR.")
    run = Path(values["run"]).expanduser()
    model = model_folder(run)
    if values["name"] is not None:
        name, given = endpoint_name(values["name"]), dict(values)
    else:
        name, given = which(values)
    account = connect(given)
    mode = mode_of(needed(account, name).config)
    samples = find_samples(run, values["pictures"], values["samples"], request_limit(mode))
    if mode == ASYNCHRONOUS:
        place = account.places.uri("async", name, "questions")
        ask = probe.asking_later(account, name, place, poll=values["poll"])
    else:
        ask = probe.asking(account, name)
    log.info("Asking with %d pictures of %s.", len(samples.pictures), samples.where)
    print(f"test: {probe.compare(ask, model, samples.pictures, values['tolerance'])}")


def roll_back(values: Values, more: list[str]) -> None:
    """`rollback name=…`."""
    from imgcls.deploy import endpoint

    name, given = which(values)
    previous = endpoint.roll_back(connect(given), name, poll=values["poll"])
    print(f"{name} has {previous} again. Once more, and it has what it had now.")


def show(values: Values, more: list[str]) -> None:
    """`list`."""
    from imgcls.deploy.inventory import inventory, running_jobs

    account = connect(values)
    found = inventory(account)
    if not found:
        print(f"imgcls has nothing in {account.region}.")
    else:
        print_table(found)
        for line in costs(account, found):
            print(line)
    jobs = running_jobs(account)
    if jobs:
        print(f"{jobs} training or tuning jobs run, and cost: python -m imgcls.jobs")


def print_table(found: list[Found]) -> None:
    """A line for each thing."""
    width = max(len(one.name) for one in found)
    print(f"{'what':<16} {'name':<{width}} {'made':<16} ")
    for one in found:
        made = one.made.strftime("%Y-%m-%d %H:%M") if isinstance(one.made, datetime) else str(one.made or "")[:16]
        print(f"{one.kind:<16} {one.name:<{width}} {made.replace('T', ' '):<16} {one.about}".rstrip())


def costs(account: Account, found: list[Found]) -> list[str]:
    """What the machines of the endpoints cost."""
    from imgcls.aws.costs import hourly_price

    lines = []
    for one in found:
        if one.machines is None:
            continue
        kind, count = one.machines
        price = hourly_price(account, kind, "Hosting") if count else None
        known = f"{count * price:.2f} USD an hour" if price else "by the hour, see aws.amazon.com/sagemaker/pricing"
        lines.append(f"\n{one.name} costs {known if count else 'nothing now'}.")
        lines.append(f"  end it with: python -m imgcls.deploy delete name={one.name}")
    return lines


def delete(values: Values, more: list[str]) -> None:
    """`delete name=…`, `delete --all`."""
    from imgcls.deploy.inventory import inventory, running_jobs
    from imgcls.deploy.removal import remove

    if values["all"]:
        if values["name"] is not None or values["run"] is not None:
            raise UserError("--all deletes everything; leave name= and run= out, or --all.")
        name, account = None, connect(values)
    else:
        name, given = which(values)
        account = connect(given)
    found = inventory(account, name)
    if not found:
        print(f"There is nothing of {name or 'imgcls'} in {account.region}.")
    else:
        print_table(found)
        if not values["yes"]:
            confirm(len(found))
        remove(account, found, poll=values["poll"], say=print)
        print("Logs, captured requests and what asynchronous endpoints have written stay.")
    jobs = running_jobs(account) if values["all"] else 0
    if jobs:
        print(f"{jobs} training or tuning jobs run, and cost: python -m imgcls.jobs")


def confirm(count: int) -> None:
    """Ask on a terminal. Raises UserError where the answer is no, or nobody can be asked."""
    if not sys.stdin.isatty():
        raise UserError("Nothing was removed: say yes=true, because there is no terminal to ask on.")
    answer = input(f"Remove these {count}? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was removed.")


def put_function(values: Values, more: list[str]) -> None:
    """`lambda name=…`."""
    from imgcls.deploy.function import FunctionOptions, ask, deploy_function
    from imgcls.deploy.options import read_tags
    from imgcls.deploy.samples import find_samples
    from imgcls.deploy.state import needed

    name, given = which(values)
    function = values["function"] or name
    function = function if function.startswith(NAME_PREFIX) else f"{NAME_PREFIX}{function}"
    if len(function) > LONGEST_FUNCTION:
        raise UserError(f"function={function}: at most {LONGEST_FUNCTION} characters.")
    if values["make_role"] == (values["role"] is not None):
        raise UserError("Which role shall the function have? Give role=NAME, or make_role=true for one of its own.")
    options = FunctionOptions(
        name,
        function,
        values["role"],
        values["make_role"],
        values["memory"],
        values["timeout"],
        values["provisioned"],
        values["url"],
        values["poll"],
        read_tags(more),
    )
    account = connect(given)
    needed(account, name)
    if options.url == "public":
        log.warning("url=public: anybody who knows the address can use the function and the endpoint, at your cost.")
    made = deploy_function(account, options)
    print(f"{made.name}, version {made.version}, alias {ALIAS}: asks {name}.")
    if made.address:
        print(f"{made.address}  ({'anybody' if options.url == 'public' else 'with AWS signatures'})")
    if values["pictures"] or values["run"]:
        run = Path(values["run"] or ".").expanduser()
        [sample] = find_samples(run, values["pictures"], 1, 4 << 20).pictures
        best = ask(account, made.name, sample.content)["predictions"][0]["classes"][0]
        print(f"test: {sample.name} is {best['class']} ({best['probability']:.1%})")


def policies(values: Values, more: list[str]) -> None:
    """`policies name=…`."""
    from imgcls.deploy import policies as written
    from imgcls.deploy.requests import FRAMEWORK, INSTANCE_TYPE, image_uri
    from imgcls.launch.sagemaker.policies import repository_arn

    name, given = which(values)
    role = values["role"]
    check_role_name("role", role)
    account = connect(given)
    bucket = values["bucket"] or default_bucket(account.region, account.number)
    prefix = values["prefix"].strip("/")
    answers = values["output"] or f"s3://{bucket}/{prefix}/async/{name}/answers"
    names = written.Names(
        account.partition,
        account.region,
        account.number,
        name,
        bucket,
        prefix,
        role,
        values["function"] or name,
        images=[repository_arn(image_uri(FRAMEWORK, INSTANCE_TYPE, account.region), account.partition)],
        kms_key=values["kms_key"],
        vpc=values["vpc"],
        output=answers if values["mode"] == ASYNCHRONOUS else None,
        topics=values["topics"],
        capture=values["capture"] and values["mode"] != SERVERLESS,
        default_bucket=not values["bucket"],
    )
    parts: dict[str, Any] = {
        "trust": written.trust_policy(),
        "role": written.role_policy(names),
        "person": written.person_policy(names),
        "lambda_trust": written.lambda_trust(),
        "lambda": written.lambda_policy(names),
    }
    print(json.dumps(parts, indent=2))
