"""The benchmark of growth measures each of its parts in small."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = {
    "metrics": 20,
    "search": 12,
    "outputs": 7,
    "duplicates_photographs": 60,
    "duplicates_on_white": 60,
    "tables": 2000,
    "folders": 2000,
    "cold_store": 70,
    "cold_preadv": 70,
}


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scale")


def test_every_part_is_measured(scale: Any) -> None:
    assert set(SMALL) == set(scale.PARTS)
    for name, n in SMALL.items():
        found = scale.measure(name, n)
        assert found.n == n
        assert found.seconds > 0, name
        assert found.peak < 2**30, name


def test_growth_is_extrapolated(scale: Any) -> None:
    figures = [scale.Figures(n, 1.0, (n / 100) ** 2, 10, 20) for n in (10, 100, 1000)]
    assert scale.exponent(figures) == pytest.approx(2)
    assert scale.extrapolate(figures, "classes") == pytest.approx({"1k": 100, "21k": 218.41**2})
    assert scale.extrapolate(figures, "steps") == {}
    text = scale.table("growth", "classes", figures)
    assert "exponent 2.00" in text
    assert "ImageNet-1k: 100.0 CPU s" in text
