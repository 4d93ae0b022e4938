"""The options of a deployment and their checks, which run before anything is imported or created."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from imgcls.aws.instances import enumeration
from imgcls.aws.rules import check_arn, check_bucket, check_instance_type, check_role, check_tags, check_variables
from imgcls.aws.s3 import split_folder
from imgcls.cli import Option, boolean, texts
from imgcls.deploy.names import endpoint_name
from imgcls.errors import UserError, nearest
from imgcls.system.checks import Check, choice, flag, local_folder, number, whole

REAL_TIME, SERVERLESS, ASYNCHRONOUS = "real-time", "serverless", "asynchronous"
MODES = (REAL_TIME, SERVERLESS, ASYNCHRONOUS)
TARGETS = ("aws", "local", "rehearsal")
INSTANCE_OPTIONS = (
    *("instance_type", "instance_count", "max_instances", "min_instances", "startup_timeout"),
    *("traffic", "inference_ami"),
)
SCALING_OPTIONS = (
    *("invocations_per_instance", "concurrent_per_instance", "backlog_per_instance"),
    *("scale_out_cooldown", "scale_in_cooldown"),
)
MEMORY_SIZES = range(1024, 6144 + 1, 1024)  # MB
MAX_CONCURRENCY = 200
RESERVED_VARIABLES = ("AWS_", "SAGEMAKER_")


def option(default: Any = None, check: Check | None = None, parse: Callable[[str], Any] = str) -> Any:
    """A field of `Options` that is an option of the command."""
    return field(default=default, metadata={"option": Option(default, check, parse)})


LIST = {"option": Option(None, None, texts)}


@dataclass(frozen=True)
class Options:
    """The options that docs/deploying.md explains. None: as the existing endpoint has it, or else the default."""

    run: str | None = option()
    job: str | None = option()
    package: str | None = option()
    to: str | None = option()
    name: str | None = option()
    target: str = option("aws", choice(*TARGETS))
    mode: str | None = option(None, choice(*MODES))
    instance_type: str | None = option()
    instance_count: int | None = option(None, whole(1, 100), int)
    memory: int | None = option(None, whole(MEMORY_SIZES[0], MEMORY_SIZES[-1]), int)
    concurrency: int | None = option(None, whole(1, MAX_CONCURRENCY), int)
    provisioned: int | None = option(None, whole(0, MAX_CONCURRENCY), int)
    output: str | None = option()
    success_topic: str | None = option()
    error_topic: str | None = option()
    min_instances: int | None = option(None, whole(0, 100), int)
    max_instances: int | None = option(None, whole(0, 100), int)
    invocations_per_instance: float | None = option(None, number(0.1, 1e6), float)
    concurrent_per_instance: float | None = option(None, number(0.1, 1e6), float)
    backlog_per_instance: float | None = option(None, number(0.1, 1e6), float)
    scale_out_cooldown: int | None = option(None, whole(0, 86400), int)
    scale_in_cooldown: int | None = option(None, whole(0, 86400), int)
    traffic: str = option("all", choice("all", "canary", "linear"))
    bake: int = option(120, whole(0, 3600), int)
    alarms: list[str] = field(default_factory=list, metadata=LIST)
    role: str | None = option()
    image: str | None = option()
    framework_version: str | None = option()
    inference_ami: str | None = option()
    kms_key: str | None = option()
    subnets: list[str] = field(default_factory=list, metadata=LIST)
    security_groups: list[str] = field(default_factory=list, metadata=LIST)
    network_isolation: bool | None = option(None, flag, boolean)
    capture: int | None = option(None, whole(0, 100), int)
    startup_timeout: int | None = option(None, whole(60, 3600), int)
    test: bool = option(True, flag, boolean)
    pictures: str | None = option(None, local_folder)
    samples: int = option(8, whole(1, 1000), int)
    tolerance: float = option(0.01, number(0, 1), float)
    on_failure: str = option("keep", choice("keep", "undo"))
    wait: bool = option(True, flag, boolean)
    poll: float = option(10.0, number(0.01, 600), float)
    port: int = option(8080, whole(0, 65535), int)
    region: str | None = option()
    profile: str | None = option()
    bucket: str | None = option()
    prefix: str = option("imgcls")
    tags: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


ENDPOINT: dict[str, Option] = {part.name: part.metadata["option"] for part in fields(Options) if part.metadata}
"""The options of an endpoint by name."""


def create_options(values: Mapping[str, Any], more: Sequence[str]) -> Options:
    """The checked options of an endpoint.

    Args:
        values: of the options in ENDPOINT; None: not given.
        more: the arguments `tags.NAME=…` and `environment.NAME=…`.

    Raises:
        UserError: an option is invalid, or conflicts with another one.
    """
    given = {name: value for name, value in values.items() if value is not None}
    mappings = _mappings(more)
    options = Options(**given, tags=mappings["tags"], environment=mappings["environment"])
    check(options)
    return options


def _mappings(more: Sequence[str]) -> dict[str, dict[str, str]]:
    mappings: dict[str, dict[str, str]] = {"tags": {}, "environment": {}}
    for argument in more:
        option, _, rest = argument.partition(".")
        name, _, value = rest.partition("=")
        mappings[option][name] = value
    check_tags("tags", mappings["tags"])
    check_variables("environment", mappings["environment"], RESERVED_VARIABLES)
    return mappings


def read_tags(more: Sequence[str]) -> dict[str, str]:
    """The tags of the arguments `tags.NAME=…`. Raises UserError."""
    return _mappings(more)["tags"]


def check(options: Options) -> None:
    """Raise UserError for the first option that AWS would refuse, or that conflicts with another one."""
    if sum(map(bool, (options.run, options.job, options.package))) != 1:
        raise UserError(
            "Give the model to deploy: the folder of a run, run=DIR, a finished training job, job=NAME, or a "
            "registered version, package=NAME."
        )
    if options.package and (options.image or options.framework_version):
        raise UserError("package: a registered version has its image. Leave image and framework_version out.")
    if options.name is not None:
        endpoint_name(options.name)
    if options.kms_key is not None:
        check_arn("kms_key", options.kms_key, "a KMS key", "kms")
    if bool(options.subnets) != bool(options.security_groups):
        raise UserError("subnets and security_groups belong together: give both or neither.")
    if options.bucket is not None:
        check_bucket("bucket", options.bucket)
    if options.role is not None:
        check_role("role", options.role)
    if options.image is not None and options.framework_version is not None:
        raise UserError("image and framework_version exclude each other: give one of them.")
    _check_instances(options)
    _check_mode(options)


def _check_instances(options: Options) -> None:
    kind = options.instance_type
    if kind is not None:
        check_instance_type("instance_type", kind, "ml.m5.large")
    if (ami := options.inference_ami) is not None:
        offered = enumeration("ProductionVariantInferenceAmiVersion")
        if offered and ami not in offered:
            raise UserError(f"inference_ami={ami}: {nearest(ami, offered)}")
    low, high = options.min_instances, options.max_instances
    if low is not None and high is None:
        raise UserError(f"min_instances={low}: autoscaling needs max_instances=… too.")
    if high and (1 if low is None else low) > high:
        raise UserError(f"max_instances={high}: must be at least min_instances={1 if low is None else low}.")
    if options.invocations_per_instance is not None and options.concurrent_per_instance is not None:
        raise UserError("invocations_per_instance and concurrent_per_instance exclude each other: give one of them.")
    for name in SCALING_OPTIONS:
        if getattr(options, name) is not None and not high:
            raise UserError(f"{name}: autoscaling needs max_instances=… too.")


def _check_mode(options: Options) -> None:
    """Check the options of each mode; if no mode is given, the existing endpoint decides later."""
    mode = options.mode or REAL_TIME
    if mode == SERVERLESS:
        for name in INSTANCE_OPTIONS:
            if getattr(options, name) not in (None, "all"):
                raise UserError(f"{name}: a serverless endpoint has no instances. Leave it out.")
        if options.subnets or options.network_isolation or options.capture:
            raise UserError("mode=serverless: such endpoints support no VPC, network_isolation and capture.")
        if options.memory is not None and options.memory not in MEMORY_SIZES:
            raise UserError(f"memory={options.memory}: must be one of {', '.join(map(str, MEMORY_SIZES))} (MB).")
        if (options.provisioned or 0) > (options.concurrency or 5):
            raise UserError(f"provisioned={options.provisioned}: must not exceed concurrency.")
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
            raise UserError("min_instances=0 is for mode=asynchronous: other endpoints need an instance to answer.")
    for name in ("invocations_per_instance", "concurrent_per_instance"):
        if mode == ASYNCHRONOUS and getattr(options, name) is not None:
            raise UserError(f"{name}: an asynchronous endpoint scales by backlog_per_instance=….")
    if options.output is not None:
        split_folder(options.output, "output")
    for name in ("success_topic", "error_topic"):
        value = getattr(options, name)
        if value is not None:
            check_arn(name, value, "an SNS topic", "sns")
