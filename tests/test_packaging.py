"""What an installation gets."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_package_its_configuration_and_its_hydra_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / build.build_wheel(str(tmp_path))
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "imgcls/train.py",
        "imgcls/sweeps/study.py",
        "imgcls/report/report.html.j2",
        "imgcls/report/blocks.html.j2",
        "imgcls/report/script.js",
        "imgcls/conf/train.yaml",
        "imgcls/conf/hydra/sweeper/optuna.yaml",
        "imgcls/conf/search/sampler/tpe.yaml",
        "hydra_plugins/imgcls_sweepers/optuna_sweeper.py",
    ):
        assert needed in names, needed
    assert "hydra_plugins/__init__.py" not in names, "the namespace is shared with other packages"
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_hydra_finds_the_plugins() -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.sweeper import Sweeper

    assert "OptunaSweeper" in {found.__name__ for found in Plugins.instance().discover(Sweeper)}
