"""Batch transform: the answers to many images in S3, computed by a job of SageMaker that ends by itself."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgcls import portable
from imgcls.aws.account import Account
from imgcls.aws.instances import has_local_disk
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import is_remote, list_objects, split_uri
from imgcls.deploy.names import as_list, name_by_content, tags_of
from imgcls.deploy.requests import Request
from imgcls.deploy.source import MEGABYTE, REQUEST_LIMIT
from imgcls.deploy.state import call_existing, format_duration, retry
from imgcls.errors import UserError
from imgcls.images.signatures import PICTURE_SUFFIXES
from imgcls.launch.sagemaker.progress import warn_if_created
from imgcls.serve.refusals import BATCH
from imgcls.system.files import atomic_write_text
from imgcls.system.tables import as_csv

log = logging.getLogger("imgcls.deploy")

KIND = "application/x-image"
CONCURRENT = 4  # requests to an instance
RETRIES, TIMEOUT_SECONDS = 2, 600  # of a request
TOO_LARGE = f"The image has more than {REQUEST_LIMIT // MEGABYTE} MB."
BUSY = ("InProgress", "Stopping")
LOG_GROUP = "/aws/sagemaker/TransformJobs"


@dataclass(frozen=True)
class Images:
    """The images of a job.

    Attributes:
        uris: s3:// URIs of all images, in one bucket.
        too_large: those of them that exceed the limit of a request.
    """

    uris: Sequence[str]
    too_large: frozenset[str] = frozenset()

    @property
    def sent(self) -> list[str]:
        """The images of the job."""
        return [uri for uri in self.uris if uri not in self.too_large]


def find_images(account: Account, place: str) -> Images:
    """The images in s3://bucket/folder, or in the column `file` of a local table of s3:// URIs.

    Raises UserError if there are none, or they are in several buckets.
    """
    if is_remote(place):
        bucket, _ = split_uri(place)
        with explain_refusals(f"list {place}"):
            stored = [entry for entry in list_objects(account.client("s3"), place) if _is_image(entry.key)]
        large = frozenset(f"s3://{bucket}/{entry.key}" for entry in stored if entry.size > REQUEST_LIMIT)
        images = Images([f"s3://{bucket}/{entry.key}" for entry in stored], large)
    else:
        images = Images(_read_table(Path(place).expanduser()))
    if not images.uris:
        raise UserError(f"{place}: there are no images.")
    if len({split_uri(uri)[0] for uri in images.uris}) > 1:
        raise UserError(f"{place}: the images of a job must be in one bucket.")
    return images


def _is_image(key: str) -> bool:
    return Path(key).suffix.lower() in PICTURE_SUFFIXES


def _read_table(file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"{file}: no such table, and no address of a folder in S3 (s3://BUCKET/FOLDER).")
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = list(csv.DictReader(text))
    if rows and "file" not in rows[0]:
        raise UserError(f"{file}: needs a column `file` with s3:// URIs.")
    for row in rows:
        split_uri(row["file"], f"{file}: file")
    return list(dict.fromkeys(row["file"] for row in rows))


def job_request(
    images: Images, *, model: str, manifest: str, output: str, kind: str, count: int, top_k: int, key: str | None
) -> Request:
    """The fields of CreateTransformJob, except name and tags.

    Args:
        images: of the job.
        model: name of the model.
        manifest: S3 URI of the list of images.
        output: S3 URI of the folder of the answers.
        kind: instance type.
        count: number of instances.
        top_k: classes of an answer.
        key: ARN of a KMS key, for answers and disks.
    """
    request: Request = {
        "ModelName": model,
        "MaxConcurrentTransforms": CONCURRENT,
        "MaxPayloadInMB": REQUEST_LIMIT // MEGABYTE,
        "BatchStrategy": "SingleRecord",
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": TIMEOUT_SECONDS, "InvocationsMaxRetries": RETRIES},
        "Environment": {BATCH: "true"},
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "ManifestFile", "S3Uri": manifest}},
            "ContentType": KIND,
        },
        "TransformOutput": {"S3OutputPath": output, "Accept": f"application/json;top_k={top_k}"},
        "TransformResources": {"InstanceType": kind, "InstanceCount": min(count, len(images.sent))},
    }
    if key:
        request["TransformOutput"]["KmsKeyId"] = key
        if not has_local_disk(kind):
            request["TransformResources"]["VolumeKmsKeyId"] = key
    return request


def write_manifest(account: Account, name: str, images: Images) -> tuple[str, str]:
    """Upload the list of the images; S3 URIs of it and of the folder of their answers, which depend on its content."""
    bucket = split_uri(images.uris[0])[0]
    content = json.dumps([{"prefix": f"s3://{bucket}/"}, *(split_uri(uri)[1] for uri in images.sent)]).encode()
    digest = hashlib.sha256(content).hexdigest()[:16]
    uri = account.places.uri("batch", name, digest, "manifest.json")
    own_bucket, key = split_uri(uri)
    with explain_refusals(f"upload {uri}"):
        account.client("s3").put_object(Bucket=own_bucket, Key=key, Body=content, **account.encryption)
    return uri, account.places.uri("batch", name, digest)


def start(account: Account, name: str, request: Request, tags: Mapping[str, str]) -> str:
    """Create the job, unless an equal one runs or is complete. Returns its name. Raises UserError."""
    client = account.client("sagemaker")
    attempt = 0
    while True:
        job = name_by_content(name, {**request, "attempt": attempt})
        stop = f"aws sagemaker stop-transform-job --transform-job-name {job}"
        with warn_if_created("the job", stop), explain_refusals(f"create the transform job {job}"):
            existing = call_existing(client.describe_transform_job, TransformJobName=job)
            if existing is None:
                all_tags = as_list({**tags, **tags_of("transform-job", name)})
                client.create_transform_job(TransformJobName=job, **request, Tags=all_tags)
                log.info("Created the transform job %s.", job)
                return job
        if existing["TransformJobStatus"] in (*BUSY, "Completed"):
            log.info("The transform job %s exists already.", job)
            return job
        attempt += 1


def follow(account: Account, job: str, *, poll: float, wait: Callable[[float], None] = time.sleep) -> None:
    """Wait until the job is complete. Raises UserError if it fails, or was stopped."""
    began = time.monotonic()

    def describe() -> dict[str, Any]:
        with explain_refusals(f"describe the transform job {job}"):
            return dict(account.client("sagemaker").describe_transform_job(TransformJobName=job))

    while True:
        state = retry(describe, poll, wait)
        status = state["TransformJobStatus"]
        if status == "Completed":
            log.info("%s: complete after %s.", job, format_duration(time.monotonic() - began))
            return
        if status not in BUSY:
            reason = " ".join(str(state.get("FailureReason") or "AWS gives no reason").split()).rstrip(".")
            raise UserError(f"The transform job {job} ended as {status}: {reason}. Its log: CloudWatch, {LOG_GROUP}")
        wait(poll)


def read_answers(account: Account, images: Images, output: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each image with its answer: `classes`, or an `error`. Raises UserError if the job has left none."""
    bucket, prefix = split_uri(output)
    with explain_refusals(f"list {output}"):
        stored = [entry.key for entry in list_objects(account.client("s3"), output) if entry.key.endswith(".out")]
    found = {key.removeprefix(f"{prefix}/").removesuffix(".out"): key for key in stored}
    for uri in images.uris:
        if uri in images.too_large:
            yield uri, {"error": TOO_LARGE}
            continue
        key = _answer_of(split_uri(uri)[1], found)
        if key is None:
            raise UserError(f"{output} holds no answer to {uri}.")
        with explain_refusals(f"read s3://{bucket}/{key}"):
            content = account.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        try:
            answer: dict[str, Any] = json.loads(content)["predictions"][0]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"s3://{bucket}/{key} is no answer of imgcls.") from error
        yield uri, answer


