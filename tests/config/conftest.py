"""Here Hydra composes from the files of `conf/` each time."""

from __future__ import annotations

import pytest

from imgcls.config import composition
from imgcls.config.explain import compose_unchecked


@pytest.fixture(autouse=True)
def plain_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes `quick_composition`."""
    monkeypatch.setattr(composition, "compose_unchecked", compose_unchecked)
