"""The optional packages: which extra brings them, and what each extra still needs here."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import sys
import tomllib
from collections.abc import Iterable, Mapping
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


PACKAGES = {
    "prometheus_client": "prometheus-client",
    "sagemaker_training": "sagemaker-training",
    "sagemaker_pytorch_container": "sagemaker-pytorch-training",
}
"""Modules whose package is called differently."""
LOGGERS = {"TensorBoard": "tensorboard", "MLflow": "mlflow", "WeightsAndBiases": "wandb"}
"""Of each logger: its package, which is the name of the extra as well."""


def need(module: str, extra: str = "sagemaker", wish: str = "SageMaker") -> Any:
    """Import an optional module.

    Args:
        module: its dotted name.
        extra: what brings its package.
        wish: the option or feature that needs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing([error.name or module], extra, wish) from error


def check_installed(modules: Iterable[str], extra: str, wish: str) -> None:
    """Raise UserError where one of `modules`, which `extra` brings and `wish` needs, is not installed."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise _missing(missing, extra, wish)


def _missing(modules: Iterable[str], extra: str, wish: str) -> UserError:
    names = [module.split(".")[0] for module in modules]
    packages = " and ".join(PACKAGES.get(name, name) for name in names)
    return UserError(f"{wish} needs {packages}: pip install 'imgcls[{extra}]'.")


def check_logger(logger: Mapping[str, Any]) -> None:
    """Raise UserError where the package of the chosen logger is missing."""
    package = LOGGERS.get(str(logger.get("_target_")).rpartition(".")[2])
    if package is not None:
        check_installed([package], package, f"logger={package}")


def check_onnx(wish: str) -> None:
    """Raise UserError where what writes ONNX is not installed; `wish` is the option that needs it."""
    check_installed(["onnx", "onnxscript"], "onnx", wish)


def check_smdebug(wish: str = "debug.smdebug=true") -> None:
    """Raise UserError where smdebug, which the option `wish` needs, is missing, or Python or numpy too new for it."""
    if sys.version_info >= (3, 13):
        raise UserError(f"{wish} needs Python 3.11 or 3.12: smdebug cannot be imported by a newer one.")
    check_installed(["smdebug"], "debugger", wish)
    numpy = metadata.version("numpy")
    if tuple(int(part) for part in numpy.split(".")[:2]) >= (2, 3):
        raise UserError(
            f"{wish}: smdebug cannot save with numpy {numpy}, only below 2.3. "
            "pip install 'imgcls[debugger]' in an environment of its own."
        )
