"""The garbage collector is as it was, whatever happens meanwhile, and goes no more through what was imported."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest

from imgcls.system.collecting import importing


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_pauses_and_is_as_before(enabled: bool) -> None:
    def fail() -> None:
        with importing():
            assert not gc.isenabled()
            raise ImportError("mine")

    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError, match="mine"):
            fail()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_only_new_modules_are_left_out_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    with importing():
        pass
    assert gc.get_freeze_count() <= frozen
    with importing():
        monkeypatch.setitem(sys.modules, "heavy", ModuleType("heavy"))
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()
