"""Versions of a model in SageMaker's Model Registry: registered with what is known of them, approved, deployed."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.naming import NAME_PREFIX
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import delete_files, list_objects, split_uri
from imgcls.aws.upload import upload_file
from imgcls.deploy.endpoint import archive_place
from imgcls.deploy.names import as_list, endpoint_name, tag_text, tags_of
from imgcls.deploy.requests import ENVIRONMENT, Request
from imgcls.deploy.state import call_existing
from imgcls.errors import UserError
from imgcls.launch.sagemaker.record import JobRecord
from imgcls.portable import CARD, DESCRIPTION
from imgcls.portable.certificate import CERTIFICATE
from imgcls.runs.reading import read_metrics
from imgcls.system.files import sha256_of
from imgcls.system.unpacking import extract

log = logging.getLogger(__name__)

APPROVED, REJECTED, PENDING = "Approved", "Rejected", "PendingManualApproval"
DIGEST, RUN, JOB = "imgcls-digest", "run", "training-job"
KINDS = ("image/jpeg", "image/png", "application/x-image", "application/json", "application/jsonlines")
STATISTICS, BASELINE = "evaluation.json", "reference.npz"
DOCUMENTS = ("report.html", CARD, CERTIFICATE, BASELINE)
"""What lies beside the model's archive in S3, where the run has it."""
METRICS = {"test/accuracy": "accuracy", "test/macro_f1": "macro_f1", "test/ece": "calibration_error"}


@dataclass(frozen=True)
class Package:
    """A version of a model in the registry.

    Attributes:
        arn: of the version.
        group: name of its group, the model.
        version: its number in the group.
        status: Approved, Rejected or PendingManualApproval.
        notes: what was registered with it, such as its run and training job.
        archive: S3 URI of the model.tar.gz.
        made: when it was registered.
        reason: why it was approved or rejected.
    """

    arn: str
    group: str
    version: int
    status: str
    notes: Mapping[str, str]
    archive: str
    made: datetime | None = None
    reason: str = ""

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Package:
        """From the response of DescribeModelPackage."""
        [container, *_] = answer["InferenceSpecification"]["Containers"]
        return cls(
            str(answer["ModelPackageArn"]),
            str(answer["ModelPackageGroupName"]).rpartition("/")[2],
            int(answer["ModelPackageVersion"]),
            str(answer.get("ModelApprovalStatus") or PENDING),
            answer.get("CustomerMetadataProperties") or {},
            str(container.get("ModelDataUrl") or ""),
            answer.get("CreationTime"),
            str(answer.get("ApprovalDescription") or ""),
        )


def register(
    account: Account, run: Path, model: Path, name: str, archive: Path, *, image: str, tags: Mapping[str, str]
) -> Package:
    """Register the model of a run as the next version of `name`, unless that is its newest version already.

    Args:
        account: of AWS.
        run: folder of the run.
        model: folder of its portable model.
        name: of the group, as that of an endpoint.
        archive: the model.tar.gz.
        image: URI of the container image that serves it.
        tags: of the group, if it is created.

    Raises:
        UserError: AWS refuses.
    """
    digest = sha256_of(archive)
    uri = archive_place(account, name, digest)
    newest = next(iter(list_packages(account, name)), None)
    if newest is not None and newest.notes.get(DIGEST) == digest[:16]:
        log.info("%s, version %d, has this model already.", name, newest.version)
        return newest
    client, folder = account.client("sagemaker"), uri.rpartition("/")[0]
    places = {}
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        statistics = Path(work) / STATISTICS
        statistics.write_text(json.dumps(evaluation(read_metrics(run)), indent=2))
        for file in (archive, statistics, *(where / name for where in (run, model) for name in DOCUMENTS)):
            if file.is_file():
                places[file.name] = f"{folder}/{file.name}"
                upload_file(file, places[file.name], account.client("s3"), extra=account.encryption)
    with explain_refusals(f"create the model package group {name}"):
        if call_existing(client.describe_model_package_group, ModelPackageGroupName=name) is None:
            group = as_list({**tags, **tags_of("model-package-group", name)})
            client.create_model_package_group(ModelPackageGroupName=name, Tags=group)
    with explain_refusals(f"register {name}"):
        answer = client.create_model_package(
            ModelPackageGroupName=name, **package_request(run, model, uri, digest, image, places)
        )
    return describe(account, str(answer["ModelPackageArn"]))


