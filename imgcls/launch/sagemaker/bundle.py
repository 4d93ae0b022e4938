"""The source bundle for the container: imgcls, the user's modules, their requirements, and the job file."""

from __future__ import annotations

import gzip
import importlib.metadata as metadata
import importlib.util
import io
import json
import re
import site
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imgcls.aws.instances import has_gpu
from imgcls.config.groups import config_dir
from imgcls.errors import UserError
from imgcls.system.extras import LOGGERS, pin, pins_of_extra

BUNDLE = "source.tar.gz"
JOB_FILE = "job.json"
REQUIREMENTS = "requirements.txt"
WHEELS = "wheels"
SOURCE = "source"
EXCLUDED_NAMES = {"__pycache__", ".git", ".ipynb_checkpoints", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
MAX_SOURCE_BYTES = 200 << 20  # a larger folder holds more than source code
IMAGE_PACKAGES = {"torch", "torchvision"}  # built for the image's CUDA


def write_bundle(
    target: Path,
    job: Mapping[str, Any],
    *,
    code: Iterable[Path],
    requirements: str,
    wheels: Path | None,
    script: tuple[str, str] | None = None,
) -> None:
    """Write `target`, a .tar.gz with reproducible bytes.

    Args:
        job: content of the job file, see `container.py`.
        code: the user's modules and packages.
        requirements: content of requirements.txt.
        wheels: a folder of wheels to install from instead of the network.
        script: name and content of a file at the top; all others are then in the folder SOURCE.
    """
    package, below = Path(__file__).parents[2], "" if script is None else f"{SOURCE}/"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        _add_folder(tar, package, f"{below}imgcls")
        if not (package / "conf").is_dir():
            _add_folder(tar, config_dir(), f"{below}imgcls/conf")
        for path in code:
            if path.is_dir():
                _add_folder(tar, path, f"{below}{path.name}")
            else:
                _add_bytes(tar, f"{below}{path.name}", path.read_bytes())
        if wheels is not None:
            for wheel in sorted(wheels.glob("*.whl")):
                _add_bytes(tar, f"{below}{WHEELS}/{wheel.name}", wheel.read_bytes())
        _add_bytes(tar, f"{below}{REQUIREMENTS}", requirements.encode())
        _add_bytes(tar, f"{below}{JOB_FILE}", json.dumps(job, indent=1).encode())
        if script is not None:
            _add_bytes(tar, script[0], script[1].encode())
    with target.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.write(raw.getbuffer())


def find_user_modules(config: Any, more: Iterable[str] = ()) -> list[Path]:
    """The user's code: modules of `_target_`s in `config` that are not installed packages, and the paths `more`.

    Raises UserError if a path does not exist, or is too large for source code.
    """
    modules: dict[str, Path] = {}
    for name in sorted({target.split(".")[0] for target in targets(config)}):
        path = _find_source(name)
        if path is not None:
            modules[path.name] = path
    for text in more:
        path = Path(text).expanduser()
        if not path.exists():
            raise UserError(f"launch.code: {text} does not exist.")
        modules[path.name] = path.resolve()
    for path in modules.values():
        size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in source_files(path))
        if size > MAX_SOURCE_BYTES:
            raise UserError(f"launch.code: {path} holds {size >> 20} MB, which is more than source code.")
        if path.name == "imgcls":
            raise UserError(f"launch.code: {path} has the name of this library. Choose another.")
    return list(modules.values())


def requirements_text(own: str | None, *, also: Iterable[str] = ()) -> str:
    """What pip installs in the container: imgcls's requirements except the image's torch, and the user's file `own`.

    The lines `also` replace those for the same packages. Versions are those of this machine, which were tried.
    """
    lines = list(also)
    excluded = IMAGE_PACKAGES | {_name(line).lower() for line in lines}
    for requirement in _dependencies():
        name = _name(requirement)
        if name.lower() in excluded:
            continue
        lines.append(pin(name, requirement))
    if own is not None:
        lines += read_requirements(own)
    return "\n".join(lines) + "\n"


