from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.errors import UserError
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
