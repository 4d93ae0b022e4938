"""What AWS would refuse after the upload, checked before it: instance type, quota, and size of the disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.instances import enumeration, has_local_disk
from imgcls.errors import UserError, nearest
from imgcls.launch.sagemaker.channels import data_set_folder
from imgcls.launch.sagemaker.options import JobOptions
from imgcls.system.files import size_of

log = logging.getLogger(__name__)

LOCAL_DISK_GB = 100  # of the smallest instances that have one
MAX_QUOTA_PAGES = 100  # of 100 quotas; SageMaker has some thousands
LONGEST = "Longest run time for a training job"
USUAL_SECONDS = 5 * 86400  # AWS's default of that quota
QUOTA_URL = "https://console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"


def check_before_upload(account: Account, config: Mapping[str, Any], options: JobOptions) -> None:
    """Raise UserError for an instance type that SageMaker does not offer for training, or data larger than the disk."""
    kind, offered = options.instance_type, enumeration("TrainingInstanceType")
    if offered and kind not in offered:
        raise UserError(f"launch.instance_type={kind}: SageMaker does not train on this type. {nearest(kind, offered)}")
    if options.input_mode == "File" and not has_local_disk(kind):
        size, where = _data_size(config)
        if size > options.volume_size * 1e9:
            raise UserError(
                f"launch.volume_size={options.volume_size}: {where} holds {size / 1e9:.0f} GB, which go to the disk "
                f"of each instance. Give at least launch.volume_size={int(size / 1e9 * 1.2) + 10}, or "
                "launch.input_mode=auto."
            )


def input_mode(config: Mapping[str, Any], options: JobOptions) -> str:
    """File or FastFile: as `options` say, or FastFile for more images than fit on the disk of an instance."""
    if options.input_mode != "auto":
        return options.input_mode
    size, _ = _data_size(config)
    limit = LOCAL_DISK_GB if has_local_disk(options.instance_type) else options.volume_size
    if size <= limit * 1e9:
        return "File"
    log.info("The job reads the images from S3 as it needs them: they do not fit on its disk.")
    return "FastFile"


def _data_size(config: Mapping[str, Any]) -> tuple[int, str]:
    """Bytes of the data set of `config` and its folder; 0 for one that is in S3 or has no folder."""
    remote = str(config["data"].get("root") or "").startswith("s3://")
    folder = None if remote else data_set_folder(config)
    return (0, "") if folder is None else (size_of(folder), str(folder))


def check_quota(account: Account, options: JobOptions) -> None:
    """Raise UserError if the account's quotas allow no such job; an account that may not ask learns it from AWS."""
    spot = "spot " if options.spot else ""
    wanted = f"{options.instance_type} for {spot}training job usage"
    names = [wanted, LONGEST] if options.max_runtime > USUAL_SECONDS else [wanted]
    try:
        found = _quotas(account.client("service-quotas"), names)
    except Exception as error:  # a hint, which needs permissions of its own
        log.debug("The quotas cannot be read: %s", error)
        return
    value, seconds = (found.get(name) for name in (wanted, LONGEST))
    if seconds is not None and seconds < options.max_runtime:
        raise UserError(
            f"launch.max_runtime={options.max_runtime}: the quota of this account in {account.region} is {seconds:g} "
            f'seconds. Ask for more at {QUOTA_URL} ("{LONGEST}"), or give less.'
        )
    if value is not None and value < options.instance_count:
        raise UserError(
            f"launch.instance_type={options.instance_type}: the quota of this account in {account.region} is {value:g} "
            f"instances, and the job needs {options.instance_count}. New accounts have 0 of most types with a GPU.\n"
            f'Ask for more at {QUOTA_URL} ("{wanted}"), or choose another type.'
        )


def _quotas(client: Any, names: Sequence[str]) -> dict[str, float]:
    """The quotas of the account by name, or AWS's defaults where they have never been changed, if there are any."""
    found: dict[str, float] = {}
    for operation in ("list_service_quotas", "list_aws_default_service_quotas"):
        token: dict[str, str] = {}
        for _ in range(MAX_QUOTA_PAGES):
            page = getattr(client, operation)(ServiceCode="sagemaker", MaxResults=100, **token)
            for quota in page["Quotas"]:
                if quota["QuotaName"] in names:
                    found.setdefault(quota["QuotaName"], float(quota["Value"]))
            if len(found) == len(names):
                return found
            if not page.get("NextToken"):
                break
            token = {"NextToken": page["NextToken"]}
    return found
