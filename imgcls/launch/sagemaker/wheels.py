"""A folder of wheels for a job without network: built for the image's Python, and checked before the upload."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from imgcls.errors import UserError
from imgcls.launch.sagemaker.bundle import IMAGE_PACKAGES

SOURCE_ONLY = ("antlr4-python3-runtime",)  # pure Python, but the index has no wheel of the version that Hydra needs
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64")
IMAGE_MARKERS = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
AMAZON_PYTHON = (3, 12)  # of AWS's images with PyTorch 2.11 and newer


def image_python(image: str) -> tuple[int, int] | None:
    """The version of Python in an image of AWS; None if its URI does not tell.

    >>> image_python("…/pytorch-training:2.10.0-gpu-py313"), image_python("…/pytorch:2.14-cpu-amzn2023-sagemaker")
    ((3, 13), (3, 12))
    """
    match = re.search(r"-py(\d)(\d+)", image)
    if match is not None:
        return int(match[1]), int(match[2])
    return AMAZON_PYTHON if "-amzn2023" in image else None


def pins(lines: Iterable[str], python: tuple[int, int]) -> list[str]:
    """`lines` of a requirements.txt with everything that they need in an image with this Python, without torch.

    The versions are those of this machine, which may have another Python and another system than the image.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    version = f"{python[0]}.{python[1]}"
    image = {"python_version": version, "python_full_version": f"{version}.0", **IMAGE_MARKERS}
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line.split(" #")[0]) for line in lines if line.strip() and not line.startswith("#")]
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if (name, frozenset(needed.extras)) in seen or name in IMAGE_PACKAGES:
            continue
        seen.add((name, frozenset(needed.extras)))
        try:
            installed = metadata.distribution(needed.name)
        except metadata.PackageNotFoundError:
            found[name] = f"{needed.name}{needed.specifier}"
            continue
        found[name] = f"{needed.name}=={installed.version.partition('+')[0]}"
        extras = [*needed.extras, ""]
        for line in installed.requires or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({**image, "extra": extra}) for extra in extras):
                waiting.append(further)
    return sorted(found.values())


def build_wheels(folder: Path, lines: Iterable[str], python: tuple[int, int]) -> None:
    """Download the wheels of `lines` for the image's Python, and build those that the index has as source alone.

    Raises UserError with pip's reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = pins(lines, python)
    sources = [line for line in needed if line.partition("==")[0].lower() in SOURCE_ONLY]
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        listed = Path(work) / "requirements.txt"
        listed.write_text("\n".join(line for line in needed if line not in sources) + "\n")
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        version = f"{python[0]}.{python[1]}"
        target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms]
        _pip("download", "--no-deps", "-d", str(folder), *target, "-r", str(listed))
        for line in sources:
            _pip("wheel", "--no-deps", "-w", str(folder), line)


def check_wheels(folder: Path, lines: Iterable[str], image: str) -> None:
    """Raise UserError if `folder` lacks a wheel of a requirement, or has it for another Python than the image's."""
    from packaging.requirements import Requirement
    from packaging.tags import cpython_tags
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    python = image_python(image)
    if python is None:
        return
    fits = {str(tag) for tag in cpython_tags(python, platforms=PLATFORMS)}
    good, others = set(), {}
    for wheel in folder.glob("*.whl"):
        try:
            name, version, _, tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            continue
        pure = any(tag.platform == "any" and tag.abi == "none" and tag.interpreter.startswith("py3") for tag in tags)
        if pure or any(_fits(str(tag), fits) for tag in tags):
            good.add((str(name), str(version)))
        else:
            others[str(name)] = wheel.name
    for line in pins(lines, python):
        needed = Requirement(line)
        name = canonicalize_name(needed.name)
        if any(found == name and needed.specifier.contains(version, prereleases=True) for found, version in good):
            continue
        why = f"has {others[name]}, which is not for" if name in others else f"holds no wheel of {line} for"
        raise UserError(
            f"launch.wheels={folder} {why} Python {python[0]}.{python[1]} of the image. "
            f"Make the folder with: python -m imgcls.jobs wheels to={folder}"
        )


def _fits(tag: str, fits: set[str]) -> bool:
    """Whether `tag` is one of `fits`, or of an older glibc."""
    interpreter, abi, platform = tag.split("-", 2)
    if re.fullmatch(r"manylinux(_2_([0-9]|1\d|2[0-8])_x86_64|1_x86_64|2010_x86_64|2014_x86_64)", platform):
        platform = PLATFORMS[0]
    return f"{interpreter}-{abi}-{platform}" in fits


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "--disable-pip-version-check", "--quiet", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"pip {arguments[0]} failed: {reason[-1] if reason else 'no reason given'}")
