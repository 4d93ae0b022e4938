"""Finds the account and the endpoint that the options of a command refer to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account, Caller
from imgcls.deploy.names import endpoint_name, name_of_job, name_of_run
from imgcls.deploy.options import Options
from imgcls.deploy.record import EndpointRecord
from imgcls.errors import UserError
from imgcls.launch.sagemaker.record import JobRecord

Values = Mapping[str, Any]
"""The parsed options of a command by name."""


def connect(values: Values, role: str | None = None) -> Account:
    """The account of the environment, with the region, profile and bucket of the options."""
    return Account.connect(
        values["region"],
        values["profile"],
        caller=Caller(option_prefix="", purpose="endpoint", command="python -m imgcls.deploy"),
        bucket=values.get("bucket"),
        prefix=values.get("prefix", "imgcls"),
        role=role,
        kms_key=values.get("kms_key"),
    )


def delete_command(name: str, options: Options) -> str:
    """The command that deletes the endpoint, with the region and profile of the options."""
    more = {"region": options.region, "profile": options.profile}
    return f"python -m imgcls.deploy delete name={name}" + "".join(f" {k}={v}" for k, v in more.items() if v)


def resolve_endpoint(values: Values) -> tuple[str, Account]:
    """The endpoint of `name=` or `run=`, and the account with its recorded region, profile and bucket."""
    if (values["name"] is None) == (values["run"] is None):
        raise UserError("Give the endpoint: name=NAME or run=DIR. `python -m imgcls.deploy list` shows all endpoints.")
    if values["name"] is not None:
        return endpoint_name(values["name"]), connect(values)
    folder = Path(values["run"]).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={values['run']}: no such folder.")
    record = EndpointRecord.read(folder)
    if record is None:
        account = connect(values)
        return default_name(folder, account), account
    options = dict(values)
    for name in ("region", "profile", "bucket", "prefix"):
        if name in options and options[name] in (None, "imgcls"):
            options[name] = getattr(record, name)
    return record.name, connect(options)


def default_name(run: Path, account: Account) -> str:
    """The name of a run's endpoint unless it is given: from the run's training job in AWS, or from its folder."""
    record = JobRecord.read(run)
    if record is not None and record.where == "sagemaker" and record.job:
        return name_of_job(record.job)
    return name_of_run(run, account.caller_identity)
