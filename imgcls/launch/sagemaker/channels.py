"""Uploads what a job reads to S3: its images and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.s3 import is_remote
from imgcls.aws.upload import upload_file, upload_folder, upload_name
from imgcls.data.table_files import table_root
from imgcls.errors import UserError
from imgcls.system.cache import data_folder
from imgcls.system.files import sha256_of

WEIGHTS = ("model/model.safetensors", "checkpoints/best.ckpt")  # of a run folder, in order of preference


def upload_channels(account: Account, config: Mapping[str, Any]) -> dict[str, str]:
    """Upload what the job of `config` reads and S3 does not have yet. Returns S3 URIs by channel name.

    Raises UserError if a folder is empty or S3 refuses.
    """
    channels = {}
    if is_remote(root := data_root(config["data"])):
        channels["data"] = str(root).rstrip("/") + "/"
    elif (folder := data_set_folder(config)) is not None:
        uri = account.places.uri("data", upload_name(folder, account.caller_identity))
        if uri not in account.in_place:
            upload_folder(folder, uri, account.client("s3"), extra=account.encryption, title="the data set")
        channels["data"] = f"{uri}/"
    weights = config["model"]["weights"]
    if is_remote(weights):
        channels["weights"] = weights
    elif weights is not None and "://" not in str(weights):
        file = weights_file(Path(str(weights)).expanduser())
        uri = account.places.uri("weights", sha256_of(file)[:16], file.name)  # which nobody overwrites with others
        upload_file(file, uri, account.client("s3"), extra=account.encryption)
        channels["weights"] = uri
    return channels


def data_set_folder(config: Mapping[str, Any]) -> Path | None:
    """The folder of the data set of `config`, downloaded if it is missing; None if the data set has no folder."""
    data = config["data"]
    if (root := data_root(data)) is not None:
        folder = Path(root).expanduser()
        if folder.is_file():
            raise UserError(f"data.root={root}: a job reads a folder. Unpack this archive, and give its folder.")
        if data.get("table") is not None and not _is_inside(str(data["table"]), folder):
            raise UserError(f"data.table={data['table']} is not in {folder}, which the job reads. Move it there.")
        return folder
    if "url" not in data:
        return None  # it comes with a package, or from the user's own class
    folder = data_folder(str(data["_target_"]).rpartition(".")[2])
    if not folder.is_dir():
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        instantiate(OmegaConf.create(dict(data)), _convert_="all").prepare_data()
    return folder


def data_root(data: Mapping[str, Any]) -> str | None:
    """The folder or address of the data set: `data.root`, or where its table is."""
    if data.get("root") is not None:
        return str(data["root"])
    return str(table_root(None, data["table"])) if data.get("table") is not None else None


def _is_inside(table: str, folder: Path) -> bool:
    from imgcls.data.table_files import find_table

    return find_table(table, folder).resolve().is_relative_to(folder.resolve())


def weights_file(path: Path) -> Path:
    """The weights file of `model.weights`: itself, or the one in a run folder."""
    if path.is_file():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise UserError(f"model.weights={path}: this folder is no run with weights.")
