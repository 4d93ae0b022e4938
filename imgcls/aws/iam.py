"""Parts of IAM policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from imgcls.aws.s3 import split_folder

Statement = dict[str, Any]
UNNAMED = "*"  # for actions that do not support resources
MOST_CHARACTERS = 6144  # of a managed policy, without blanks


@dataclass(frozen=True)
class Account:
    """The account and the names that policies refer to.

    Args:
        partition: aws, aws-cn, …
        account: its number.
        prefix: the folder in the bucket.
        role: the role of jobs or endpoints, `role/path/name`: without its path it would be another one.
        images: ARNs of the container repositories that may be pulled.
        kms_key: ARN of the key, if one is used.
        subnets: IDs of the subnets that jobs or endpoints are in; `*` stands for all of the account.
        security_groups: IDs of their security groups.
        default_bucket: whether the bucket may have to be created.
    """

    partition: str
    region: str
    account: str
    bucket: str = field(default="", kw_only=True)
    prefix: str = field(default="imgcls", kw_only=True)
    role: str = field(default="", kw_only=True)
    images: Sequence[str] = field(default=(), kw_only=True)
    kms_key: str | None = field(default=None, kw_only=True)
    subnets: Sequence[str] = field(default=(), kw_only=True)
    security_groups: Sequence[str] = field(default=(), kw_only=True)
    default_bucket: bool = field(default=False, kw_only=True)

    def arn(self, service: str, resource: str) -> str:
        """ARN of a resource of this account and region."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def iam(self, resource: str) -> str:
        """ARN of an IAM resource, which has no region."""
        return f"arn:{self.partition}:iam::{self.account}:{resource}"

    @property
    def bucket_arn(self) -> str:
        """ARN of the bucket."""
        return f"arn:{self.partition}:s3:::{self.bucket}"

    def objects(self, *folder: str) -> str:
        """ARN of all objects of a folder below the prefix."""
        return f"{self.bucket_arn}/{'/'.join(part for part in (self.prefix, *folder) if part)}/*"

    def folder_arns(self, uri: str) -> tuple[str, str]:
        """ARNs of the bucket, and of the objects, of a folder in S3."""
        bucket, prefix = split_folder(uri)
        arn = f"arn:{self.partition}:s3:::{bucket}"
        return arn, f"{arn}/{prefix}/*" if prefix else f"{arn}/*"


def allow(name: str, actions: Sequence[str], resources: Any) -> Statement:
    """A statement that allows `actions` on `resources`: their ARNs, or UNNAMED."""
    return {"Sid": name, "Effect": "Allow", "Action": sorted(actions), "Resource": resources}


def policy(statements: list[Statement]) -> dict[str, Any]:
    """A policy document."""
    return {"Version": "2012-10-17", "Statement": statements}


def split(name: str, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A policy in as few parts as IAM takes: `name`, and `name_2`, … where it is too large for one managed policy."""
    parts: list[list[Statement]] = [[]]
    for statement in document["Statement"]:
        if parts[-1] and _characters(policy([*parts[-1], statement])) > MOST_CHARACTERS:
            parts.append([])
        parts[-1].append(statement)
    return {f"{name}_{number}" if number > 1 else name: policy(part) for number, part in enumerate(parts, 1)}


def _characters(document: dict[str, Any]) -> int:
    return len(json.dumps(document, separators=(",", ":")))


def trust(service: str, account: str | None = None) -> dict[str, Any]:
    """The trust policy of a role that `service` may assume, on behalf of the `account` with this number alone."""
    statement: Statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    if account is not None:
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": account}}
    return policy([statement])


def container(account: Account) -> list[Statement]:
    """The image, key and network of a container that SageMaker runs."""
    statements = [allow("SignInToRegistry", ["ecr:GetAuthorizationToken"], UNNAMED)]  # without resources
    if account.images:
        pull = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        statements.append(allow("PullImage", pull, list(account.images)))
    if account.kms_key:
        statements += use_key(account.kms_key)
    return statements + (network(account) if account.subnets else [])


def use_key(key: str) -> list[Statement]:
    """Encrypting with the key, and letting AWS's services, and nobody else, use it for a disk."""
    return [
        allow("UseKey", ["kms:Decrypt", "kms:GenerateDataKey"], [key]),
        allow("GrantKey", ["kms:CreateGrant"], [key]) | {"Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}}},
    ]


def network(account: Account) -> list[Statement]:
    """In a VPC, SageMaker creates a network interface for each instance with the role's permissions."""
    describe = ["DhcpOptions", "NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs"]
    interfaces = account.arn("ec2", "network-interface/*")  # AWS chooses their names
    subnets = [account.arn("ec2", f"subnet/{subnet}") for subnet in account.subnets]
    groups = [account.arn("ec2", f"security-group/{group}") for group in account.security_groups]
    change = ["CreateNetworkInterfacePermission", "DeleteNetworkInterface", "DeleteNetworkInterfacePermission"]
    return [
        allow("DescribeNetwork", [f"ec2:Describe{what}" for what in describe], UNNAMED),  # without resources
        allow("CreateNetworkInterfaces", ["ec2:CreateNetworkInterface"], [interfaces, *subnets, *groups]),
        allow("ChangeNetworkInterfaces", [f"ec2:{action}" for action in change], [interfaces])
        | {"Condition": {"ArnLike": {"ec2:Subnet": subnets}}},
    ]
