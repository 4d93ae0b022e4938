"""The optional packages: which extra brings them, and what each extra still needs here."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.errors import UserError

if TYPE_CHECKING:
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
    from packaging.requirements import Requirement

    project = Path(__file__).parents[2] / "pyproject.toml"
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


NEEDS = {"TensorBoard": "tensorboard", "MLflow": "mlflow", "WeightsAndBiases": "wandb"}
"""Of each target below: the package, which is the name of the extra as well."""


def check_logger(logger: Mapping[str, Any]) -> None:
    """Raise UserError where the package of the chosen logger is missing."""
    package = NEEDS.get(str(logger.get("_target_")).rpartition(".")[2])
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"logger={package} needs {package}: pip install 'imgcls[{package}]'.")


def need_onnx(wish: str) -> None:
    """Raise UserError where what writes ONNX is not installed; `wish` is the option that needs it."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{wish} needs {' and '.join(missing)}: pip install 'imgcls[onnx]'.")


def need(module: str, extra: str = "sagemaker") -> Any:
    """The optional package, or a UserError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        missing = (error.name or module).split(".")[0]
        raise UserError(
            f"Jobs and endpoints of SageMaker need the package {missing}: pip install 'imgcls[{extra}]'."
        ) from error


INSTALL = "pip install 'imgcls[debugger]'"


def check_smdebug(asked: str = "debug.smdebug=true") -> None:
    """Raise UserError where smdebug, which the option `asked` needs, is missing, or Python or numpy too new for it."""
    if sys.version_info >= (3, 13):
        raise UserError(f"{asked} needs Python 3.11 or 3.12: smdebug cannot be imported by a newer one. {INSTALL}.")
    if importlib.util.find_spec("smdebug") is None:
        raise UserError(f"{asked} needs smdebug: {INSTALL}.")
    from importlib.metadata import version

    numpy = version("numpy")
    if tuple(int(part) for part in numpy.split(".")[:2]) >= (2, 3):
        raise UserError(
            f"{asked}: smdebug cannot save with numpy {numpy}, only below 2.3. {INSTALL} in an environment of its own."
        )
