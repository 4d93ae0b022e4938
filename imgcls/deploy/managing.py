"""The other forms of `python -m imgcls.deploy`: test, rollback, list, delete, lambda, policies."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.aws.naming import START, default_bucket
from imgcls.aws.rules import check_role_name
from imgcls.deploy.lookup import Values, connect, which
from imgcls.deploy.names import ALIAS, endpoint_name
from imgcls.deploy.options import ASYNCHRONOUS, MODES, SERVERLESS
from imgcls.errors import UserError, nearest

if TYPE_CHECKING:
    from imgcls.aws.account import Account
    from imgcls.deploy.inventory import Found

log = logging.getLogger("imgcls.deploy")

URLS = ("false", "iam", "public")
LEAST_LAMBDA, MOST_LAMBDA = 128, 10240
LONGEST_FUNCTION = 64


def test(values: Values, more: list[str]) -> None:
    """`test run=DIR [name=…]`: ask an endpoint that is there."""
    from imgcls.deploy import probe
    from imgcls.deploy.requests import mode_of
    from imgcls.deploy.samples import find_samples
    from imgcls.deploy.source import request_limit
    from imgcls.deploy.state import needed
    from imgcls.serve.predictor import model_folder

    if not values["run"]:
        raise UserError("Which model shall it be compared with? Give run=DIR.")
    count, tolerance = int(number(values, "samples", 1, 1000)), number(values, "tolerance", 0, 1)
    run = Path(values["run"]).expanduser()
    model = model_folder(run)
    if values["name"]:
        name, given = endpoint_name(values["name"]), dict(values)
    else:
        name, given = which(values)
    if values["pictures"] and not Path(values["pictures"]).expanduser().is_dir():
        raise UserError(f"pictures={values['pictures']}: no such folder.")
    account = connect(given)
    mode = mode_of(needed(account, name).config)
    samples = find_samples(run, values["pictures"] or None, count, request_limit(mode))
    if mode == ASYNCHRONOUS:
        place = account.places.uri("async", name, "questions")
        ask = probe.asking_later(account, name, place, poll=number(values, "poll", 0.01, 600))
    else:
        ask = probe.asking(account, name)
    log.info("Asking with %d pictures of %s.", len(samples.pictures), samples.where)
    print(f"test: {probe.compare(ask, model, samples.pictures, tolerance)}")


def roll_back(values: Values, more: list[str]) -> None:
    """`rollback name=…`."""
    from imgcls.deploy import endpoint

    name, given = which(values)
    previous = endpoint.roll_back(connect(given), name, poll=number(values, "poll", 0.01, 600))
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

    everything, sure = flag(values, "all"), flag(values, "yes")
    poll = number(values, "poll", 0.01, 600)
    if everything:
        if values["name"] or values["run"]:
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
        if not sure:
            confirm(len(found))
        remove(account, found, poll=poll, say=print)
        print("Logs, captured requests and what asynchronous endpoints have written stay.")
    jobs = running_jobs(account) if everything else 0
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
    function = function if function.startswith(START) else f"{START}{function}"
    if len(function) > LONGEST_FUNCTION:
        raise UserError(f"function={function}: at most {LONGEST_FUNCTION} characters.")
    make_role = flag(values, "make_role")
    if make_role == bool(values["role"]):
        raise UserError("Which role shall the function have? Give role=NAME, or make_role=true for one of its own.")
    if values["url"] not in URLS:
        raise UserError(f"url={values['url']}: {nearest(values['url'], URLS)}")
    options = FunctionOptions(
        name,
        function,
        values["role"] or None,
        make_role,
        int(number(values, "memory", LEAST_LAMBDA, MOST_LAMBDA)),
        int(number(values, "timeout", 2, 900)),
        int(number(values, "provisioned", 0, 1000)),
        values["url"],
        number(values, "poll", 0.01, 600),
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
        [sample] = find_samples(run, values["pictures"] or None, 1, 4 << 20).pictures
        best = ask(account, made.name, sample.content)["predictions"][0]["classes"][0]
        print(f"test: {sample.name} is {best['class']} ({best['probability']:.1%})")


def policies(values: Values, more: list[str]) -> None:
    """`policies name=…`."""
    from imgcls.deploy import policies as written
    from imgcls.deploy.requests import FRAMEWORK, INSTANCE_TYPE, image_uri
    from imgcls.launch.sagemaker.policies import repository_arn

    name, given = which(values)
    if values["mode"] not in MODES:
        raise UserError(f"mode={values['mode']}: {nearest(values['mode'], MODES)}")
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
        kms_key=values["kms_key"] or None,
        vpc=flag(values, "vpc"),
        output=answers if values["mode"] == ASYNCHRONOUS else None,
        topics=[one for one in values["topics"].split(",") if one],
        capture=flag(values, "capture") and values["mode"] != SERVERLESS,
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


def number(values: Values, name: str, low: float, high: float) -> float:
    """The number that an option holds. Raises UserError."""
    try:
        found = float(values[name])
    except ValueError:
        found = None
    if found is None or not low <= found <= high:
        raise UserError(f"{name}={values[name]}: must be a number from {low:g} to {high:g}.")
    return found


def flag(values: Values, name: str) -> bool:
    """Whether an option is true. Raises UserError."""
    if values[name].lower() not in ("true", "false"):
        raise UserError(f"{name}={values[name]}: must be true or false.")
    return values[name].lower() == "true"
