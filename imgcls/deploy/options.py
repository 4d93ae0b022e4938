"""The options of a deployment, and what can be wrong with them; checked before anything is imported or made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from imgcls.aws.rules import check_arn, check_bucket, check_instance_type, check_role, check_tags, check_variables
from imgcls.errors import UserError, nearest

REAL_TIME, SERVERLESS, ASYNCHRONOUS = "real-time", "serverless", "asynchronous"
MODES = (REAL_TIME, SERVERLESS, ASYNCHRONOUS)
TARGETS = ("aws", "local", "rehearsal")
TRAFFIC = ("all", "canary", "linear")
ON_FAILURE = ("keep", "undo")
MACHINES_ONLY = ("instance_type", "instance_count", "max_instances", "min_instances", "startup_timeout", "traffic")
MEMORY = range(1024, 6144 + 1, 1024)
LONGEST_CONCURRENCY = 200
RESERVED_VARIABLES = ("AWS_", "SAGEMAKER_")


@dataclass(frozen=True)
class Options:
    """What docs/deploying.md explains. None: not said, so it stays as it is at the endpoint, or is the default."""

    run: str | None = None
    job: str | None = None
    to: str | None = None
    name: str | None = None
    target: str = "aws"
    mode: str | None = None
    instance_type: str | None = None
    instance_count: int | None = None
    memory: int | None = None
    concurrency: int | None = None
    provisioned: int | None = None
    output: str | None = None
    success_topic: str | None = None
    error_topic: str | None = None
    min_instances: int | None = None
    max_instances: int | None = None
    invocations_per_instance: float | None = None
    backlog_per_instance: float | None = None
    scale_out_cooldown: int | None = None
    scale_in_cooldown: int | None = None
    traffic: str = "all"
    bake: int = 120
    alarms: list[str] = field(default_factory=list)
    role: str | None = None
    image: str | None = None
    framework_version: str | None = None
    kms_key: str | None = None
    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    network_isolation: bool | None = None
    capture: int | None = None
    startup_timeout: int | None = None
    test: bool = True
    pictures: str | None = None
    samples: int = 8
    tolerance: float = 0.01
    on_failure: str = "keep"
    wait: bool = True
    poll: float = 10.0
    port: int = 8080
    region: str | None = None
    profile: str | None = None
    bucket: str | None = None
    prefix: str = "imgcls"
    tags: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


LIMITS: dict[str, tuple[float, float]] = {
    "instance_count": (1, 100),
    "memory": (MEMORY[0], MEMORY[-1]),
    "concurrency": (1, LONGEST_CONCURRENCY),
    "provisioned": (0, LONGEST_CONCURRENCY),
    "min_instances": (0, 100),
    "max_instances": (0, 100),
    "invocations_per_instance": (0.1, 1e6),
    "backlog_per_instance": (0.1, 1e6),
    "scale_out_cooldown": (0, 86400),
    "scale_in_cooldown": (0, 86400),
    "bake": (0, 3600),
    "capture": (0, 100),
    "startup_timeout": (60, 3600),
    "samples": (1, 1000),
    "tolerance": (0, 1),
    "poll": (0.01, 600),
    "port": (0, 65535),
}


def read_options(words: Mapping[str, str], extra: list[str]) -> Options:
    """The options that the command line's words give, each of its type.

    Args:
        words: option to what was typed; an empty text is not said.
        extra: the words `tags.NAME=…` and `environment.NAME=…`.

    Raises:
        UserError: a value cannot be right, or two do not go together.
    """
    known = {one.name: str(one.type) for one in fields(Options)}
    values: dict[str, Any] = {
        name: _value(name, text, known[name]) for name, text in words.items() if text != "" and name in known
    }
    mappings = _mappings(extra)
    options = Options(**values, tags=mappings["tags"], environment=mappings["environment"])
    check(options)
    return options


def _value(name: str, text: str, kind: str) -> Any:
    if "bool" in kind:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{name}={text}: must be true or false.")
        return text.lower() == "true"
    if "list" in kind:
        return [one.strip() for one in text.strip("[]").split(",") if one.strip()]
    if "int" in kind or "float" in kind:
        try:
            number = int(text) if "int" in kind else float(text)
        except ValueError:
            number = None
        low, high = LIMITS[name]
        if number is None or not low <= number <= high:
            what = "a whole number" if "int" in kind else "a number"
            raise UserError(f"{name}={text}: must be {what} from {low:g} to {high:g}.")
        return number
    return text


def _mappings(extra: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"tags": {}, "environment": {}}
    for word in extra:
        where, _, rest = word.partition(".")
        name, _, value = rest.partition("=")
        found[where][name] = value
    check_tags("tags", found["tags"])
    check_variables("environment", found["environment"], RESERVED_VARIABLES)
    return found


def read_tags(extra: list[str]) -> dict[str, str]:
    """The tags that the words `tags.NAME=…` give. Raises UserError."""
    return _mappings(extra)["tags"]


def check(options: Options) -> None:
    """Raise UserError for the first option that cannot be right, or does not go with the others."""
    choices = {"target": TARGETS, "traffic": TRAFFIC, "on_failure": ON_FAILURE}
    if options.mode is not None:
        choices["mode"] = MODES
    for name, allowed in choices.items():
        value = getattr(options, name)
        if value not in allowed:
            raise UserError(f"{name}={value}: {nearest(str(value), allowed)}")
    if bool(options.run) == bool(options.job):
        raise UserError("Which model? Give the folder of a run, run=DIR, or a finished training job, job=NAME.")
    if options.kms_key is not None:
        check_arn("kms_key", options.kms_key, "a key of KMS", "kms")
    if bool(options.subnets) != bool(options.security_groups):
        raise UserError("subnets and security_groups belong together: give both or neither.")
    if options.bucket is not None:
        check_bucket("bucket", options.bucket)
    if options.role is not None:
        check_role("role", options.role)
    if options.pictures is not None and not Path(options.pictures).expanduser().is_dir():
        raise UserError(f"pictures={options.pictures}: no such folder.")
    if options.image is not None and options.framework_version is not None:
        raise UserError("image and framework_version: give one of them; an image has its version.")
    _check_machine(options)
    _check_mode(options)


def _check_machine(options: Options) -> None:
    kind = options.instance_type
    if kind is not None:
        check_instance_type("instance_type", kind, "ml.m5.large")
    low, high = options.min_instances, options.max_instances
    if low is not None and high is None:
        raise UserError(f"min_instances={low}: autoscaling needs max_instances=… too.")
    if high and (1 if low is None else low) > high:
        raise UserError(f"max_instances={high}: must be at least min_instances={1 if low is None else low}.")
    for name in ("invocations_per_instance", "backlog_per_instance", "scale_out_cooldown", "scale_in_cooldown"):
        if getattr(options, name) is not None and not high:
            raise UserError(f"{name}: autoscaling needs max_instances=… too.")


def _check_mode(options: Options) -> None:
    """What one kind of endpoint does not have. What is not said of the mode is decided at the endpoint."""
    mode = options.mode or REAL_TIME
    if mode == SERVERLESS:
        for name in MACHINES_ONLY:
            if getattr(options, name) not in (None, "all"):
                raise UserError(f"{name}: a serverless endpoint has no machines of its own. Leave it out.")
        if options.subnets or options.network_isolation or options.capture:
            raise UserError("mode=serverless: AWS has no VPC, network_isolation and capture for such endpoints.")
        if options.memory is not None and options.memory not in MEMORY:
            raise UserError(f"memory={options.memory}: must be one of {', '.join(map(str, MEMORY))} (MB).")
        if (options.provisioned or 0) > (options.concurrency or 5):
            raise UserError(f"provisioned={options.provisioned}: must not be more than concurrency.")
    elif options.mode is not None or options.name is None:
        for name in ("memory", "provisioned"):
            if getattr(options, name) is not None:
                raise UserError(f"{name} is for mode=serverless.")
    if mode != ASYNCHRONOUS and (options.mode is not None or options.name is None):
        for name in ("output", "success_topic", "error_topic", "backlog_per_instance"):
            if getattr(options, name) is not None:
                raise UserError(f"{name} is for mode=asynchronous.")
        if options.concurrency is not None and mode == REAL_TIME:
            raise UserError("concurrency is for mode=serverless and mode=asynchronous.")
        if options.min_instances == 0:
            raise UserError("min_instances=0 is for mode=asynchronous: other endpoints need a machine that answers.")
    if mode == ASYNCHRONOUS and options.invocations_per_instance is not None:
        raise UserError("invocations_per_instance: an asynchronous endpoint follows backlog_per_instance=….")
    if options.output is not None and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", options.output):
        raise UserError(f"output={options.output}: must be a place in S3, s3://bucket/prefix.")
    for name in ("success_topic", "error_topic"):
        value = getattr(options, name)
        if value is not None:
            check_arn(name, value, "an SNS topic", "sns")
