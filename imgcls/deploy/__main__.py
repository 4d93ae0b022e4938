"""`python -m imgcls.deploy`: a run's model as an endpoint of Amazon SageMaker; docs/deploying.md explains the options.

usage: python -m imgcls.deploy run=DIR | job=NAME | package=NAME  [name=…] [target=aws|local|rehearsal]
                               [mode=real-time|serverless|asynchronous] [instance_type=ml.m5.large] [instance_count=1]
                               [memory=3072] [concurrency=5] [provisioned=0] [output=s3://…] [max_instances=…] …
       python -m imgcls.deploy test     run=DIR [name=…] [pictures=FOLDER]   compare the endpoint with the local model
       python -m imgcls.deploy rollback name=… | run=DIR                     restore the previous deployment
       python -m imgcls.deploy delete   name=… | run=DIR | --all [yes=true]  delete it
       python -m imgcls.deploy list                                          all resources, and their cost
       python -m imgcls.deploy lambda   name=… make_role=true | role=… [provisioned=2] [url=iam|public]
       python -m imgcls.deploy policies name=… role=…                        IAM policies
       python -m imgcls.deploy register run=DIR [name=…] [approve=true]      a version in the Model Registry
       python -m imgcls.deploy approve  package=NAME/VERSION [reason=TEXT]   allow it to be deployed
       python -m imgcls.deploy reject   package=NAME/VERSION [reason=TEXT]
       python -m imgcls.deploy packages [name=…]                             all versions, and where they come from
       python -m imgcls.deploy delete   package=NAME[/VERSION] [yes=true]    one version, or all of a model
       python -m imgcls.deploy batch    s3://BUCKET/FOLDER|TABLE.csv run=DIR | package=NAME [answers=answers.jsonl]

options of an endpoint: role framework_version image inference_ami startup_timeout environment.NAME tags.NAME kms_key
  subnets security_groups network_isolation capture · min_instances max_instances invocations_per_instance
  concurrent_per_instance backlog_per_instance scale_out_cooldown scale_in_cooldown · traffic=all|canary|linear bake
  alarms · success_topic error_topic
of the test: test=true pictures samples=8 tolerance=0.01 on_failure=keep|undo · of the command: wait=true poll=10
of all: region profile bucket prefix=imgcls
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imgcls.cli import Option, boolean, read_options, run_command, texts, usage_of
from imgcls.deploy.options import ENDPOINT, MODES
from imgcls.errors import UserError, nearest
from imgcls.system.checks import choice, flag, number, whole

PLACE = {"region": Option(), "profile": Option()}
STORE = {"bucket": Option(), "prefix": Option("imgcls")}
WHICH = {"name": Option(), "run": Option()}
SECONDS = number(0.01, 600)
BATCH = (
    *("run", "job", "package", "to", "name", "instance_type", "instance_count", "role", "image", "framework_version"),
    *("kms_key", "subnets", "security_groups", "network_isolation", "test", "samples", "tolerance", "wait", "poll"),
)
"""The options of an endpoint that a batch has too."""
JUDGE = {"package": Option(), "reason": Option(), **PLACE}
ACTIONS: dict[str, dict[str, Option]] = {
    "deploy": ENDPOINT,
    "test": {
        **WHICH,
        **PLACE,
        **STORE,
        "pictures": ENDPOINT["pictures"],
        "samples": ENDPOINT["samples"],
        "tolerance": ENDPOINT["tolerance"],
        "poll": Option(2.0, SECONDS, float),
    },
    "rollback": {**WHICH, **PLACE, "poll": ENDPOINT["poll"]},
    "delete": {
        **WHICH,
        **PLACE,
        "package": Option(),
        "all": Option(False, flag, boolean),
        "yes": Option(False, flag, boolean),
        "poll": ENDPOINT["poll"],
    },
    "list": PLACE,
    "lambda": {
        **WHICH,
        **PLACE,
        "function": Option(),
        "role": Option(),
        "make_role": Option(False, flag, boolean),
        "memory": Option(256, whole(128, 10240), int),
        "timeout": Option(30, whole(2, 900), int),
        "provisioned": Option(0, whole(0, 1000), int),
        "url": Option("false", choice("false", "iam", "public")),
        "pictures": Option(),
        "poll": Option(2.0, SECONDS, float),
    },
    "policies": {
        **WHICH,
        **PLACE,
        **STORE,
        "role": Option("imgcls-endpoints"),
        "function": Option(),
        "function_role": Option("imgcls-functions"),
        "mode": Option("real-time", choice(*MODES)),
        "output": Option(),
        "topics": Option((), parse=texts),
        "kms_key": Option(),
        "image": Option(),
        "capture": Option(False, flag, boolean),
        "images": Option(),
        "vpc": Option(False, flag, boolean),
        "subnets": Option((), parse=texts),
        "security_groups": Option((), parse=texts),
    },
    "register": {
        **WHICH,
        **PLACE,
        **STORE,
        **{name: ENDPOINT[name] for name in ("image", "framework_version", "instance_type", "kms_key")},
        "approve": Option(False, flag, boolean),
    },
    "approve": JUDGE,
    "reject": JUDGE,
    "packages": {"name": Option(), **PLACE},
    "batch": {
        **{name: ENDPOINT[name] for name in BATCH},
        **PLACE,
        **STORE,
        "top_k": Option(5, whole(1), int),
        "answers": Option("answers.jsonl"),
    },
}
WITH_MORE = {"deploy": ("tags.", "environment."), "lambda": ("tags.",), "register": ("tags.",), "batch": ("tags.",)}
"""Prefixes of further options, such as `tags.NAME=…`, by action."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(lambda: command(list(sys.argv[1:] if arguments is None else arguments)))


def command(arguments: list[str]) -> None:
    """Run the command with `arguments`. Raises UserError."""
    arguments = ["all=true" if argument == "--all" else argument for argument in arguments]
    if not arguments:
        raise UserError("Give the model to deploy: run=DIR or job=NAME. --help shows all options.")
    others = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    action = others[0] if others else "deploy"
    if action not in ACTIONS:
        raise UserError(f"{action}: {nearest(action, ACTIONS)}")
    more_names = WITH_MORE.get(action, ())
    usage = __doc__ or ""
    if others:
        usage = usage_of(action, usage, ACTIONS[action])
    most = 2 if action == "batch" else 1
    values, more, _ = read_options(arguments, ACTIONS[action], usage=usage, overrides=more_names, others=most)
    if action == "batch":
        values["images"] = next(iter(others[1:]), None)

    from imgcls.deploy.command import perform

    perform(action, values, more)


if __name__ == "__main__":
    main()
