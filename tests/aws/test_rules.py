"""What AWS takes as a name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imgcls.aws import rules
from imgcls.errors import UserError

KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd"


@pytest.mark.parametrize(
    ("check", "fine", "wrong"),
    [
        (
            rules.check_bucket,
            ["abc", "my.bucket-1", "a" * 63],
            ["ab", "A-bucket", "a_b", "s3://abc", "abc/x", "a" * 64],
        ),
        (
            rules.check_role,
            ["team", "a.b@c", "service-role/team", "arn:aws-cn:iam::123456789012:role/path/team"],
            ["", "a b", "path//team", "/team", "arn:aws:iam::12:role/x", "arn:aws:iam::123456789012:user/x", "a" * 65],
        ),
        (rules.role_resource, ["team", "path/team", "arn:aws:iam::123456789012:role/x"], ["", "/team", "user/x y"]),
        (
            lambda option, name: rules.check_tags(option, [name]),
            ["team", "cost:center", "imgclsx", "sm_cost"],
            ["aws:x", "AWS:x", "imgcls", "imgcls:run"],
        ),
        (
            lambda option, name: rules.check_variables(option, [name], ["SM_", "AWS_"]),
            ["HF_HOME", "_x1", "SMALL"],
            ["A-B", "1X", "", "SM_MODEL_DIR", "aws_region"],
        ),
        (lambda option, arn: rules.check_arn(option, arn, "a key", "kms"), [KEY], ["mine", KEY.replace("kms", "sns")]),
        (
            lambda option, name: rules.check_instance_type(option, name, "ml.m5.large"),
            ["ml.m5.large", "ml.g4dn.xlarge"],
            ["m5.large", "ml.g5", "ml.trn1.2xlarge"],
        ),
    ],
)
def test_a_wrong_name_is_refused_with_its_option(
    check: Callable[[str, str], None], fine: list[str], wrong: list[str]
) -> None:
    for name in fine:
        check("the.option", name)
    for name in wrong:
        with pytest.raises(UserError, match=r"^the\.option[.=]") as raised:
            check("the.option", name)
        assert name in str(raised.value)


def test_names_of_jobs() -> None:
    assert all(rules.is_name(name, 5) for name in ("a", "a-b", "a--b", "A1b2c"))
    assert not any(rules.is_name(name, 5) for name in ("", "-a", "a-", "a_b", "a.b", "abcdef", "a----b"))
