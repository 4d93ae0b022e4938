"""What the user's code imports is in AWS's image or installed by the job; otherwise nothing is uploaded."""

from __future__ import annotations

import importlib.metadata as metadata
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.bundle import optional_requirements, requirements_text
from imgcls.launch.sagemaker.image_packages import check_imports
from imgcls.launch.sagemaker.launcher import SageMaker
from tests.aws_account import Jobs, needs_sdk

CODE = """\
from __future__ import annotations

import json
import scipy.ndimage
from PIL import Image
import own_helpers
from . import near
{extra}
try:
    import nowhere_to_be_found
except ImportError:
    pass
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A module of the user."""
    (tmp_path / "own_flowers.py").write_text(CODE.format(extra=""))
    return tmp_path / "own_flowers.py"


def test_packages_of_the_image_and_of_the_job_are_there(code: Path) -> None:
    config = plain(compose(["data=digits"]))
    lines = requirements_text(None, also=optional_requirements([config], "ml.g4dn.xlarge")).splitlines()
    helpers = code.with_name("own_helpers.py")
    helpers.write_text("")
    check_imports(config, [code, helpers], lines)
    with pytest.raises(UserError, match=rf"{code} needs own-helpers, which AWS's image does not have"):
        check_imports(config, [code], lines)


def test_a_package_that_only_this_machine_has_is_named(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributions = {**metadata.packages_distributions(), "own_helpers": ["Own.Helpers"], "albu": ["Albu_Mentations"]}
    monkeypatch.setattr("imgcls.launch.sagemaker.image_packages._owners", lambda: distributions)
    code.write_text(CODE.format(extra="import albu.core"))
    with pytest.raises(UserError, match="needs albu-mentations, which AWS's image does not have, and nothing installs"):
        check_imports({}, [code], ["own-helpers"])
    check_imports({}, [code], ["own_helpers", "albu-mentations>=2"])
    with pytest.raises(UserError, match="the configuration needs albu-mentations"):
        check_imports({"augment": [{"_target_": "albu.Flip"}]}, [], [])


@needs_sdk
def test_nothing_is_uploaded_for_a_job_that_lacks_a_package(account: Jobs, tmp_path: Path, code: Path) -> None:
    config: dict[str, Any] = plain(compose(["data=digits", "launch=sagemaker"]))
    with pytest.raises(UserError, match="needs own-helpers"):
        SageMaker(code=[str(code)]).new_job(account.cloud(), config, [], tmp_path)
    assert not [call for call in account.aws.calls if call.operation == "PutObject"]
