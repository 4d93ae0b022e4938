"""What a run was made with: its configuration, overrides and environment, without passwords."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.system.files import atomic_write_text

MOVED = {
    "imgcls.checkpoints.Checkpoints": "imgcls.callbacks.checkpoints.Checkpoints",
    "imgcls.stopping.EarlyStopping": "imgcls.callbacks.early_stopping.EarlyStopping",
    "imgcls.loggers.TensorBoard": "imgcls.training.loggers.TensorBoard",
    "imgcls.loggers.MLflow": "imgcls.training.loggers.MLflow",
    "imgcls.loggers.WeightsAndBiases": "imgcls.training.loggers.WeightsAndBiases",
}
"""The `_target_` of a class in runs of imgcls 0.1.0 as it was, and as it is."""


def without_passwords(text: str) -> str:
    """`text` without the passwords of the addresses in it.

    >>> without_passwords("search.storage=postgresql://me:secret@host/db")
    'search.storage=postgresql://me:…@host/db'
    """
    return re.sub(r"(\w://[^\s:/@]*:)[^\s@]+@", r"\1…@", text)


def write_configuration(folder: Path, config: Mapping[str, Any], overrides: list[str] | None = None) -> None:
    """Write `config.yaml` and `overrides.yaml`, without passwords."""
    import yaml

    content = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=1000)
    words = yaml.safe_dump(overrides or [], allow_unicode=True, width=1000)
    atomic_write_text(folder / "config.yaml", without_passwords(content))
    atomic_write_text(folder / "overrides.yaml", without_passwords(words))


def stored_configuration(folder: Path) -> dict[str, Any]:
    """The content of `config.yaml`, with today's names of classes that have moved since it was written."""
    import yaml

    content: dict[str, Any] = _renamed(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    return content


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: MOVED.get(item, item) if key == "_target_" else _renamed(item) for key, item in value.items()}
    return [_renamed(item) for item in value] if isinstance(value, list) else value


def stored_overrides(folder: Path) -> list[str]:
    """The content of `overrides.yaml`."""
    import yaml

    content: list[str] = yaml.safe_load((folder / "overrides.yaml").read_text())
    return content


def differences(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of every option that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        changes = [differences(before.get(name), now.get(name), f"{prefix}{name}.") for name in names]
        return [one for change in changes for one in change]
    return [] if before == now else [(prefix.rstrip("."), before, now)]


def environment() -> dict[str, Any]:
    """Versions, machine and git state: what a reader needs to know to believe a number."""
    import importlib.metadata as metadata
    import subprocess

    versions = {}
    for name in (
        "imgcls",
        "torch",
        "torchvision",
        "lightning",
        "timm",
        "torchmetrics",
        "hydra-core",
        "numpy",
        "pillow",
    ):
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
