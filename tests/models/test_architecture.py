"""The stored description of a network: JSON of every earlier version is read, unknown fields are refused."""

from __future__ import annotations

import json

import pytest

from imgcls.errors import UserError
from imgcls.models.architecture import Architecture

OLDEST = {
    "name": "resnet18",
    "num_classes": 3,
    "stem": "small",
    "head": {"kind": "mlp", "hidden": [6], "activation": "relu", "norm": "none", "dropout": 0.0},
    "drop_rate": 0.1,
    "drop_path_rate": 0.2,
    "image_size": 64,
}


def test_json_and_back() -> None:
    built = Architecture.from_dict({**OLDEST, "options": {"widths": [1, 2, 3]}, "views": "flip"})
    assert Architecture.from_dict(json.loads(json.dumps(built.as_dict()))) == built
    assert list(built.as_dict()) == [*OLDEST, "options", "views"]


def test_fields_missing_from_earlier_versions_take_their_defaults() -> None:
    read = Architecture.from_dict(OLDEST)
    assert (read.options, read.views) == ({}, "one")
    assert Architecture.from_dict({"name": "resnet18", "num_classes": 3}).head == {"kind": "linear"}


def test_a_field_of_a_later_version_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'lora', which this version of imgcls does not support"):
        Architecture.from_dict({**OLDEST, "lora": 8})


def test_the_name_is_required() -> None:
    with pytest.raises(TypeError, match="name"):
        Architecture.from_dict({"num_classes": 3})


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_path",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
        "pretrained",
        "kwargs_filter",
        "features_only",
    ],
)
def test_options_that_name_files_or_weights_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        Architecture.from_dict({**OLDEST, "options": {name: "evil.pth"}})


@pytest.mark.parametrize("value", [{"file": "evil.pth"}, [[{}]], object()])
def test_options_have_plain_values(value: object) -> None:
    with pytest.raises(UserError, match=r"model.options.widths"):
        Architecture.from_dict({**OLDEST, "options": {"widths": value}})


def test_options_in_a_text_are_refused() -> None:
    with pytest.raises(UserError, match="must be options"):
        Architecture.from_dict({**OLDEST, "options": "checkpoint_path"})
