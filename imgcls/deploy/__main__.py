"""`python -m imgcls.deploy`: a run's model as an endpoint of Amazon SageMaker; docs/deploying.md explains the options.

usage: python -m imgcls.deploy run=DIR | job=NAME  [name=…] [target=aws|local|rehearsal]
                               [mode=real-time|serverless|asynchronous] [instance_type=ml.m5.large] [instance_count=1]
                               [memory=3072] [concurrency=5] [provisioned=0] [output=s3://…] [max_instances=…] …
       python -m imgcls.deploy test     run=DIR [name=…] [pictures=FOLDER]   ask the endpoint, compare with the run here
       python -m imgcls.deploy rollback name=… | run=DIR                     what was deployed before
       python -m imgcls.deploy delete   name=… | run=DIR | --all [yes=true]  take it away
       python -m imgcls.deploy list                                          what there is, and what it costs
       python -m imgcls.deploy lambda   name=… make_role=true | role=… [provisioned=2] [url=iam|public]
       python -m imgcls.deploy policies name=… role=…                        IAM policies

options of an endpoint: role framework_version image startup_timeout environment.NAME tags.NAME kms_key subnets
  security_groups network_isolation capture · min_instances max_instances invocations_per_instance backlog_per_instance
  scale_out_cooldown scale_in_cooldown · traffic=all|canary|linear bake alarms · success_topic error_topic
of the test: test=true pictures samples=8 tolerance=0.01 on_failure=keep|undo · of the command: wait=true poll=10
of all: region profile bucket prefix=imgcls
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields

from imgcls.cli import guarded, parse_arguments
from imgcls.deploy.options import Options
from imgcls.errors import UserError, nearest

PLACE = {"region": "", "profile": ""}
STORE = {"bucket": "", "prefix": "imgcls"}
WHICH = {"name": "", "run": ""}
DEPLOY = {one.name: "" for one in fields(Options) if one.name not in ("tags", "environment")}
ACTIONS: dict[str, dict[str, str]] = {
    "deploy": DEPLOY,
    "test": {**WHICH, **PLACE, **STORE, "pictures": "", "samples": "8", "tolerance": "0.01", "poll": "2"},
    "rollback": {**WHICH, **PLACE, "poll": "10"},
    "delete": {**WHICH, **PLACE, "all": "false", "yes": "false", "poll": "10"},
    "list": {**PLACE},
    "lambda": {
        **WHICH,
        **PLACE,
        "function": "",
        "role": "",
        "make_role": "false",
        "memory": "256",
        "timeout": "30",
        "provisioned": "0",
        "url": "false",
        "pictures": "",
        "poll": "2",
    },
    "policies": {
        **WHICH,
        **PLACE,
        **STORE,
        "role": "imgcls-endpoints",
        "function": "",
        "mode": "real-time",
        "output": "",
        "topics": "",
        "kms_key": "",
        "capture": "false",
        "vpc": "false",
    },
}
WITH_MORE = {"deploy": ("tags.", "environment."), "lambda": ("tags.",)}
"""Actions that take `tags.NAME=…`, and which of such words."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(guarded(lambda: command(list(sys.argv[1:] if arguments is None else arguments))))


def command(arguments: list[str]) -> None:
    """Take the words apart, and do what they say. Raises UserError."""
    words = ["all=true" if word == "--all" else word for word in arguments]
    named = next((word for word in words if "=" not in word and not word.startswith("-")), None)
    if named is not None and named not in ACTIONS:
        raise UserError(f"{named}: {nearest(named, ACTIONS)}")
    action = named or "deploy"
    if not words:
        raise UserError("What shall be deployed? Give run=DIR or job=NAME; --help shows more.")
    values, more, rest = parse_arguments(
        words, ACTIONS[action], usage=__doc__ or "", overrides=WITH_MORE.get(action, ())
    )
    if rest not in ([], [action]):
        raise UserError(f"What is {rest[-1]!r}? Options are given as name=value.")

    from imgcls.deploy.command import perform

    perform(action, values, more)


if __name__ == "__main__":
    main()
