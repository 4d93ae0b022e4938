"""Names in AWS for what lies in a folder here: no two people share one, and its owner finds it again.

What identifies whom:

- A user, the root user or a federated user is the ARN.
- Who has assumed a role is the name of the session where that is a person: with IAM Identity Center (SSO), or where it
  is an e-mail address. Neither another sign-in nor another role of the same person changes it.
- Any other session is its role. Its name is of no person, or new each time: `SageMaker` for everybody in Studio, the
  instance on EC2, a task or pod in a cluster, `botocore-session-…`.
- People who share a user or a role, and machines of one person, are told apart by the random identity in their cache,
  see `cache_identity`. In Studio, where host, user and paths are the same for everybody, it is on each space's volume.
- In a container whose cache is removed with it, the content of the folder takes the place of that identity: the next
  container with the same content finds the upload of the last one, and one with another content has its own name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from imgcls.system.cache import cache_identity

SSO_ROLE = "AWSReservedSSO_"


def caller_identity(arn: str) -> str:
    """Who is signed in, from the ARN that STS answers: the same for all sessions of a person or program.

    >>> caller_identity("arn:aws:iam::123456789012:user/anna")
    'arn:aws:iam::123456789012:user/anna'
    >>> caller_identity("arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_Developer_1f2e3d/anna")
    '123456789012:anna'
    >>> caller_identity("arn:aws:sts::123456789012:assumed-role/trainer/i-0123456789abcdef0")
    '123456789012:role/trainer'
    """
    account, resource = arn.split(":", 5)[4:]
    kind, _, rest = resource.partition("/")
    if kind != "assumed-role":
        return arn
    role, _, session = rest.partition("/")
    return f"{account}:{session}" if role.startswith(SSO_ROLE) or "@" in session else f"{account}:role/{role}"


def owned_name(folder: Path, caller: str, content: Callable[[], str]) -> str:
    """The name of a local folder in AWS, `title-digest`: readable, and as explained above.

    Args:
        folder: is resolved.
        caller: see `caller_identity`.
        content: computes a digest of what is in the folder; called where there is no lasting cache.
    """
    folder = folder.resolve()
    identity = cache_identity() or content()
    digest = hashlib.sha256(f"{caller}:{identity}:{folder}".encode()).hexdigest()[:8]
    return f"{folder.name or 'data'}-{digest}"
