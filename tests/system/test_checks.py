from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.system import checks
from imgcls.system.checks import Check, check_value, choice, either, existing_folder, flag, number, whole


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (whole(1), 1),
        (whole(0, 5), 5),
        (whole(1, none=True), None),
        (number(0, 1), 0.5),
        (number(0, words=["auto"]), "auto"),
        (choice("auto", True, None), None),
        (either(choice("auto"), whole(0)), 3),
        (flag, False),
        (checks.names, ["first"]),
        (checks.mapping, None),
    ],
)
def test_what_is_right_has_no_complaint(check: Check, value: Any) -> None:
    assert check(value) is None


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (whole(1), 0, "most=0: must be a whole number of at least 1."),
        (whole(1, 9), True, "most=true: must be a whole number from 1 to 9."),
        (whole(1), 1.0, "most=1.0: must be a whole number of at least 1."),
        (number(0, open_low=True), 0, "most=0: must be a number above 0."),
        (number(0, 1), float("nan"), "most=nan: must be a number from 0 to 1."),
        (number(0, none=True), "x", "most=x: must be a number of at least 0, or null."),
        (choice("best", "last"), "lost", "most=lost: is not known. Did you mean last?"),
        (choice(1), True, "most=true: is not known. Choose one of: 1."),
        (either(choice("auto"), whole(0)), -1, "most=-1: is not known. Choose one of: auto."),
        (flag, 1, "most=1: must be true or false."),
        (checks.names, [""], "most=['']: must be a list of names, such as [first,second]."),
    ],
)
def test_what_is_wrong_is_said_with_the_option_and_its_value(check: Check, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_value("most", value, check)
    assert str(caught.value) == message


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert existing_folder(str(tmp_path)) is None
    assert existing_folder("s3://bucket/folder") is None
    assert existing_folder(None) is None
    assert existing_folder(str(tmp_path / "file")) == "is a file, not a folder."
    assert existing_folder(str(tmp_path / "nowhere")) == "no such folder."
