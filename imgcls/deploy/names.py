"""Names of endpoints and their resources: they depend on run and content, so a killed command finds them again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.aws.naming import NAME_PREFIX, TAG, fit_name
from imgcls.aws.owner import owned_name
from imgcls.aws.rules import is_name
from imgcls.errors import UserError
from imgcls.portable.description import DESCRIPTION
from imgcls.system.files import sha256_of

ENDPOINT_TAG = "imgcls:endpoint"
"""Tag of everything that belongs to an endpoint; its value is the endpoint's name."""
PREVIOUS_TAG = "imgcls:previous"
"""Tag of an endpoint: the name of its previous configuration."""
SCALING_TAG = "imgcls:scaling"
"""Tag of an endpoint: its autoscaling, kept while an update has to switch it off."""
REGION_TAG = "imgcls:region"
"""Tag of a role: the region of its function, because roles are global."""
VARIANT = "AllTraffic"
"""The only production variant of an endpoint."""
DIGEST_LENGTH = 8
MAX_NAME_LENGTH = 63 - DIGEST_LENGTH - 1
"""Characters of an endpoint's name; the names of its models and configurations end with a digest."""
ALIAS = "live"
ROLE_PATH = "/imgcls/"


def endpoint_name(given: str) -> str:
    """The full name of an endpoint: it always begins with `imgcls-`, which policies and lists rely on.

    >>> endpoint_name("dogs"), endpoint_name("imgcls-dogs")
    ('imgcls-dogs', 'imgcls-dogs')

    Raises UserError if AWS does not accept the name.
    """
    name = given if given.startswith(NAME_PREFIX) else f"{NAME_PREFIX}{given}"
    if len(name) > MAX_NAME_LENGTH:
        raise UserError(f"name={given}: must have up to {MAX_NAME_LENGTH - len(NAME_PREFIX)} characters.")
    if not is_name(name, MAX_NAME_LENGTH):
        raise UserError(f"name={given}: must consist of letters, digits and hyphens between them, such as dogs-2.")
    return name


def name_of_run(folder: Path, caller: str) -> str:
    """The endpoint of a run's folder, see `imgcls.aws.owner`."""
    title, _, digest = owned_name(folder, caller, lambda: _model_digest(folder)).rpartition("-")
    return fit_name(NAME_PREFIX, title, digest, MAX_NAME_LENGTH)


def _model_digest(run: Path) -> str:
    files = [folder / DESCRIPTION for folder in (run / "model", run)]
    return next((sha256_of(file) for file in files if file.is_file()), "")


def name_of_job(job: str) -> str:
    """The endpoint of a training job."""
    return job[:MAX_NAME_LENGTH].rstrip("-")


def name_by_content(name: str, content: Mapping[str, Any]) -> str:
    """The name of a model or configuration of the endpoint `name`; the same content gives the same name."""
    text = json.dumps(content, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]}"


def tags_of(kind: str, endpoint: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tags of a resource of this `kind` that belongs to `endpoint`."""
    return {TAG: kind, ENDPOINT_TAG: endpoint, **(more or {})}


def tag_text(text: str) -> str:
    """`text` as the value of a tag, without characters that AWS does not accept.

    >>> tag_text("my run (2)#3")
    'my run -2--3'
    """
    return re.sub(r"[^\w .:/=+@-]", "-", text)[:256]


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags in the format of most services."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def as_mapping(tags: list[dict[str, str]]) -> dict[str, str]:
    """Tags by name."""
    return {tag["Key"]: tag["Value"] for tag in tags}