def package_request(
    run: Path, model: Path, archive: str, digest: str, image: str, places: Mapping[str, str]
) -> Request:
    """The fields of CreateModelPackage, except its group.

    Args:
        run: folder of the run.
        model: folder of its portable model.
        archive: S3 URI of its model.tar.gz.
        digest: SHA-256 of that.
        image: URI of the container image.
        places: S3 URIs of the documents by name.
    """
    description = json.loads((model / DESCRIPTION).read_text(encoding="utf-8"))
    origin, record = description.get("origin") or {}, JobRecord.read(run)
    job = str(record.job) if record is not None and record.where == "sagemaker" and record.job else ""
    notes = {
        DIGEST: digest[:16],
        RUN: tag_text(str(origin.get("run") or run.name)),
        "trained": tag_text(str(origin.get("trained") or "")),
        "commit": tag_text(str(origin.get("commit") or "")),
        "architecture": tag_text(str(description["architecture"]["name"])),
        "classes": str(len(description["class_names"])),
        "imgcls": tag_text(str(description["versions"]["imgcls"])),
        JOB: job,
        **{name: f"{value:.6g}" for name, value in _shown(read_metrics(run)).items()},
        **{name: places[name] for name in DOCUMENTS if name in places},
    }

    request: Request = {
        "ModelPackageDescription": f"{notes['architecture']}, {notes['classes']} classes, of the run {notes[RUN]}",
        "ModelApprovalStatus": PENDING,
        "Domain": "COMPUTER_VISION",
        "Task": "IMAGE_CLASSIFICATION",
        "InferenceSpecification": {
            "Containers": [{"Image": image, "ModelDataUrl": archive, "Environment": ENVIRONMENT}],
            "SupportedContentTypes": list(KINDS),
            "SupportedResponseMIMETypes": ["application/json", "application/jsonlines", "text/csv"],
        },
        "ModelMetrics": {"ModelQuality": {"Statistics": _file(places[STATISTICS], "application/json")}},
        "CustomerMetadataProperties": {name: value for name, value in notes.items() if value},
    }
    made_by = {"CommitId": notes["commit"], "GeneratedBy": job}
    if any(made_by.values()):
        request["MetadataProperties"] = {name: value for name, value in made_by.items() if value}
    if BASELINE in places:
        baseline = _file(places[BASELINE], "application/octet-stream")
        request["DriftCheckBaselines"] = {"ModelDataQuality": {"Statistics": baseline}}
    return request


def _file(uri: str, kind: str) -> dict[str, str]:
    return {"ContentType": kind, "S3Uri": uri}


def evaluation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a run in the format that the registry's page shows."""
    values = {name: {"value": value, "standard_deviation": "NaN"} for name, value in _shown(metrics).items()}
    return {"multiclass_classification_metrics": values}


def _shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {short: float(metrics[name]) for name, short in METRICS.items() if name in metrics}


def list_packages(account: Account, group: str | None = None) -> list[Package]:
    """All versions, or those of one model, the newest first. Raises UserError."""
    client = account.client("sagemaker")
    with explain_refusals("list the registered models"):
        groups = [group] if group is not None else list(_groups(client))
        arns = []
        for name in groups:
            if call_existing(client.describe_model_package_group, ModelPackageGroupName=name) is not None:
                pages = client.get_paginator("list_model_packages").paginate(ModelPackageGroupName=name)
                arns += [str(entry["ModelPackageArn"]) for page in pages for entry in page["ModelPackageSummaryList"]]
    packages = [describe(account, arn) for arn in arns]
    return sorted(packages, key=lambda package: (package.group, -package.version))


def _groups(client: Any) -> Iterator[str]:
    for page in client.get_paginator("list_model_package_groups").paginate(NameContains="imgcls-"):
        yield from (str(entry["ModelPackageGroupName"]) for entry in page["ModelPackageGroupSummaryList"])


