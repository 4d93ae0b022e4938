"""What goes into the container: imgcls, the user's own modules, what they need, and the job as a file."""

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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imgcls.config.groups import config_dir
from imgcls.errors import UserError

BUNDLE = "source.tar.gz"
JOB_FILE = "job.json"
REQUIREMENTS = "requirements.txt"
WHEELS = "wheels"
SOURCE = "source"
LEFT_OUT = {"__pycache__", ".git", ".ipynb_checkpoints", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
MOST_BYTES = 200 << 20  # a source folder that is larger holds something else than source
OF_THE_IMAGE = {"torch", "torchvision"}  # built for the image's CUDA


def write_bundle(
    target: Path,
    job: Mapping[str, Any],
    *,
    code: Iterable[Path],
    requirements: str,
    wheels: Path | None,
    script: tuple[str, str] | None = None,
) -> None:
    """Write `target`, a .tar.gz whose bytes depend on its content alone.

    Args:
        target: the file.
        job: what the container is told, see `container.py`.
        code: modules and packages of the user's own.
        requirements: the content of requirements.txt.
        wheels: a folder of wheels to install from, instead of the network.
        script: name and content of a file at the top; all others are then in the folder SOURCE.
    """
    package, below = Path(__file__).parents[2], "" if script is None else f"{SOURCE}/"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        _add_folder(tar, package, f"{below}imgcls")
        if not (package / "conf").is_dir():
            _add_folder(tar, config_dir(), f"{below}imgcls/conf")
        for one in code:
            if one.is_dir():
                _add_folder(tar, one, f"{below}{one.name}")
            else:
                _add_bytes(tar, f"{below}{one.name}", one.read_bytes())
        if wheels is not None:
            for wheel in sorted(wheels.glob("*.whl")):
                _add_bytes(tar, f"{below}{WHEELS}/{wheel.name}", wheel.read_bytes())
        _add_bytes(tar, f"{below}{REQUIREMENTS}", requirements.encode())
        _add_bytes(tar, f"{below}{JOB_FILE}", json.dumps(job, indent=1).encode())
        if script is not None:
            _add_bytes(tar, script[0], script[1].encode())
    with target.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.write(raw.getbuffer())


def own_modules(config: Any, more: Iterable[str] = ()) -> list[Path]:
    """The user's own code: modules that a `_target_` of `config` names and that no package installed, and `more`.

    Raises UserError where one is not there, or too large to be source.
    """
    found: dict[str, Path] = {}
    for name in sorted({target.split(".")[0] for target in _targets(config)}):
        path = _own_source(name)
        if path is not None:
            found[path.name] = path
    for text in more:
        path = Path(text).expanduser()
        if not path.exists():
            raise UserError(f"launch.code: there is no {text}.")
        found[path.name] = path.resolve()
    for path in found.values():
        size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in _files_in(path))
        if size > MOST_BYTES:
            raise UserError(f"launch.code: {path} holds {size >> 20} MB, which is more than source code.")
        if path.name == "imgcls":
            raise UserError(f"launch.code: {path} has the name of this library. Choose another.")
    return list(found.values())


def requirements_text(own: str | None, *, also: Iterable[str] = ()) -> str:
    """What pip installs in the container: what imgcls needs beside the image's torch, and the user's own file `own`.

    The lines `also` take the place of those for the same packages.

    Versions are those of this machine, so that the job computes what was tried here.
    """
    lines = list(also)
    other = OF_THE_IMAGE | {_name(line).lower() for line in lines}
    for requirement in _dependencies():
        name = _name(requirement)
        if name.lower() in other:
            continue
        try:
            lines.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(requirement)
    if own is not None:
        file = Path(own).expanduser()
        if not file.is_file():
            raise UserError(f"launch.requirements={own}: no such file.")
        lines += [line for line in file.read_text().splitlines() if line.strip()]
    return "\n".join(lines) + "\n"


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0]


def _dependencies() -> list[str]:
    """The requirements of imgcls without its extras, from its installation or its checkout."""
    project = Path(__file__).parents[3] / "pyproject.toml"
    if project.is_file():
        import tomllib

        content = tomllib.loads(project.read_text())
        if content.get("project", {}).get("name") == "imgcls":
            return [str(one) for one in content["project"]["dependencies"]]
    try:
        return [one for one in metadata.requires("imgcls") or [] if "extra ==" not in one]
    except metadata.PackageNotFoundError as error:
        raise UserError("imgcls is neither installed nor a checkout: its requirements are not known.") from error


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_" and isinstance(value, str):
                yield value
            else:
                yield from _targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value)


def _own_source(name: str) -> Path | None:
    """The file or folder of the top-level module `name`, if it is the user's own."""
    if name in sys.stdlib_module_names or name == "imgcls":
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(
            f"The configuration names the module {name!r}, which is not here. Run where it can be imported."
        )
    if spec.origin in (None, "built-in", "frozen") and not spec.submodule_search_locations:
        return None
    path = (
        Path(spec.origin).resolve()
        if spec.origin
        else Path(next(iter(spec.submodule_search_locations or ()))).resolve()
    )
    if path.name == "__init__.py":
        path = path.parent
    installed = [*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()]
    if any(path.is_relative_to(Path(place).resolve()) for place in installed) or "site-packages" in path.parts:
        return None
    return path


def _files_in(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not LEFT_OUT & set(path.relative_to(folder).parts) and path.suffix != ".pyc":
            yield path


def _add_folder(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    for path in _files_in(folder):
        _add_bytes(tar, f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
