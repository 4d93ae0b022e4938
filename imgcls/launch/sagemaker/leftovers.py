"""What earlier jobs have left in S3: their sources, checkpoints and results, and uploaded data sets and weights."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.naming import NAME_PREFIX
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import delete_files, list_objects

KINDS = ("jobs", "data", "weights")


@dataclass
class Leftover:
    """A folder in S3 that belongs to a job or run, or is an uploaded data set or weights file.

    Attributes:
        kind: jobs, data or weights.
        name: of the folder.
        size: bytes of all its files.
        modified: time of its newest file, seconds since the epoch.
        used: whether a running job reads or writes it.
    """

    kind: str
    name: str
    size: int = 0
    modified: float = 0.0
    used: bool = False

    @property
    def days(self) -> float:
        """Days since its newest file was written."""
        return (time.time() - self.modified) / 86400


def find_leftovers(account: Account, kinds: Collection[str] = KINDS) -> list[Leftover]:
    """The folders of these kinds, largest first. Raises UserError."""
    used = _running_inputs(account)
    found: dict[tuple[str, str], Leftover] = {}
    for kind in kinds:
        place = account.places.uri(kind)
        with explain_refusals(f"list {place}"):
            for stored in list_objects(account.client("s3"), place):
                name = stored.path.partition("/")[0]
                entry = found.setdefault((kind, name), Leftover(kind, name))
                entry.size += stored.size
                entry.modified = max(entry.modified, stored.modified.timestamp())
    for entry in found.values():
        uri = f"{account.places.uri(entry.kind, entry.name)}/"
        entry.used = any(f"{address.rstrip('/')}/".startswith(uri) for address in used)
    return sorted(found.values(), key=lambda entry: -entry.size)


def remove_leftovers(account: Account, leftovers: Iterable[Leftover]) -> None:
    """Delete the files of `leftovers`. Raises UserError."""
    client = account.client("s3")
    for entry in leftovers:
        uri = account.places.uri(entry.kind, entry.name)
        with explain_refusals(f"remove {uri}"):
            delete_files(client, list(list_objects(client, uri)))


def _running_inputs(account: Account) -> set[str]:
    """The addresses in S3 that running training and tuning jobs of imgcls read and write."""
    client = account.client("sagemaker")
    addresses: set[str] = set()
    with explain_refusals("list the running jobs"):
        for status in ("InProgress", "Stopping"):
            pages = client.get_paginator("list_training_jobs").paginate(NameContains=NAME_PREFIX, StatusEquals=status)
            for page in pages:
                for job in page["TrainingJobSummaries"]:
                    addresses |= _addresses(client.describe_training_job(TrainingJobName=job["TrainingJobName"]))
            name = "list_hyper_parameter_tuning_jobs"
            for page in client.get_paginator(name).paginate(NameContains=NAME_PREFIX, StatusEquals=status):
                for job in page["HyperParameterTuningJobSummaries"]:
                    name = job["HyperParameterTuningJobName"]
                    described = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
                    addresses |= _addresses(described.get("TrainingJobDefinition") or {})
    return addresses


def _addresses(job: dict[str, Any]) -> set[str]:
    channels = job.get("InputDataConfig") or []
    sources = [channel["DataSource"].get("S3DataSource", {}).get("S3Uri") for channel in channels]
    output = (job.get("OutputDataConfig") or {}).get("S3OutputPath")
    results = f"{output.rstrip('/')}/{job['TrainingJobName']}" if output and "TrainingJobName" in job else None
    found = [*sources, (job.get("CheckpointConfig") or {}).get("S3Uri"), results]
    return {str(address) for address in found if address}
