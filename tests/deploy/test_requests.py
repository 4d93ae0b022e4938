"""The container image of an endpoint, its operating system, and what its number of instances follows."""

from __future__ import annotations

import pytest

from imgcls.deploy.options import REAL_TIME, create_options
from imgcls.deploy.requests import config_request, image_uri
from imgcls.deploy.scaling import Scaling, load_policy, select_scaling
from imgcls.errors import UserError
from tests.aws_account import needs_sdk

pytestmark = needs_sdk
REGION = "eu-west-1"


def test_each_version_has_its_python() -> None:
    assert image_uri("2.6.0", "ml.m5.large", REGION).endswith("pytorch-inference:2.6.0-cpu-py312")
    assert image_uri("2.5.1", "ml.m5.large", REGION).endswith("pytorch-inference:2.5.1-cpu-py311")


def test_images_with_an_older_python_are_refused() -> None:
    for version, python in [("2.2.0", "3.10"), ("1.13.1", "3.9")]:
        with pytest.raises(UserError, match=rf"framework_version={version}: its image has Python {python}, .* 3\.11"):
            image_uri(version, "ml.m5.large", REGION)


def test_arm_processors_get_an_image_for_them_or_none() -> None:
    assert "pytorch-inference-arm64:2.6.0" in image_uri("2.6.0", "ml.c7g.large", REGION)
    with pytest.raises(UserError, match=r"instance_type=ml\.m8g\.large: AWS has no PyTorch image for this type"):
        image_uri("2.6.0", "ml.m8g.large", REGION)
    with pytest.raises(UserError, match=r"framework_version=9\.9: AWS has no inference image"):
        image_uri("9.9", "ml.m5.large", REGION)


AMI = "al2-ami-sagemaker-inference-gpu-3-1"


def test_the_operating_system_of_the_instances_is_chosen() -> None:
    options = create_options({"run": "x", "instance_type": "ml.g5.xlarge", "inference_ami": AMI}, [])
    request = config_request(options, None, model="m", mode=REAL_TIME, output="s3://b/o", captured="s3://b/c")
    assert request["ProductionVariants"][0]["InferenceAmiVersion"] == AMI
    with pytest.raises(UserError, match=rf"inference_ami={AMI[:-1]}: Did you mean {AMI}"):
        create_options({"run": "x", "inference_ami": AMI[:-1]}, [])


def test_local_disks_take_no_key() -> None:
    key, places = "arn:aws:kms:us-east-1:123456789012:key/k", {"output": "s3://b/o", "captured": "s3://b/c"}
    for kind, expected in [("ml.m5.large", key), ("ml.g5.xlarge", None), ("ml.g4dn.xlarge", None)]:
        options = create_options({"run": "x", "instance_type": kind, "kms_key": key}, [])
        request = config_request(options, None, model="m", mode=REAL_TIME, **places)
        assert request.get("KmsKeyId") == expected, kind


def test_instances_follow_concurrent_requests_within_seconds() -> None:
    options = create_options({"run": "x", "max_instances": 4, "concurrent_per_instance": 2.0}, [])
    scaling = select_scaling(options, REAL_TIME, None)
    assert scaling == Scaling(1, 4, 2.0, 60, 300, concurrent=1)
    assert Scaling.read(str(scaling)) == scaling
    [metric] = load_policy("e", scaling, REAL_TIME)["PredefinedMetricSpecification"].values()
    assert metric == "SageMakerVariantConcurrentRequestsPerModelHighResolution"
    more = create_options({"run": "x", "max_instances": 5}, [])
    assert select_scaling(more, REAL_TIME, scaling) == Scaling(1, 5, 2.0, 60, 300, concurrent=1), "it stays as it was"
    by_minute = create_options({"run": "x", "max_instances": 5, "invocations_per_instance": 9.0}, [])
    assert select_scaling(by_minute, REAL_TIME, scaling) == Scaling(1, 5, 9.0, 60, 300)
    assert Scaling.read("low=1 high=3 load=10 out=30 back=120") == Scaling(1, 3, 10.0, 30, 120), "of an earlier imgcls"
    with pytest.raises(UserError, match="exclude each other"):
        create_options(
            {"run": "x", "max_instances": 4, "concurrent_per_instance": 2.0, "invocations_per_instance": 1}, []
        )
