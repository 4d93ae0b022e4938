"""What a rehearsal's containers have of AWS's PyTorch image: packages, Python's command names, its older toolkit."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imgcls.launch.rehearsal import hiding
from imgcls.launch.sagemaker.bundle import REQUIREMENTS
from imgcls.launch.sagemaker.image_packages import absent
from imgcls.launch.sagemaker.training_job import image_version
from imgcls.system.extras import check_installed

PROGRAMS = {"python3": "", "python": "", "pip3": " -m pip", "train": " -m sagemaker_training.cli.train"}
# As in the image, except that it does not set the host's name:
# https://github.com/aws/sagemaker-pytorch-training-toolkit, docker/build_artifacts/start_with_right_hostname.sh
START = """\
#!/usr/bin/env bash
if [[ "$1" = "train" ]]; then
    train
else
    eval "$@"
fi
"""
TOOLKIT = ("sagemaker_training", "sagemaker_pytorch_container")
ENVIRONMENT = {"SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main"}


def check_toolkit() -> None:
    """Raise UserError if the toolkit of the images, which runs the trials of tuning jobs, is not installed."""
    check_installed(TOOLKIT, "tuning", "The rehearsal of a tuning job")


def write_programs(folder: Path) -> Path:
    """Write the programs of the image to the folder `bin` in `folder`, and return that folder."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, arguments in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "start_with_right_hostname.sh").write_text(START)
    return programs


def hide_packages(folder: Path, image: str, code: Path) -> dict[str, str]:
    """Hide the packages of this machine that neither `image` has nor the bundle in the folder `code` installs.

    Writes what hides them to `folder`, and returns the environment that they are hidden in. What an image has that is
    not AWS's is not known: nothing is hidden then.
    """
    if image_version(image) is None:
        return {}
    place = folder / "site"
    place.mkdir(exist_ok=True)
    shutil.copy(str(hiding.__file__), place / "sitecustomize.py")
    (place / hiding.LIST).write_text(json.dumps(absent(_requirements(code))), encoding="utf-8")
    return {"PYTHONPATH": str(place)}


def _requirements(code: Path) -> Iterator[str]:
    """The lines for pip in the bundles in the folder `code`."""
    for bundle in code.glob("*.tar.gz"):
        with tarfile.open(bundle) as tar:
            for member in tar:
                if Path(member.name).name == REQUIREMENTS and (file := tar.extractfile(member)) is not None:
                    yield from file.read().decode().splitlines()


def container_command(specification: Mapping[str, Any], programs: Path) -> list[str]:
    """The command of a container: the job's, or else the image's."""
    if "ContainerEntrypoint" in specification:
        return [*specification["ContainerEntrypoint"], *specification.get("ContainerArguments", ())]
    return ["bash", "-m", str(programs / "start_with_right_hostname.sh"), "train"]
