"""The test of an endpoint: its answers to real images are compared with those of the local model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgcls import portable
from imgcls.aws.account import Account
from imgcls.aws.refusals import error_code, explain_refusals
from imgcls.aws.s3 import split_uri
from imgcls.deploy.samples import Sample
from imgcls.errors import UserError
from imgcls.portable.certificate import check_certificate
from imgcls.serve.client import Client

Ask = Callable[[bytes, str], bytes]
"""Returns the JSON answer to (the bytes of an image, the Accept header)."""
KIND = "application/x-image"
PATIENCE_SECONDS = 900.0  # for an answer of an asynchronous endpoint, which may have to start an instance


@dataclass(frozen=True)
class Compared:
    """The result of the test.

    Attributes:
        pictures: number of images.
        difference: the largest difference between two probabilities.
        others: names of the images whose top class differs.
        milliseconds: median time of an answer.
    """

    pictures: int
    difference: float
    others: tuple[str, ...]
    milliseconds: float

    def __str__(self) -> str:
        agree = self.pictures - len(self.others)
        return (
            f"{agree} of {self.pictures} {'image' if self.pictures == 1 else 'images'} with the same top class as the "
            f"local model, probabilities differ by up to {self.difference:.1e}, {self.milliseconds:.0f} ms per image"
        )


def compare(ask: Ask, model_folder: Path, samples: Sequence[Sample], tolerance: float) -> Compared:
    """Compare the answers to `samples` with the portable model in `model_folder`.

    Classes whose probabilities differ by less than the tolerance may change places.

    Raises:
        UserError: an answer is missing, comes from another model, or differs by more than `tolerance`; or the local
            model has a certificate that it does not hold, so that equal answers would say nothing.
    """
    check_certificate(model_folder)
    model = portable.load(model_folder, engine="auto")
    names, local = model.class_names, model.predict([sample.content for sample in samples])
    remote, seconds = [], []
    for sample in samples:
        began = time.monotonic()
        answer = ask(sample.content, f"application/json;top_k={len(names)}")
        seconds.append(time.monotonic() - began)
        remote.append(probabilities(answer, names, sample.name))
    gaps = np.abs(np.stack(remote) - local).max(axis=1)
    others = [
        sample.name
        for sample, expected, actual in zip(samples, local, remote, strict=True)
        if expected.max() - expected[int(np.argmax(actual))] > tolerance
    ]
    result = Compared(len(samples), float(gaps.max()), tuple(others), 1000 * float(np.median(seconds)))
    if others or result.difference > tolerance:
        worst = samples[int(gaps.argmax())].name
        raise UserError(
            f"The endpoint's answers differ from the local model's: {result} (tolerance={tolerance:g}; "
            f"worst: {worst}).\n"
            "Check that it has this model: python -m imgcls.deploy list"
        )
    return result


def probabilities(answer: bytes, names: Sequence[str], picture: str) -> np.ndarray:
    """float32 (C,) of an answer, in the order of `names`. Raises UserError if its classes are not `names`."""
    try:
        classes = json.loads(answer)["predictions"][0]["classes"]
        found = {str(entry["class"]): float(entry["probability"]) for entry in classes}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        text = " ".join(answer.decode("utf-8", "replace").split())[:200]
        raise UserError(f"The endpoint's answer to {picture} does not come from imgcls: {text}") from error
    if set(found) != set(names):
        raise UserError(f"The endpoint's {len(found)} classes differ from the local model's {len(names)}.")
    return np.array([found[name] for name in names], dtype=np.float32)


def asking(account: Account, endpoint: str) -> Ask:
    """A function that sends images to a real-time or serverless endpoint."""
    client = Client(endpoint, runtime=account.client("sagemaker-runtime"))
    return lambda content, accept: client.invoke(content, KIND, accept)


def asking_later(
    account: Account, endpoint: str, folder: str, *, poll: float, wait: Callable[[float], None] = time.sleep
) -> Ask:
    """A function that sends images to an asynchronous endpoint, through the S3 folder `folder`."""
    s3, runtime = account.client("s3"), account.client("sagemaker-runtime")

    def ask(content: bytes, accept: str) -> bytes:
        bucket, prefix = split_uri(folder)
        key = f"{prefix}/{hashlib.sha256(content).hexdigest()[:16]}"
        with explain_refusals(f"invoke the endpoint {endpoint}"):
            s3.put_object(Bucket=bucket, Key=key, Body=content, **account.encryption)
            output = runtime.invoke_endpoint_async(
                EndpointName=endpoint, InputLocation=f"s3://{bucket}/{key}", ContentType=KIND, Accept=accept
            )
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE_SECONDS:
            answer = _read(s3, output["OutputLocation"])
            if answer is not None:
                return answer
            failed = _read(s3, output.get("FailureLocation"))
            if failed is not None:
                text = " ".join(failed.decode("utf-8", "replace").split())[:300]
                raise UserError(f"The endpoint {endpoint} failed: {text}")
            wait(poll)
        raise UserError(f"The endpoint {endpoint} has not answered within {PATIENCE_SECONDS / 60:.0f} minutes.")

    return ask


def _read(s3: Any, uri: str | None) -> bytes | None:
    """The content of an object; None if it does not exist yet."""
    if not uri:
        return None
    bucket, key = split_uri(uri)
    with explain_refusals(f"read {uri}"):
        try:
            return bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except Exception as error:
            if error_code(error) not in ("NoSuchKey", "404"):
                raise
            return None
