"""Names are data: what is written as CSV is read back the same, and is no formula for a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from imgcls.data.checks import bad_as_csv
from imgcls.data.sources import BadFile
from imgcls.runs.reading import read_table
from imgcls.system.tables import as_csv

NAMES = [
    *("=1+1", "+x", "-x", "@x", "\tx", "\r=x", "a\rb", "a\nb", "'=x", "''-x", "'x", "label", "label", "-", "="),
    *("a,b", 'a"b', "", "US$ ^$"),
]


def test_names_survive_and_no_cell_is_a_formula(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text(as_csv([{"file": name, "loss": -0.5} for name in NAMES]), encoding="utf-8", newline="")
    assert [row["file"] for row in read_table(file)] == NAMES
    assert {row["loss"] for row in read_table(file)} == {"-0.5"}  # a number is none
    with file.open(encoding="utf-8", newline="") as text:
        assert not [row for row in csv.reader(text) if row[0][:1] in tuple("=+-@\t\r")]


@pytest.mark.parametrize("name", ["=cmd|x", "@SUM(1)", "-1+1"])
def test_names_of_bad_files_are_no_formulas(name: str) -> None:
    _, row = csv.reader(io.StringIO(bad_as_csv([BadFile(name, "+broken")])))
    assert row == [f"'{name}", "'+broken"]


def test_a_table_without_rows_has_its_header() -> None:
    assert as_csv([], ("a", "b")) == "a,b\n"
