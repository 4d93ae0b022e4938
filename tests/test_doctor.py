from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from imgcls import doctor
from imgcls.cli import guarded
from imgcls.doctor import Row, examine
from imgcls.system import extras

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address is asked, and no credentials are found."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def rows(sections: dict[str, list[Row]]) -> dict[str, Row]:
    return {row.name: row for members in sections.values() for row in members}


def test_the_table_has_every_section(nowhere: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: doctor._command([])) == 0
    said = capsys.readouterr().out
    for word in ("machine", "packages", "features", "access", "memory", "GiB free", "IMGCLS_CACHE"):
        assert word in said
    assert "  torch " in said
    assert importlib.metadata.version("timm") in said
    assert max(len(line) for line in said.splitlines() if "pip install" not in line) < 240


def test_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: doctor._command(["all"])) == 2
    assert "Unexpected argument 'all'" in capsys.readouterr().err


def test_nothing_that_is_missing_or_broken_ends_it(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Row]:
        raise OSError("libcudart.so: cannot open shared object file\nwith more lines")

    for name in ("torch", "boto3"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    monkeypatch.setattr(doctor, "memory", broken)
    found = rows(examine())
    assert found["devices"].mark == "missing"
    assert "import of torch halted" in found["devices"].text
    assert found["memory"].text.endswith("OSError: libcudart.so: cannot open shared object file")
    assert "boto3 is not installed" in found["AWS"].text
    assert found["python"].text


def test_aws_says_what_is_wrong_in_a_line(nowhere: None) -> None:
    (row,) = doctor.aws()
    assert row.mark == "missing"
    assert "There are no AWS credentials." in row.text


def test_aws_says_who_one_is(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import mock_aws

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        one, region = doctor.aws()
    assert one.mark == "ok"
    assert one.text.startswith("arn:aws:")
    assert region.name == "AWS region"


def test_every_extra_says_what_it_is_for() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert set(declared) <= set(doctor.FEATURES)


def test_what_is_installed_is_compared_with_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    from packaging.requirements import Requirement

    declared = {
        "": [Requirement("numpy>=1.26")],
        "old": [Requirement("numpy<1.0")],
        "absent": [Requirement("no-such-package-at-all>=2")],
        "other": [Requirement("no-such-package-at-all; python_version < '3'")],
        "both": [Requirement("imgcls[old,absent]"), Requirement("pillow")],
    }
    monkeypatch.setattr(extras, "requirements", lambda: declared)
    found = extras.find_extras()
    assert found[""].complete
    assert found["old"].missing == (f"numpy<1.0 (here is {importlib.metadata.version('numpy')})",)
    assert found["absent"].missing == ("no-such-package-at-all>=2",)
    assert not found["other"].offered
    assert len(found["both"].missing) == 2
    told = {row.name: row.text for row in doctor.features()}
    assert told["absent"] == "(pip install 'imgcls[absent]')"
    assert told["old"] == f"(pip install 'imgcls[old]', for numpy<1.0 (here is {importlib.metadata.version('numpy')}))"
    assert "not for Python" in told["other"]
