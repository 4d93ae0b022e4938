"""The documentation is built without a warning, and its reference of options holds every option."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from imgcls.config.composition import compose
from imgcls.config.explain import _option_names
from imgcls.config.groups import config_dir
from imgcls.config.reference import read_all

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    from configuration_reference import as_markdown  # type: ignore[import-not-found]

    text: str = as_markdown(read_all(config_dir()))
    return text


@pytest.mark.parametrize("words", [[], ["data=cifar10", "head=mlp", "optim=sgd", "augment=strong"]])
def test_every_option_is_in_the_reference(words: list[str], reference: str) -> None:
    composed = compose(words)
    leaves = [name for name in _option_names(composed) if not _is_group(composed, name)]
    assert len(leaves) > 100
    assert [name for name in leaves if f"| `{name}` |" not in reference] == []


def _is_group(cfg: object, name: str) -> bool:
    from omegaconf import DictConfig, OmegaConf

    return isinstance(OmegaConf.select(cfg, name), DictConfig)  # type: ignore[arg-type]


def test_a_line_has_the_name_the_default_and_the_comment(reference: str) -> None:
    assert "| `data.batch_size` | `${by_start:64,32,64}` | images per optimiser step, however" in reference
    assert "| `data.augment.crop.scale` | `[0.35, 1.0]` | smallest and largest share" in reference
    assert "### `data=cifar10`\n\nCIFAR-10: 60,000 images" in reference
    assert "\n## model\n\nThe network, and where its weights start. `model=` is `" in reference
    assert reference.index("\n## model\n") < reference.index("\n## head\n") < reference.index("\n## launch\n")


@pytest.mark.filterwarnings("ignore::Warning")  # Sphinx's extensions on each other's interfaces
def test_the_pages_are_built_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = pytest.importorskip("sphinx.application")
    monkeypatch.setattr(sys, "path", list(sys.path))
    app = application.Sphinx(
        DOCS, DOCS, tmp_path / "html", tmp_path / "trees", "html", status=None, warningiserror=True, parallel=0
    )
    app.build()
    assert app.statuscode == 0
    options = (tmp_path / "html" / "configuration.html").read_text()
    assert "data.val_fraction" in options
    assert "imgcls.runs.Run.predict" in (tmp_path / "html" / "api" / "imgcls.html").read_text()
