"""Which account and which endpoint the options of a command mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.deploy.names import endpoint_name, name_of_run
from imgcls.deploy.options import Options
from imgcls.deploy.record import EndpointRecord
from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.aws.account import Account


Values = Mapping[str, str]


def connect(values: Mapping[str, Any], role: str | None = None) -> Account:
    """The account of the environment, as the options narrow it down."""
    from imgcls.aws.account import Account

    given = {name: values.get(name) or None for name in ("region", "profile", "bucket", "kms_key")}
    return Account.connect(
        given["region"],
        given["profile"],
        bucket=given["bucket"],
        prefix=values.get("prefix") or "imgcls",
        role=role,
        kms_key=given["kms_key"],
    )


def delete_command(name: str, options: Options) -> str:
    """What ends the endpoint, in the region and with the profile of the options."""
    given = {"region": options.region, "profile": options.profile}
    return f"python -m imgcls.deploy delete name={name}" + "".join(f" {k}={v}" for k, v in given.items() if v)


def which(values: Values) -> tuple[str, dict[str, str]]:
    """The endpoint that `name=` or `run=` means, and the options with the region in which it is."""
    if bool(values["name"]) == bool(values["run"]):
        raise UserError("Which endpoint? Give name=NAME or run=DIR; `python -m imgcls.deploy list` shows them.")
    if values["name"]:
        return endpoint_name(values["name"]), dict(values)
    folder = Path(values["run"]).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={values['run']}: no such folder.")
    record = EndpointRecord.read(folder)
    if record is None:
        return name_of_run(folder), dict(values)
    found = dict(values)
    for name in ("region", "profile", "bucket", "prefix"):
        if name in found and found[name] in ("", "imgcls"):
            found[name] = getattr(record, name) or ""
    return record.name, found
