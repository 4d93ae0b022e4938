"""What AWS takes as a name: of a bucket, a role, a tag, an instance type. Each check names the option that is wrong."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from imgcls.aws.instances import is_instance_type, needs_other_torch
from imgcls.errors import UserError

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
ROLE_NAME = re.compile(r"[\w+=,.@-]{1,64}")
ROLE_ARN = re.compile(r"arn:[\w-]+:iam::\d{12}:role/[\w+=,.@/-]+")
ARN = re.compile(r"arn:[\w-]+:([\w-]+):[\w-]*:\d*:.+")
RESERVED_TAG = re.compile(r"(?i:aws:)|imgcls(:|$)")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_name(name: str, longest: int) -> bool:
    """Whether SageMaker takes `name` for a job or an endpoint, of which it allows `longest` characters."""
    return len(name) <= longest and NAME.fullmatch(name) is not None


def check_bucket(option: str, name: str) -> None:
    """Raise UserError where `name`, the value of `option`, cannot be a bucket's."""
    if not BUCKET.fullmatch(name):
        raise UserError(f"{option}={name}: this is no bucket's name. Give it without s3:// and folders.")


def check_role(option: str, role: str) -> None:
    """Raise UserError where `role` is neither a role's name nor its ARN."""
    if not (ROLE_NAME.fullmatch(role) or ROLE_ARN.fullmatch(role)):
        raise UserError(f"{option}={role}: must be a role's name, or its ARN arn:aws:iam::<account>:role/<name>.")


def check_role_name(option: str, role: str) -> None:
    """Raise UserError where `role` is not a role's name alone, without a path."""
    if not ROLE_NAME.fullmatch(role):
        raise UserError(f"{option}={role}: give the role's name alone, without a path or arn:….")


def check_arn(option: str, arn: str, what: str, service: str) -> None:
    """Raise UserError where `arn` is not the ARN of something of `service`; `what` it must be is said."""
    match = ARN.fullmatch(arn)
    if match is None or match[1] != service:
        raise UserError(f"{option}={arn}: must be the ARN of {what}.")


def check_tags(option: str, names: Iterable[object]) -> None:
    """Raise UserError for a tag that AWS or imgcls keeps for itself; `option` is what holds the tags."""
    for name in names:
        if RESERVED_TAG.match(str(name)):
            raise UserError(f"{option}.{name}: names that begin with aws: or imgcls are taken.")


def check_variables(option: str, names: Iterable[object], reserved: Collection[str]) -> None:
    """Raise UserError for what is no name of an environment variable, or begins as the container's own do.

    Args:
        option: what holds the variables.
        names: of the variables.
        reserved: beginnings, in capitals, such as SM_.
    """
    for name in map(str, names):
        if not VARIABLE.fullmatch(name) or name.upper().startswith(tuple(reserved)):
            beginnings = " or ".join(reserved)
            raise UserError(f"{option}.{name}: must be a variable's name that does not begin with {beginnings}.")


def check_instance_type(option: str, name: str, example: str) -> None:
    """Raise UserError where `name` is no instance type, or its accelerator none for imgcls; `example` is one."""
    if not is_instance_type(name):
        raise UserError(f"{option}={name}: SageMaker's types look like {example}.")
    if needs_other_torch(name):
        raise UserError(f"{option}={name}: imgcls runs on CPUs and NVIDIA GPUs. Try {example}.")
