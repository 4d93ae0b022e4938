"""How imgcls names what it makes in AWS, where it puts it, and the tags by which it finds it again."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

TAG = "imgcls"
"""The tag that everything has which imgcls makes; its value says what it is: training-job, …"""
RUN_TAG = "imgcls:run"
START = "imgcls-"
TUNING_START = f"{START}tune-"
LONGEST_NAME = 63
LONGEST_TUNING_NAME = 32
TIME_LENGTH = len("-20260101000000")  # what the SDK puts at the end of a job's name


def default_bucket(region: str, account: str) -> str:
    """The bucket of everything where none is given, which the SDK uses as well."""
    return f"sagemaker-{region}-{account}"


def base_name(title: str) -> str:
    """The start of a job's name, with a token of its own: `imgcls-resnet50-1f2e3d`.

    The SDK appends a time of one second's resolution, so that two jobs of one second need the token.

    >>> re.sub("-[0-9a-f]{6}$", "", base_name("convnext_tiny.in12k"))
    'imgcls-convnext-tiny-in12k'
    """
    token = secrets.token_hex(3)
    clean = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-") or "run"
    room = LONGEST_NAME - TIME_LENGTH - len(START) - len(token) - 1
    return f"{START}{clean[:room].strip('-')}-{token}"


def tuning_name(title: str) -> str:
    """The name of a tuning job, with a token of its own: `imgcls-tune-resnet50-1f2e3d`.

    Its training jobs are called the same, with a number and a token of AWS behind.

    >>> len(tuning_name("convnext_tiny.in12k_ft_in1k")) <= LONGEST_TUNING_NAME, is_tuning_name(tuning_name("a"))
    (True, True)
    """
    token = secrets.token_hex(3)
    clean = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-") or "run"
    room = LONGEST_TUNING_NAME - len(TUNING_START) - len(token) - 1
    return f"{TUNING_START}{clean[:room].strip('-')}-{token}"


def is_tuning_name(name: str) -> bool:
    """Whether `name` is of a tuning job of imgcls, not of a training job.

    >>> is_tuning_name("imgcls-tune-resnet50-1f2e3d"), is_tuning_name("imgcls-tune-resnet50-1f2e3d-001-12345678")
    (True, False)
    """
    return re.fullmatch(rf"{TUNING_START}.+-[0-9a-f]{{6}}", name) is not None


def is_trial_name(name: str) -> bool:
    """Whether `name` is of a training job that a tuning job of imgcls has made.

    >>> is_trial_name("imgcls-tune-resnet50-1f2e3d-001-12345678"), is_trial_name("imgcls-a-1f2e3d-20260101000000")
    (True, False)
    """
    return re.fullmatch(rf"{TUNING_START}.+-[0-9a-f]{{6}}-\d+-[0-9a-f]+", name) is not None


def tags(kind: str, more: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """The tags of something of a `kind`, in AWS's form."""
    return [{"Key": key, "Value": str(value)} for key, value in {TAG: kind, **(more or {})}.items()]


@dataclass(frozen=True)
class Places:
    """Where things are in S3.

    Args:
        bucket: its name.
        prefix: the folder of the bucket that holds everything of imgcls.
    """

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
        """The folder of the jobs' sources and results, below the bucket."""
        return self.key("jobs")

    def checkpoints(self, base: str) -> str:
        """The folder that the jobs of one run share: the run folder as it grows."""
        return self.uri("jobs", base, "checkpoints")
