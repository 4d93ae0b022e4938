"""The container image of an endpoint."""

from __future__ import annotations

import pytest

from imgcls.deploy.requests import image_uri
from imgcls.errors import UserError
from tests.aws_account import needs_sdk

pytestmark = needs_sdk
REGION = "eu-west-1"


def test_each_version_has_its_python() -> None:
    assert image_uri("2.6.0", "ml.m5.large", REGION).endswith("pytorch-inference:2.6.0-cpu-py312")
    assert image_uri("2.5.1", "ml.m5.large", REGION).endswith("pytorch-inference:2.5.1-cpu-py311")


def test_arm_processors_get_an_image_for_them_or_none() -> None:
    assert "pytorch-inference-arm64:2.6.0" in image_uri("2.6.0", "ml.c7g.large", REGION)
    with pytest.raises(UserError, match=r"instance_type=ml\.m8g\.large: AWS has no PyTorch image for this type"):
        image_uri("2.6.0", "ml.m8g.large", REGION)
    with pytest.raises(UserError, match=r"framework_version=9\.9: AWS has no inference image"):
        image_uri("9.9", "ml.m5.large", REGION)
