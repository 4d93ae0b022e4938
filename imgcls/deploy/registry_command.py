"""The actions of `python -m imgcls.deploy` on registered models: register, list, approve, reject and delete."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from imgcls.cli import confirm_removal
from imgcls.deploy import registry
from imgcls.deploy.lookup import Values, connect
from imgcls.deploy.names import endpoint_name
from imgcls.deploy.options import read_tags
from imgcls.deploy.requests import FRAMEWORK, INSTANCE_TYPE, image_uri
from imgcls.deploy.source import find_run, source_of_run
from imgcls.errors import UserError
from imgcls.serve.archive import write_archive


def register(values: Values, more: list[str]) -> None:
    """`register run=DIR [name=…]`."""
    if values["run"] is None:
        raise UserError("Give the run to register: run=DIR.")
    find_run(values["run"])  # its errors are reported before AWS is asked
    account = connect(values)
    source = source_of_run(account, values["run"], values["name"])
    image = values["image"] or image_uri(
        values["framework_version"] or FRAMEWORK, values["instance_type"] or INSTANCE_TYPE, account.region
    )
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        archive = write_archive(source.folder, Path(work) / "model.tar.gz")
        package = registry.register(
            account, source.folder, source.model, source.name, archive, image=image, tags=read_tags(more)
        )
    if values["approve"] and package.status != registry.APPROVED:
        registry.set_status(account, package, registry.APPROVED, None)
    name = f"{package.group}/{package.version}"
    print(f"{name} is registered{' and approved' if values['approve'] else ''}: {package.arn}")
    if not values["approve"]:
        print(f"Approve it: python -m imgcls.deploy approve package={name}")


def judge(status: str, values: Values, more: list[str]) -> None:
    """`approve package=NAME/VERSION`, `reject package=NAME/VERSION`."""
    if values["package"] is None or "/" not in values["package"]:
        raise UserError("Give the version: package=NAME/VERSION. `python -m imgcls.deploy packages` shows them.")
    account = connect(values)
    package = registry.find_package(account, values["package"])
    registry.set_status(account, package, status, values["reason"])
    print(f"{package.group}/{package.version}: {status.lower()}.")


def list_packages(values: Values, more: list[str]) -> None:
    """`packages [name=…]`."""
    account = connect(values)
    packages = registry.list_packages(account, endpoint_name(values["name"]) if values["name"] else None)
    if not packages:
        print(f"There are no registered models of imgcls in {account.region}.")
    for package in packages:
        made = package.made.strftime("%Y-%m-%d %H:%M") if isinstance(package.made, datetime) else ""
        notes = package.notes
        accuracy = f"accuracy {float(notes['accuracy']):.1%}" if "accuracy" in notes else ""
        origin = f"run {notes.get(registry.RUN, '?')}"
        job = f"job {notes[registry.JOB]}" if registry.JOB in notes else ""
        shown = [f"{package.group}/{package.version}", package.status, made, accuracy, origin, job, package.reason]
        print("  ".join(part for part in shown if part))


def remove(values: Values) -> None:
    """`delete package=NAME[/VERSION]`: one version, or all of a model."""
    text, account = str(values["package"]), connect(values)
    if "/" in text or text.startswith("arn:"):
        packages = [registry.find_package(account, text)]
    else:
        packages = registry.list_packages(account, endpoint_name(text))
    if not packages:
        raise UserError(f"package={text}: no such model is registered: python -m imgcls.deploy packages")
    names = ", ".join(f"{package.group}/{package.version}" for package in packages)
    if not values["yes"]:
        confirm_removal(f"Remove {names}, with the files in S3?")
    registry.remove(account, packages)
    print(f"Removed {names}.")