def read_requirements(path: str) -> list[str]:
    """The lines of launch.requirements. Raises UserError for a line that pip cannot use in the container."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"launch.requirements={path}: no such file.")
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    for line in lines:
        text = line.split(" #")[0].strip()
        if text.startswith(("-e", "--editable", ".", "/", "~", "file:")) or "file://" in text:
            reason = "is on this machine. Give code with launch.code=[…]."
        elif text.startswith(("-r", "--requirement", "-c", "--constraint")):
            reason = "names another file, which is not sent. Write its lines into this one."
        elif _name(text).lower() in IMAGE_PACKAGES:
            reason = "would replace the image's. Choose it with launch.framework_version or launch.image."
        elif re.search(r"==[^,;]*\+", text):
            reason = "is a build of this machine, which no index has. Leave out what follows the +."
        else:
            continue
        raise UserError(f"launch.requirements={path}: {text!r} {reason}")
    return lines


def optional_requirements(configs: Iterable[Mapping[str, Any]], instance_type: str) -> list[str]:
    """What else pip installs, because a configuration or the instance type needs it: loggers, ONNX, LoRA, readers of
    data, NVIDIA's library.

    `export.onnx=auto` means the same as on this machine: yes if ONNX is installed here. So do TIFF files that need
    tifffile.
    """
    extras: dict[str, None] = {}
    for config in configs:
        logger = str((config.get("logger") or {}).get("_target_") or "").rpartition(".")[2]
        if logger in LOGGERS:
            extras[LOGGERS[logger]] = None
        onnx = (config.get("export") or {}).get("onnx")
        if onnx is True or (onnx == "auto" and importlib.util.find_spec("onnx") is not None):
            extras["onnx"] = None
        if (config.get("model") or {}).get("adapter") == "lora":
            extras["lora"] = None
        data = config.get("data") or {}
        if data.get("root") is not None and importlib.util.find_spec("tifffile") is not None:
            extras["tiff"] = None
        if str(data.get("_target_")).endswith(".HuggingFace"):
            extras["huggingface"] = None
        elif str(data.get("table")).lower().endswith(".parquet"):
            extras["parquet"] = None
    if has_gpu(instance_type):
        extras["gpu"] = None
    return list(dict.fromkeys(line for extra in extras for line in pins_of_extra(extra)))


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0]


def _dependencies() -> list[str]:
    """The requirements of imgcls without its extras, from its checkout or installation."""
    project = Path(__file__).parents[3] / "pyproject.toml"
    if project.is_file():
        content = tomllib.loads(project.read_text())
        if content.get("project", {}).get("name") == "imgcls":
            return [str(requirement) for requirement in content["project"]["dependencies"]]
    try:
        return [requirement for requirement in metadata.requires("imgcls") or [] if "extra ==" not in requirement]
    except metadata.PackageNotFoundError as error:
        raise UserError("imgcls is neither installed nor a checkout, so its requirements are unknown.") from error


def targets(config: Any) -> Iterator[str]:
    """Every `_target_` in a configuration."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_" and isinstance(value, str):
                yield value
            elif key != "search":  # a job does not search, so it does not need optuna
                yield from targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)


def _find_source(name: str) -> Path | None:
    """The file or folder of the top-level module `name`; None for installed packages."""
    if name in sys.stdlib_module_names or name == "imgcls":
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"The configuration names the module {name!r}, which cannot be imported here.")
    if spec.origin in (None, "built-in", "frozen") and not spec.submodule_search_locations:
        return None
    path = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))).resolve()
    if path.name == "__init__.py":
        path = path.parent
    installed = [*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()]
    if any(path.is_relative_to(Path(folder).resolve()) for folder in installed) or "site-packages" in path.parts:
        return None
    return path


def source_files(folder: Path) -> Iterator[Path]:
    """The files in `folder` that a bundle holds."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not EXCLUDED_NAMES & set(path.relative_to(folder).parts) and path.suffix != ".pyc":
            yield path


def _add_folder(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    for path in source_files(folder):
        _add_bytes(tar, f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
