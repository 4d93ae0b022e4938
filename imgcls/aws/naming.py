"""Names, locations and tags of what imgcls creates in AWS."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

TAG = "imgcls"
"""The tag of everything that imgcls creates; its value is the kind of resource: training-job, …"""
RUN_TAG = "imgcls:run"
NAME_PREFIX = "imgcls-"
TUNING_PREFIX = f"{NAME_PREFIX}tune-"
MAX_NAME_LENGTH = 63
MAX_TUNING_NAME_LENGTH = 32
TIME_LENGTH = len("-20260101000000")  # the SDK appends the time to a job's name


def default_bucket(region: str, account: str) -> str:
    """The bucket if none is given, which is the SDK's default too."""
    return f"sagemaker-{region}-{account}"


def base_name(title: str) -> str:
    """The start of a job's name, with a random token: `imgcls-resnet50-1f2e3d`.

    The SDK appends the time in seconds, so two jobs created in the same second need the token.

    >>> re.sub("-[0-9a-f]{6}$", "", base_name("convnext_tiny.in12k"))
    'imgcls-convnext-tiny-in12k'
    """
    return fit_name(NAME_PREFIX, title, secrets.token_hex(3), MAX_NAME_LENGTH - TIME_LENGTH)


def tuning_name(title: str) -> str:
    """The name of a tuning job, with a random token: `imgcls-tune-resnet50-1f2e3d`.

    To the names of its training jobs AWS appends a number and another token.

    >>> len(tuning_name("convnext_tiny.in12k_ft_in1k")) <= MAX_TUNING_NAME_LENGTH, is_tuning_name(tuning_name("a"))
    (True, True)
    """
    return fit_name(TUNING_PREFIX, title, secrets.token_hex(3), MAX_TUNING_NAME_LENGTH)


def fit_name(prefix: str, title: str, token: str, length: int) -> str:
    """`prefix` + `title` in characters that AWS accepts + `-token`, with the title cut to fit into `length`."""
    clean = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-") or "run"
    return f"{prefix}{clean[: length - len(prefix) - len(token) - 1].strip('-')}-{token}"


def is_tuning_name(name: str) -> bool:
    """Whether `name` belongs to a tuning job of imgcls, not to a training job.

    >>> is_tuning_name("imgcls-tune-resnet50-1f2e3d"), is_tuning_name("imgcls-tune-resnet50-1f2e3d-001-12345678")
    (True, False)
    """
    return re.fullmatch(rf"{TUNING_PREFIX}.+-[0-9a-f]{{6}}", name) is not None


def is_trial_name(name: str) -> bool:
    """Whether `name` belongs to a training job created by a tuning job of imgcls.

    >>> is_trial_name("imgcls-tune-resnet50-1f2e3d-001-12345678"), is_trial_name("imgcls-a-1f2e3d-20260101000000")
    (True, False)
    """
    return re.fullmatch(rf"{TUNING_PREFIX}.+-[0-9a-f]{{6}}-\d+-[0-9a-f]+", name) is not None


def tags(kind: str, more: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """The tags of a resource of this `kind`, in AWS's format."""
    return [{"Key": key, "Value": str(value)} for key, value in {TAG: kind, **(more or {})}.items()]


@dataclass(frozen=True)
class Places:
    """Locations in S3: a bucket, and the folder in it that imgcls uses."""

    bucket: str
    prefix: str

    def uri(self, *parts: str) -> str:
        """s3://bucket/prefix/parts…"""
        return f"s3://{self.bucket}/{self.key(*parts)}"

    def key(self, *parts: str) -> str:
        """prefix/parts…"""
        return "/".join(part for part in (self.prefix, *parts) if part)

    @property
    def jobs(self) -> str:
        """Key of the folder with the jobs' sources and results."""
        return self.key("jobs")

    def checkpoints(self, base: str) -> str:
        """URI of the growing run folder that the jobs of one run share."""
        return self.uri("jobs", base, "checkpoints")
