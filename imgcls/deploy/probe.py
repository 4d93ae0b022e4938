"""The test of an endpoint: real pictures are sent, and its answers compared with those of the model here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import split_uri
from imgcls.deploy.samples import Sample
from imgcls.errors import UserError

Ask = Callable[[bytes, str], bytes]
"""Gives the JSON answer to a picture: (its bytes, Accept)."""
KIND = "application/x-image"
PATIENCE = 900.0  # seconds for an answer of an asynchronous endpoint, which may have to start a machine


@dataclass(frozen=True)
class Compared:
    """What the test found.

    Attributes:
        pictures: how many were asked.
        difference: the largest between two probabilities.
        others: names of pictures whose likeliest class is another one.
        milliseconds: for an answer, the median.
    """

    pictures: int
    difference: float
    others: tuple[str, ...]
    milliseconds: float

    def __str__(self) -> str:
        what = "picture" if self.pictures == 1 else "pictures"
        agree = self.pictures - len(self.others)
        return (
            f"{agree} of {self.pictures} {what} with the same likeliest class as here, probabilities within "
            f"{self.difference:.1e}, {self.milliseconds:.0f} ms each"
        )


def compare(ask: Ask, model_folder: Path, samples: Sequence[Sample], tolerance: float) -> Compared:
    """Ask for each picture, and compare with the portable model in `model_folder`.

    Two classes whose probabilities differ by less than the tolerance may change places.

    Raises:
        UserError: an answer is missing or is none of this model, or differs by more than `tolerance`.
    """
    from imgcls import portable

    model = portable.load(model_folder, engine="auto")
    names, here = model.class_names, model.predict([sample.content for sample in samples])
    there, seconds = [], []
    for sample in samples:
        began = time.monotonic()
        answer = ask(sample.content, f"application/json;top_k={len(names)}")
        seconds.append(time.monotonic() - began)
        there.append(probabilities(answer, names, sample.name))
    gaps = np.abs(np.stack(there) - here).max(axis=1)
    others = [
        sample.name
        for sample, expected, got in zip(samples, here, there, strict=True)
        if expected.max() - expected[int(np.argmax(got))] > tolerance
    ]
    found = Compared(len(samples), float(gaps.max()), tuple(others), 1000 * float(np.median(seconds)))
    if others or found.difference > tolerance:
        worst = samples[int(gaps.argmax())].name
        raise UserError(
            f"The endpoint answers otherwise than the model here: {found} (tolerance={tolerance:g}; worst: {worst}).\n"
            "Look whether it has this model: python -m imgcls.deploy list"
        )
    return found


def probabilities(answer: bytes, names: Sequence[str], picture: str) -> np.ndarray:
    """float32 (C,) of an answer, in the order of `names`. Raises UserError where it is none of these classes."""
    try:
        classes = json.loads(answer)["predictions"][0]["classes"]
        found = {str(one["class"]): float(one["probability"]) for one in classes}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        text = " ".join(answer.decode("utf-8", "replace").split())[:200]
        raise UserError(f"The endpoint's answer to {picture} is none that imgcls gives: {text}") from error
    if set(found) != set(names):
        raise UserError(f"The endpoint has other classes than the model here: {len(found)}, not {len(names)}.")
    return np.array([found[name] for name in names], dtype=np.float32)


def asking(account: Account, endpoint: str) -> Ask:
    """Asks an endpoint that answers at once."""
    from imgcls.serve.client import Client

    client = Client(endpoint, runtime=account.client("sagemaker-runtime"))
    return lambda content, accept: client.invoke(content, KIND, accept)


def asking_later(
    account: Account, endpoint: str, place: str, *, poll: float, wait: Callable[[float], None] = time.sleep
) -> Ask:
    """Asks an asynchronous endpoint: through S3, below `place`."""
    s3, runtime = account.client("s3"), account.client("sagemaker-runtime")

    def ask(content: bytes, accept: str) -> bytes:
        import hashlib

        bucket, prefix = split_uri(place)
        key = f"{prefix}/{hashlib.sha256(content).hexdigest()[:16]}"
        with explain_refusals(f"ask the endpoint {endpoint}"):
            s3.put_object(Bucket=bucket, Key=key, Body=content, **account.encryption)
            told = runtime.invoke_endpoint_async(
                EndpointName=endpoint, InputLocation=f"s3://{bucket}/{key}", ContentType=KIND, Accept=accept
            )
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            answer = _read(s3, told["OutputLocation"])
            if answer is not None:
                return answer
            failed = _read(s3, told.get("FailureLocation"))
            if failed is not None:
                text = " ".join(failed.decode("utf-8", "replace").split())[:300]
                raise UserError(f"The endpoint {endpoint} could not answer: {text}")
            wait(poll)
        raise UserError(f"The endpoint {endpoint} has not answered within {PATIENCE / 60:.0f} minutes.")

    return ask


def _read(s3: Any, place: str | None) -> bytes | None:
    """The object's content; None where there is none yet."""
    if not place:
        return None
    bucket, key = split_uri(place)
    with explain_refusals(f"read {place}"):
        try:
            return bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except Exception as error:
            code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code")
            if code in ("NoSuchKey", "404"):
                return None
            raise
