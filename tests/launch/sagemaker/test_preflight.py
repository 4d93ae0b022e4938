"""What AWS would refuse is said before the upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.launch.sagemaker.options import JobOptions
from imgcls.launch.sagemaker.preflight import check_before_upload, check_quota, input_mode

KIND = "ml.g4dn.xlarge"


class Quotas:
    """Stands for the account and its client of Service Quotas."""

    region = "eu-west-1"

    def __init__(self, applied: dict[str, float], default: dict[str, float]) -> None:
        self.applied, self.default = applied, default

    def client(self, service: str) -> Quotas:
        assert service == "service-quotas"
        return self

    def list_service_quotas(self, NextToken: str = "0", **_: Any) -> dict[str, Any]:  # noqa: N803
        names = list(self.applied)
        page = names[int(NextToken) : int(NextToken) + 1]
        more = {"NextToken": str(int(NextToken) + 1)} if int(NextToken) + 1 < len(names) else {}
        return {"Quotas": [{"QuotaName": name, "Value": self.applied[name]} for name in page], **more}

    def list_aws_default_service_quotas(self, **_: Any) -> dict[str, Any]:
        return {"Quotas": [{"QuotaName": name, "Value": value} for name, value in self.default.items()]}


def test_a_quota_that_allows_no_such_job_is_said() -> None:
    normal, spot = f"{KIND} for training job usage", f"{KIND} for spot training job usage"
    new_account: Any = Quotas({"another": 5.0}, {normal: 0.0, spot: 1.0})
    with pytest.raises(UserError, match=rf'the quota of this account in eu-west-1 is 0 instances.*\n.*"{normal}"'):
        check_quota(new_account, JobOptions())
    check_quota(new_account, JobOptions(spot=True))
    with pytest.raises(UserError, match="the job needs 2"):
        check_quota(new_account, JobOptions(spot=True, instance_count=2))
    raised: Any = Quotas({"another": 5.0, normal: 4.0}, {normal: 0.0})
    check_quota(raised, JobOptions(instance_count=4))
    check_quota(Quotas({}, {}), JobOptions())  # type: ignore[arg-type]
    longest = "Longest run time for a training job"
    with pytest.raises(UserError, match=r"launch.max_runtime=864000: the quota of this account .* is 432000 seconds"):
        check_quota(Quotas({normal: 4.0}, {longest: 432000.0}), JobOptions(max_runtime=864000))  # type: ignore[arg-type]
    check_quota(None, JobOptions())  # type: ignore[arg-type] # who may not ask hears it from AWS


def test_types_that_are_not_offered_and_data_that_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("botocore")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(60 * 10**9)  # sparse
    config = {"data": {"root": str(tmp_path), "_target_": "x"}}
    account: Any = None
    with pytest.raises(UserError, match=r"ml\.m5\.huge: SageMaker does not train on this type\. Did you mean ml\.m5\."):
        check_before_upload(account, config, JobOptions(instance_type="ml.m5.huge"))
    with pytest.raises(UserError, match=r"holds 60 GB, .* Give at least launch\.volume_size=82"):
        check_before_upload(account, config, JobOptions(instance_type="ml.m5.xlarge", input_mode="File"))
    check_before_upload(account, config, JobOptions(instance_type="ml.m5.xlarge"))
    assert input_mode(config, JobOptions(instance_type="ml.m5.xlarge")) == "FastFile"
    assert input_mode(config, JobOptions(instance_type="ml.m5.xlarge", volume_size=80)) == "File"
    assert input_mode(config, JobOptions(instance_type="ml.g4dn.xlarge")) == "File", "it has a disk of its own"
    assert input_mode(config, JobOptions(input_mode="FastFile")) == "FastFile"
    check_before_upload(account, config, JobOptions(instance_type="ml.m5.xlarge", volume_size=82))
    check_before_upload(account, config, JobOptions())  # a local disk, whose size AWS knows
    check_before_upload(account, {"data": {"root": "s3://x/y"}}, JobOptions(instance_type="ml.m5.xlarge"))