def _answer_of(key: str, found: Mapping[str, str]) -> str | None:
    """The answer to the image with this key, in a folder that keeps all or the last parts of the path."""
    parts = key.split("/")
    return next((found[path] for start in range(len(parts)) if (path := "/".join(parts[start:])) in found), None)


def compare(
    account: Account, model_folder: Path, answers: Sequence[tuple[str, Mapping[str, Any]]], tolerance: float
) -> str:
    """What comparing `answers` with the portable model in the folder gives. Raises UserError if they differ."""
    model, s3 = portable.load(model_folder, engine="auto"), account.client("s3")
    contents = []
    for uri, _ in answers:
        bucket, key = split_uri(uri)
        with explain_refusals(f"read {uri}"):
            contents.append(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    local = model.predict(contents)
    worst = 0.0
    for (uri, answer), row in zip(answers, local, strict=True):
        expected = dict(zip(model.class_names, row.tolist(), strict=True))
        entries = answer["classes"]
        if not {entry["class"] for entry in entries} <= set(expected):
            raise UserError(f"The answer to {uri} has classes that the local model does not have.")
        gaps = [abs(entry["probability"] - expected[entry["class"]]) for entry in entries]
        gaps.append(float(np.max(row)) - expected[entries[0]["class"]])  # the likeliest class is first
        worst = max(worst, *gaps)
        if worst > tolerance:
            raise UserError(
                f"The answer to {uri} differs from the local model's by {worst:.1e} (tolerance={tolerance:g})."
            )
    return f"{len(answers)} answers are the local model's, probabilities differ by up to {worst:.1e}"


def write_answers(output: Path, answers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Write a line of JSON, or to FILE.csv a row, per image."""
    if output.suffix.lower() != ".csv":
        lines = [json.dumps({"file": uri, **answer}, ensure_ascii=False) + "\n" for uri, answer in answers]
        atomic_write_text(output, "".join(lines))
        return
    rows = []
    for uri, answer in answers:
        best = (answer.get("classes") or [{}])[0]
        more = {name: answer[name] for name in ("known", "novelty", "error") if name in answer}
        rows.append({"file": uri, "class": best.get("class", ""), "probability": best.get("probability", ""), **more})
    columns = ("file", "class", "probability", "known", "novelty", "error")
    present = [name for name in columns if any(name in row for row in rows)]
    atomic_write_text(output, as_csv([{name: row.get(name, "") for name in present} for row in rows]))
