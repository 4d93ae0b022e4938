"""Here Hydra composes from the files of `conf/` each time."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def quick_composition() -> None:
    """In place of the one of all other tests."""
