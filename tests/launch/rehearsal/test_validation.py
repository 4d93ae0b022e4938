"""The simulated account refuses what AWS's own description of a service forbids."""

from __future__ import annotations

import pytest

from imgcls.launch.rehearsal.aws import LocalAws
from tests.aws_account import needs_moto

pytestmark = needs_moto

GOOD = {
    "ProductionVariants": [
        {"VariantName": "AllTraffic", "ModelName": "m", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}
    ],
    "Tags": [{"Key": "team", "Value": "Prüfung 3"}],
}


def test_requests_are_checked_as_aws_checks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    from imgcls.launch.rehearsal.endpoints import Endpoints

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with LocalAws(lambda request: None, lambda name: None, strict=True) as aws:
        client, endpoints = aws.session().client("sagemaker"), Endpoints(aws)
        client.create_model(
            ModelName="m", PrimaryContainer={"Image": "i"}, ExecutionRoleArn=f"arn:aws:iam::{1:012}:role/r"
        )
        for number, kind in enumerate(("ml.g5.xlarge", "ml.m6i.large", "ml.c7i.large")):  # which moto does not know
            GOOD["ProductionVariants"][0]["InstanceType"] = kind  # type: ignore[index]
            client.create_endpoint_config(EndpointConfigName=f"c{number}", **GOOD)
        variant = dict(GOOD["ProductionVariants"][0])  # type: ignore[arg-type]
        for name, wrong, said in [
            ("bad_name", {}, "regular expression pattern"),
            ("c" * 64, {}, "length less than or equal to 63"),
            ("c", {"ProductionVariants": [{**variant, "InstanceType": "ml.g9.xlarge"}]}, "enum value set"),
            ("c", {"ProductionVariants": [{**variant, "VolumeSizeInGB": 5000}]}, "value less than or equal to 512"),
            ("c", {"Tags": [{"Key": "team", "Value": "a#b"}]}, "Tags.1.member.Value"),
        ]:
            with pytest.raises(ClientError, match=said):
                client.create_endpoint_config(**{"EndpointConfigName": name, **GOOD, **wrong})
        endpoints.close()
