"""The README's first two commands are what is promised of them; test_docs.py runs and composes the rest."""

from __future__ import annotations

from tests.documents import blocks


def test_the_first_two_commands_are_the_ones_that_are_promised() -> None:
    first, second = [block.text.strip() for block in blocks("bash") if block.page == "README.md"][:2]
    assert first.endswith("python -m imgcls.train")
    assert "/python -m pytest" in second
    assert "constraints.txt" in first
