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


Values = Mapping[str, Any]
"""The options of a command by name, as it read them."""


def connect(values: Values, role: str | None = None) -> Account:
    """The account of the environment, as the options narrow it down."""
    from imgcls.aws.account import Account, Caller

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
    """What ends the endpoint, in the region and with the profile of the options."""
    given = {"region": options.region, "profile": options.profile}
    return f"python -m imgcls.deploy delete name={name}" + "".join(f" {k}={v}" for k, v in given.items() if v)


def which(values: Values) -> tuple[str, dict[str, Any]]:
    """The endpoint that `name=` or `run=` means, and the options with the region in which it is."""
    if (values["name"] is None) == (values["run"] is None):
        raise UserError("Which endpoint? Give name=NAME or run=DIR; `python -m imgcls.deploy list` shows them.")
    if values["name"] is not None:
        return endpoint_name(values["name"]), dict(values)
    folder = Path(values["run"]).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={values['run']}: no such folder.")
    record = EndpointRecord.read(folder)
    if record is None:
        return name_of_run(folder), dict(values)
    found = dict(values)
    for name in ("region", "profile", "bucket", "prefix"):
        if name in found and found[name] in (None, "imgcls"):
            found[name] = getattr(record, name)
    return record.name, found
