"""The optional packages: the extra of each, and what each extra still needs here."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import os
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
"""The name of the requirements that imgcls always needs."""


@dataclass(frozen=True)
class Extra:
    """A group of requirements, compared with what is installed."""

    name: str
    missing: tuple[str, ...]
    """What must be installed, as `package>=version`, with the installed version where that does not match."""
    offered: bool = True
    """False where all requirements are for other versions of Python."""

    @property
    def complete(self) -> bool:
        """Whether everything is installed."""
        return self.offered and not self.missing


def find_extras() -> dict[str, Extra]:
    """Every extra by its name, and the requirements of imgcls itself under CORE."""
    declared = requirements()
    return {name: _compare(name, declared) for name in declared}


def requirements() -> dict[str, list[Requirement]]:
    """The declared requirements: of a checkout from its pyproject.toml, of an installed imgcls from its metadata."""
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
    found = {CORE: [line for line in lines if "extra ==" not in str(line.marker)]}
    for extra in installed.metadata.get_all("Provides-Extra") or []:
        found[extra] = [line for line in lines if f'extra == "{extra}"' in str(line.marker)]
    return found


def _compare(name: str, declared: dict[str, list[Requirement]]) -> Extra:
    here = _requirements_here(name, declared)
    missing = dict.fromkeys(lack for line in here if (lack := _lack(line)))
    return Extra(name, tuple(missing), offered=bool(here) or not declared[name])


def pins_of_extra(name: str) -> list[str]:
    """The requirements of an extra in the versions of this machine, or as they are declared where one is missing."""
    return [pin(line.name, str(line)) for line in _requirements_here(name, requirements())]


def pin(name: str, otherwise: str) -> str:
    """`name==version` as it is installed here; `otherwise` if it is not, or is a build that no index has."""
    try:
        version = metadata.version(name).partition("+")[0]  # +cu130 is a build for one machine
    except metadata.PackageNotFoundError:
        return otherwise
    return otherwise if ".dev" in version else f"{name}=={version}"


def _requirements_here(name: str, declared: dict[str, list[Requirement]]) -> list[Requirement]:
    """The requirements of an extra, and of the extras that it consists of, that hold for this Python."""
    found = []
    for line in declared.get(name, []):
        if line.marker is None or line.marker.evaluate({"extra": name}):
            parts = sorted(line.extras) if line.name == "imgcls" else []
            found += [item for part in parts for item in _requirements_here(part, declared)] if parts else [line]
    return found


def _lack(line: Requirement) -> str | None:
    """`line` where it is not installed, or not in a version that matches."""
    required = f"{line.name}{line.specifier}"
    try:
        version = metadata.version(line.name)
    except metadata.PackageNotFoundError:
        return required
    return None if line.specifier.contains(version, prereleases=True) else f"{required} (here is {version})"


PACKAGES = {
    "prometheus_client": "prometheus-client",
    "sagemaker_training": "sagemaker-training",
    "sagemaker_pytorch_container": "sagemaker-pytorch-training",
}
"""The packages of modules with another name."""
LOGGERS = {"TensorBoard": "tensorboard", "MLflow": "mlflow", "WeightsAndBiases": "wandb"}
"""The package of each logger, which is also the name of the extra."""


def need(module: str, extra: str = "sagemaker", feature: str = "SageMaker") -> Any:
    """Import an optional module.

    Args:
        module: its dotted name.
        extra: the extra with its package.
        feature: the option or feature that needs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing([error.name or module], extra, feature) from error


def check_installed(modules: Iterable[str], extra: str, feature: str) -> None:
    """Raise UserError where one of `modules`, which are in `extra` and needed for `feature`, is not installed."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise _missing(missing, extra, feature)


def _missing(modules: Iterable[str], extra: str, feature: str) -> UserError:
    names = [module.split(".")[0] for module in modules]
    packages = " and ".join(PACKAGES.get(name, name) for name in names)
    return UserError(f"{feature} needs {packages}: pip install 'imgcls[{extra}]'.")


def import_plugins() -> None:
    """Import the modules named in IMGCLS_PLUGINS. Raises UserError for one that cannot be imported."""
    for module in os.environ.get("IMGCLS_PLUGINS", "").replace(",", " ").split():
        try:
            import_module(module)
        except ImportError as error:
            raise UserError(f"IMGCLS_PLUGINS={module}: it cannot be imported ({error}).") from error


def check_logger(logger: Mapping[str, Any]) -> None:
    """Raise UserError where the package of the chosen logger is missing."""
    package = LOGGERS.get(str(logger.get("_target_")).rpartition(".")[2])
    if package is not None:
        check_installed([package], package, f"logger={package}")


def check_onnx(feature: str) -> None:
    """Raise UserError where the packages that write ONNX are missing; `feature` is the option that needs them."""
    check_installed(["onnx", "onnxscript"], "onnx", feature)


def check_smdebug(feature: str = "debug.smdebug=true") -> None:
    """Raise UserError where smdebug, which `feature` needs, is missing, or Python or numpy is too new for it."""
    if sys.version_info >= (3, 13):
        raise UserError(f"{feature} needs Python 3.11 or 3.12: smdebug cannot be imported by a newer one.")
    check_installed(["smdebug"], "debugger", feature)
    numpy = metadata.version("numpy")
    if tuple(int(part) for part in numpy.split(".")[:2]) >= (2, 3):
        raise UserError(
            f"{feature}: smdebug cannot save with numpy {numpy}, only below 2.3. "
            "pip install 'imgcls[debugger]' in a separate environment."
        )
