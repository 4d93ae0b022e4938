"""Models on the Hugging Face hub, `hf-hub:user/name` or `hf-hub:user/name@revision`; imported without torch.

Only weights and descriptions are read: no code of a repository is downloaded or executed.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgcls.errors import UserError, first_line
from imgcls.models.architecture import Architecture, check_network_options

SCHEME = "hf-hub:"
PORTABLE = ("model.json", "model.safetensors", "model.onnx", "novelty.safetensors")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TIMEOUT_SECONDS = 5


def is_on_hub(name: object) -> bool:
    """Whether `name` is that of a model on the hub."""
    return isinstance(name, str) and name.startswith(SCHEME)


def check_repository(name: str, option: str) -> str:
    """`name` if it can be a repository, as user/name. Raises UserError, which begins with `option`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") == 1:
            return name
    except HFValidationError:
        pass
    raise UserError(f"{option}: {name!r} is no repository of the Hugging Face hub. Write user/name.")


@dataclass(frozen=True)
class HubModel:
    """What training starts from."""

    name: str
    """Of the timm model."""
    weights: Path
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model."""
    stem: str = "standard"
    channels: int = 3
    statistics: tuple[Sequence[float], Sequence[float]] | None = None
    """Mean and standard deviation of the pixels; None: those of timm's model."""


def fetch_start(reference: str) -> HubModel:
    """Download the weights at `reference`, of imgcls or timm. Raises UserError if they are no image classifier."""
    folder = _download(reference, ["config.json", "model.json", WEIGHTS[0]])
    if not (folder / WEIGHTS[0]).is_file():
        folder = _download(reference, ["config.json", "model.json", WEIGHTS[1]])
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    try:
        if (folder / "model.json").is_file():
            described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            architecture = Architecture.from_dict(described["architecture"])
            found = (architecture.name, dict(architecture.options), architecture.stem, architecture.in_channels)
            statistics = described["preprocessing"]
        elif (folder / "config.json").is_file():
            described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            arguments = dict(described.get("model_args") or {})
            arguments.pop("img_size", None)
            channels = arguments.pop("in_chans", 3)
            statistics = described.get("pretrained_cfg") or described
            found = (str(described["architecture"]), arguments, "standard", channels)
            check_network_options(arguments)
        else:
            raise UserError(f"{reference} has neither model.json nor config.json: it is no model of imgcls or timm.")
        if weights is None:
            raise UserError(f"{reference} has no weights ({' or '.join(WEIGHTS)}).")
        mean, std = (tuple(map(float, statistics.get(name) or ())) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{reference}: its description is damaged ({first_line(error)}).") from error
    name, options, stem, channels = found
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"{reference}: its description is damaged (architecture {name!r}).")
    known = (mean, std) if len(mean) == len(std) == channels else None
    return HubModel(name, weights, options, stem, channels, known)


def fetch_model(reference: str) -> Path:
    """Download the portable model at `reference`, and return its folder. Raises UserError if there is none."""
    folder = _download(reference, PORTABLE)
    if not (folder / "model.json").is_file():
        raise UserError(
            f"{reference} has no model.json: it was not pushed by imgcls. Train from it: model.name={reference}"
        )
    return folder


def _download(reference: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    name, at, revision = reference.removeprefix(SCHEME).partition("@")
    check_repository(name, SCHEME + name)
    try:
        with single_attempt():
            return Path(snapshot_download(name, revision=revision if at else None, allow_patterns=list(files)))
    except Exception as error:
        raise UserError(f"{reference} cannot be loaded: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What went wrong on the hub, in one line, and what to do."""
    from huggingface_hub import errors

    advice = "Log in with a token that may do this: hf auth login, or HF_TOKEN."
    if isinstance(error, errors.GatedRepoError):
        return f"its owner must give you access first. {advice}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private. {advice}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses it ({status}). {advice}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids it."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the hub cannot be reached, and it is not in the cache."
    return f"{first_line(error)}"


@contextmanager
def single_attempt() -> Iterator[None]:
    """Try once whether the hub can be reached; if not, use its cache alone, without a minute of retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    unreachable: Exception | None = None
    offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # some weights come from other servers, for which torch would wait forever
    if not offline:
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
        except Exception as error:  # the hub has changed its HTTP library before, and the exceptions with it
            unreachable = error
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:
        raise (ConnectionError(f"{constants.ENDPOINT}: {unreachable}") if unreachable else error) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)
