"""The parts that IAM policies are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Statement = dict[str, Any]
UNNAMED = "*"  # for actions that do not support resources


@dataclass(frozen=True)
class Account:
    """Whose resources the policies name.

    Args:
        partition: aws, aws-cn, …
        region: where the resources are.
        account: its number.
    """

    partition: str
    region: str
    account: str

    def arn(self, service: str, resource: str) -> str:
        """The ARN of a resource of this account and region."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"


def allow(name: str, actions: Sequence[str], resources: Any) -> Statement:
    """A statement that allows `actions` on `resources`: their ARNs, or UNNAMED."""
    return {"Sid": name, "Effect": "Allow", "Action": sorted(actions), "Resource": resources}


def policy(statements: list[Statement]) -> dict[str, Any]:
    """A policy document."""
    return {"Version": "2012-10-17", "Statement": statements}


def trust(service: str) -> dict[str, Any]:
    """The trust policy of a role that `service` may assume."""
    return policy([{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}])


def network(account: Account) -> list[Statement]:
    """In a VPC, SageMaker creates a network interface for each instance with the role's permissions."""
    describe = ["DhcpOptions", "NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs"]
    interfaces = [account.arn("ec2", f"{kind}/*") for kind in ("network-interface", "subnet", "security-group")]
    change = [f"ec2:{verb}NetworkInterface{what}" for verb in ("Create", "Delete") for what in ("", "Permission")]
    return [
        allow("DescribeNetwork", [f"ec2:Describe{what}" for what in describe], UNNAMED),  # without resources
        allow("NetworkInterfaces", change, interfaces),
    ]
