"""Which packages an extra needs, and which of them are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.errors import UserError
from imgcls.system import extras
from imgcls.system.extras import check_installed, need


def test_a_missing_module_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert need("json.decoder", "core", "This test").__name__ == "json.decoder"
    with pytest.raises(UserError) as caught:
        need("nowhere_at_all.module")
    assert str(caught.value) == "SageMaker needs nowhere_at_all: pip install 'imgcls[sagemaker]'."
    (tmp_path / "half_installed.py").write_text("import nowhere_at_all.module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="A rehearsal needs nowhere_at_all: "):
        need("half_installed", "rehearsal", "A rehearsal")


def test_missing_packages_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(["json", "pathlib"], "serve", "Serving")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        check_installed(["fastapi", "prometheus_client"], "serve", "Serving")
    assert str(caught.value) == "Serving needs fastapi and prometheus-client: pip install 'imgcls[serve]'."


def test_an_installed_imgcls_is_asked_for_its_own_requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "imgcls-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: imgcls\nVersion: 9\nProvides-Extra: onnx\nProvides-Extra: all\n"
        "Requires-Dist: numpy>=1.26\n"
        "Requires-Dist: onnx>=1.17; extra == 'onnx'\n"
        "Requires-Dist: imgcls[onnx]; extra == 'all'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site" / "imgcls" / "system" / "extras.py"))
    found = extras.requirements()
    assert {name: [line.name for line in lines] for name, lines in found.items()} == {
        "": ["numpy"],
        "onnx": ["onnx"],
        "all": ["imgcls"],
    }
    monkeypatch.setattr(extras, "_lack", lambda line: line.name)
    assert extras.find_extras()["all"].missing == ("onnx",)
