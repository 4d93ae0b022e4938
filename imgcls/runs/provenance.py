"""The origin of a run: its configuration, overrides and environment, without passwords."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.runs.earlier import complete
from imgcls.system.files import atomic_write_text, read_yaml

MOVED = {
    "imgcls.checkpoints.Checkpoints": "imgcls.callbacks.checkpoints.Checkpoints",
    "imgcls.stopping.EarlyStopping": "imgcls.callbacks.early_stopping.EarlyStopping",
    "imgcls.loggers.TensorBoard": "imgcls.training.loggers.TensorBoard",
    "imgcls.loggers.MLflow": "imgcls.training.loggers.MLflow",
    "imgcls.loggers.WeightsAndBiases": "imgcls.training.loggers.WeightsAndBiases",
}
"""Old and new `_target_` of the classes that have moved since the first runs of imgcls 0.1.0 were stored."""

PACKAGES = ("imgcls", "torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "numpy", "pillow")

_ADDRESS = re.compile(r"""(\w://)([^\s:/@?#"']*)(:[^\s"']*)?@""")
_SECRET = (
    r"pass(?:word|wd|phrase)|pwd|secret|token|api[_-]?key|(?:secret|access|account|private)[_-]?key(?:[_-]?id)?"
    r"|signature|credentials?|authorization"
)
_NAMED = re.compile(
    rf"""(?i)([\w-]*(?:{_SECRET})["']?\s*[=:]\s*|[?&](?:sig|key|code|auth)=)"""
    r"""((?:bearer|basic)\s+)?("[^"]*"|'[^']*'|[^\s,;&"'}\])]+)"""
)
_NO_SECRET = re.compile(r"(?i)true|false|null|none|auto|\W*|[-+.\d]{1,6}")  # as in class_token: true


def hide_secrets(text: str) -> str:
    """`text` without the passwords, tokens, keys and signatures in it.

    >>> hide_secrets("search.storage=postgresql://me:secret@host/db")
    'search.storage=postgresql://me:…@host/db'
    >>> hide_secrets("data.url=https://host/a.zip?X-Amz-Signature=0f3a&x=1 logger.api_key=abcdef")
    'data.url=https://host/a.zip?X-Amz-Signature=…&x=1 logger.api_key=…'
    """
    text = _ADDRESS.sub(_hide_password, text)
    return _NAMED.sub(_hide_value, text)


def _hide_password(match: re.Match[str]) -> str:
    scheme, user, password = match.groups()
    keeps_user = password and user and not match.string[: match.end(1)].endswith(("http://", "https://"))
    return f"{scheme}{user}:…@" if keeps_user else f"{scheme}…@"  # https://TOKEN@host, https://TOKEN:x@host


def _hide_value(match: re.Match[str]) -> str:
    name, scheme, value = match.groups()
    quote = value[0] if value[0] in "\"'" else ""
    return match[0] if _NO_SECRET.fullmatch(value.strip(quote or None)) else f"{name}{scheme or ''}{quote}…{quote}"


def redact(value: Any, name: str = "") -> Any:
    """`value`, of mappings, lists and texts, without the passwords in it; `name` is that of the option."""
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if re.fullmatch(rf"(?i)[\w-]*(?:{_SECRET})", name) and not _NO_SECRET.fullmatch(str(value)):
        return "…"
    return hide_secrets(value) if isinstance(value, str) else value


def write_configuration(folder: Path, config: Mapping[str, Any], overrides: list[str] | None = None) -> None:
    """Write `config.yaml` and `overrides.yaml`, without passwords."""
    import yaml

    for name, content in (("config.yaml", dict(config)), ("overrides.yaml", overrides or [])):
        text = yaml.safe_dump(redact(content), sort_keys=False, allow_unicode=True, width=1000)
        atomic_write_text(folder / name, text)


def read_configuration(folder: Path) -> dict[str, Any]:
    """The content of `config.yaml`, with the current names of classes that have moved, and options that are new.

    Raises UserError if it is damaged.
    """
    file = folder / "config.yaml"
    try:
        content = read_yaml(file)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no options.")
    return complete(_rename_targets(content))


def _rename_targets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: MOVED.get(item, item) if key == "_target_" else _rename_targets(item) for key, item in value.items()
        }
    return [_rename_targets(item) for item in value] if isinstance(value, list) else value


def read_overrides(folder: Path) -> list[str]:
    """The content of `overrides.yaml`."""
    return read_yaml(folder / "overrides.yaml")


def differences(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of each option that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        changes = [differences(before.get(name), now.get(name), f"{prefix}{name}.") for name in names]
        return [change for part in changes for change in part]
    nothing: tuple[Any, ...] = (None, {}, [])  # an option that came with a newer version, and is empty
    same = before == now or (before in nothing and now in nothing)
    return [] if same else [(prefix.rstrip("."), before, now)]


def environment() -> dict[str, Any]:
    """Versions, machine and git state: what is needed to reproduce a result."""
    import subprocess
    from importlib import metadata

    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    git: dict[str, str] = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        run = {"capture_output": True, "text": True, "timeout": 5}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run)  # type: ignore[call-overload]
        if commit.returncode == 0:
            changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run)  # type: ignore[call-overload]
            git = {"commit": commit.stdout.strip(), "changed": "yes" if changed.stdout.strip() else "no"}
    return {
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "git": git,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
