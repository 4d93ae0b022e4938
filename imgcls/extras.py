"""The extras of imgcls, and what each of them still needs here."""

from __future__ import annotations

import importlib.metadata as metadata
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

CORE = ""
"""The name under which the requirements that everyone needs are listed."""


@dataclass(frozen=True)
class Extra:
    """One group of requirements, compared with what is installed."""

    name: str
    missing: tuple[str, ...]
    """What has to be installed, as `package>=version`, with the version that is there where it does not fit."""
    offered: bool = True
    """False where all of it is for other versions of Python."""

    @property
    def complete(self) -> bool:
        """Whether everything is installed."""
        return self.offered and not self.missing


def find_extras() -> dict[str, Extra]:
    """Every extra by its name, and under CORE what imgcls itself needs."""
    declared = requirements()
    return {name: _compare(name, declared) for name in declared}


def requirements() -> dict[str, list[Requirement]]:
    """What is declared: of a checkout in its pyproject.toml, of an installed imgcls in its metadata."""
    project = Path(__file__).parent.parent / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        groups = {CORE: table["dependencies"], **table["optional-dependencies"]}
        return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}
    try:
        installed = metadata.distribution("imgcls")
    except metadata.PackageNotFoundError:
        return {}
    lines = [Requirement(line) for line in installed.requires or []]
    found = {CORE: [line for line in lines if not _only_in_an_extra(line)]}
    for extra in installed.metadata.get_all("Provides-Extra") or []:
        chosen = [line for line in lines if _only_in_an_extra(line) and _names_extra(line, extra)]
        found[extra] = chosen
    return found


def _only_in_an_extra(line: Requirement) -> bool:
    return line.marker is not None and "extra ==" in str(line.marker)


def _names_extra(line: Requirement, extra: str) -> bool:
    return f'extra == "{extra}"' in str(line.marker)


def _compare(name: str, declared: dict[str, list[Requirement]]) -> Extra:
    here = _wanted_here(name, declared)
    missing = dict.fromkeys(lack for line in here if (lack := _lack(line)))
    return Extra(name, tuple(missing), offered=bool(here) or not declared[name])


def _wanted_here(name: str, declared: dict[str, list[Requirement]]) -> list[Requirement]:
    """The requirements of an extra, and of the extras that it consists of, that hold for this Python."""
    found = []
    for line in declared.get(name, []):
        if line.marker is None or line.marker.evaluate({"extra": name}):
            parts = sorted(line.extras) if line.name == "imgcls" else []
            found += [one for part in parts for one in _wanted_here(part, declared)] if parts else [line]
    return found


def _lack(line: Requirement) -> str | None:
    """What of `line` is not installed."""
    wanted = f"{line.name}{line.specifier}"
    try:
        version = metadata.version(line.name)
    except metadata.PackageNotFoundError:
        return wanted
    return None if line.specifier.contains(version, prereleases=True) else f"{wanted} (here is {version})"
