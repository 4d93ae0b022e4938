"""How endpoints and what belongs to them are named: by run and content, so that a killed command finds them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.aws.naming import NAME_PREFIX, TAG, fit_name
from imgcls.aws.rules import is_name
from imgcls.aws.upload import upload_name
from imgcls.errors import UserError

ENDPOINT_TAG = "imgcls:endpoint"
"""The tag of everything that belongs to an endpoint; its value is the endpoint's name."""
PREVIOUS_TAG = "imgcls:previous"
"""The tag of an endpoint that names the configuration it had before."""
SCALING_TAG = "imgcls:scaling"
"""The tag of an endpoint that says how it is scaled, also while an update has to take that away."""
REGION_TAG = "imgcls:region"
"""Of a role, which knows no region: that of the function it is for."""
VARIANT = "AllTraffic"
"""The one production variant of an endpoint."""
DIGEST_LENGTH = 8
LONGEST = 63 - DIGEST_LENGTH - 1
"""Characters of an endpoint's name: those of its models and configurations have a digest more."""
ALIAS = "live"
ROLE_PATH = "/imgcls/"


def endpoint_name(given: str) -> str:
    """The endpoint that `given` means: its name always begins with `imgcls-`, by which policies and lists know it.

    >>> endpoint_name("dogs"), endpoint_name("imgcls-dogs")
    ('imgcls-dogs', 'imgcls-dogs')

    Raises UserError where it is no name that AWS takes.
    """
    name = given if given.startswith(NAME_PREFIX) else f"{NAME_PREFIX}{given}"
    if len(name) > LONGEST:
        raise UserError(f"name={given}: at most {LONGEST - len(NAME_PREFIX)} characters, because AWS's names have 63.")
    if not is_name(name, LONGEST):
        raise UserError(f"name={given}: letters, digits and hyphens between them, such as dogs-2.")
    return name


def name_of_run(folder: Path) -> str:
    """The endpoint of a run's folder: readable, and another one for another folder, person or machine."""
    title, _, digest = upload_name(folder).rpartition("-")
    return fit_name(NAME_PREFIX, title, digest, LONGEST)


def name_of_job(job: str) -> str:
    """The endpoint of a training job."""
    return job[:LONGEST].rstrip("-")


def numbered(name: str, content: Mapping[str, Any]) -> str:
    """The name of a model or configuration of the endpoint `name`: the same content has the same one."""
    text = json.dumps(content, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]}"


def tags_of(kind: str, endpoint: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tags of something of a `kind` that belongs to `endpoint`."""
    return {TAG: kind, ENDPOINT_TAG: endpoint, **(more or {})}


def tag_text(text: str) -> str:
    """`text` as the value of a tag, in which AWS does not take every character.

    >>> tag_text("my run (2)#3")
    'my run -2--3'
    """
    return re.sub(r"[^\w .:/=+@-]", "-", text)[:256]


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags in the form that most services take."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def as_mapping(tags: list[dict[str, str]]) -> dict[str, str]:
    """Tags by name."""
    return {one["Key"]: one["Value"] for one in tags}