def describe(account: Account, arn: str) -> Package:
    """The version with this ARN. Raises UserError."""
    with explain_refusals(f"describe {arn.rpartition(':')[2]}"):
        return Package.of(account.client("sagemaker").describe_model_package(ModelPackageName=arn))


def find_package(account: Account, text: str) -> Package:
    """The version that `text` names: an ARN, NAME/VERSION, or NAME, its newest approved version.

    Raises UserError if there is none.
    """
    if text.startswith("arn:"):
        return describe(account, text)
    match = re.fullmatch(r"([^/]+)(?:/(\d+))?", text)
    if match is None:
        raise UserError(f"package={text}: must be NAME, NAME/VERSION or an ARN.")
    name = endpoint_name(match[1])
    packages = list_packages(account, name)
    for package in packages:
        if package.version == int(match[2]) if match[2] else package.status == APPROVED:
            return package
    if not packages:
        raise UserError(f"package={text}: no model is registered as {name}: python -m imgcls.deploy register run=DIR")
    if match[2]:
        versions = ", ".join(str(package.version) for package in packages)
        raise UserError(f"package={text}: {name} has no version {match[2]}; it has {versions}.")
    raise UserError(
        f"package={text}: no version of {name} is approved: python -m imgcls.deploy approve package={name}/VERSION"
    )


def check_approved(package: Package) -> None:
    """Raise UserError if the version must not be deployed."""
    if package.status != APPROVED:
        state = "was rejected" if package.status == REJECTED else "has not been approved"
        name = f"{package.group}/{package.version}"
        raise UserError(f"package={name}: this version {state}: python -m imgcls.deploy approve package={name}")


def set_status(account: Account, package: Package, status: str, reason: str | None) -> None:
    """Approve or reject the version. Raises UserError."""
    with explain_refusals(f"change the status of {package.group}/{package.version}"):
        account.client("sagemaker").update_model_package(
            ModelPackageArn=package.arn,
            ModelApprovalStatus=status,
            **({"ApprovalDescription": reason} if reason else {}),
        )


def remove(account: Account, packages: Sequence[Package]) -> None:
    """Delete versions of one model with their files in S3, and with the last version the model.

    Raises UserError, before anything is removed, if a model that was deployed from one of them exists.
    """
    client, s3, group = account.client("sagemaker"), account.client("s3"), packages[0].group
    used = {package.arn: package for package in packages} | {package.archive: package for package in packages}
    with explain_refusals("list the models"):
        for page in client.get_paginator("list_models").paginate(NameContains=NAME_PREFIX):
            for entry in page["Models"]:
                container = client.describe_model(ModelName=entry["ModelName"]).get("PrimaryContainer") or {}
                for field in ("ModelPackageName", "ModelDataUrl"):
                    if (package := used.get(str(container.get(field)))) is not None:
                        raise UserError(
                            f"package={group}/{package.version}: the model {entry['ModelName']} uses it. Delete its "
                            "endpoint before: python -m imgcls.deploy list"
                        )
    for package in packages:
        with explain_refusals(f"remove {group}/{package.version}"):
            delete_files(s3, list(list_objects(s3, package.archive.rpartition("/")[0])))
            client.delete_model_package(ModelPackageName=package.arn)
    if not list_packages(account, group):
        with explain_refusals(f"remove the model package group {group}"):
            client.delete_model_package_group(ModelPackageGroupName=group)


def download(account: Account, package: Package, folder: Path) -> Path:
    """Unpack the portable model of the version, without its code, into `folder`/model; return that."""
    bucket, key = split_uri(package.archive)
    model = folder / "model"
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        archive = Path(work) / "model.tar.gz"
        with explain_refusals(f"download {package.archive}"):
            account.client("s3").download_file(bucket, key, str(archive))
        extract(archive, Path(work) / "model")
        model.mkdir(parents=True, exist_ok=True)
        for file in (Path(work) / "model").iterdir():
            if file.is_file():
                file.replace(model / file.name)
    return model
