"""AWS's rules for names of buckets, roles, tags and instance types. Each error names the option that is wrong."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from imgcls.aws.instances import is_instance_type, needs_other_torch
from imgcls.errors import UserError

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
ROLE_NAME = re.compile(r"[\w+=,.@-]{1,64}")
ROLE_PATH = re.compile(rf"(?:[\w+=,.@-]+/)+{ROLE_NAME.pattern}")
ROLE_ARN = re.compile(r"arn:[\w-]+:iam::\d{12}:role/[\w+=,.@/-]+")
ARN = re.compile(r"arn:[\w-]+:([\w-]+):[\w-]*:\d*:.+")
RESERVED_TAG = re.compile(r"(?i:aws:)|imgcls(:|$)")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_name(name: str, max_length: int) -> bool:
    """Whether SageMaker accepts `name` for a job or endpoint."""
    return len(name) <= max_length and NAME.fullmatch(name) is not None


def check_bucket(option: str, name: str) -> None:
    """Raise UserError if `name`, the value of `option`, is not a valid bucket name."""
    if not BUCKET.fullmatch(name):
        raise UserError(f"{option}={name}: not a valid bucket name. Give it without s3:// and folders.")


def check_role(option: str, role: str) -> None:
    """Raise UserError if `role` is neither a role name, with or without its path, nor a role ARN."""
    if not (ROLE_NAME.fullmatch(role) or ROLE_PATH.fullmatch(role) or ROLE_ARN.fullmatch(role)):
        raise UserError(f"{option}={role}: must be a role name or an ARN such as arn:aws:iam::<account>:role/<name>.")


def role_resource(option: str, role: str) -> str:
    """A role in a policy, `role/path/name`, from its name, path/name or ARN. Raises UserError for anything else."""
    check_role(option, role)
    return f"role/{role.rpartition(':role/')[2]}"


def check_arn(option: str, arn: str, what: str, service: str) -> None:
    """Raise UserError if `arn` does not belong to `service`; `what` is the expected resource, for the message."""
    match = ARN.fullmatch(arn)
    if match is None or match[1] != service:
        raise UserError(f"{option}={arn}: must be the ARN of {what}.")


def check_tags(option: str, names: Iterable[object]) -> None:
    """Raise UserError for a tag that AWS or imgcls reserves."""
    for name in names:
        if RESERVED_TAG.match(str(name)):
            raise UserError(f"{option}.{name}: names that begin with aws: or imgcls are reserved.")


def check_variables(option: str, names: Iterable[object], reserved: Collection[str]) -> None:
    """Raise UserError for an invalid name of an environment variable, or one with a `reserved` prefix such as SM_."""
    for name in map(str, names):
        if not VARIABLE.fullmatch(name) or name.upper().startswith(tuple(reserved)):
            prefixes = " or ".join(reserved)
            raise UserError(f"{option}.{name}: must be a variable name that does not begin with {prefixes}.")


def check_instance_type(option: str, name: str, example: str) -> None:
    """Raise UserError if `name` is not an instance type, or imgcls cannot use its accelerator."""
    if not is_instance_type(name):
        raise UserError(f"{option}={name}: not an instance type of SageMaker, such as {example}.")
    if needs_other_torch(name):
        raise UserError(f"{option}={name}: imgcls runs on CPUs and NVIDIA GPUs. Try {example}.")
