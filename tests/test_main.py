"""All commands behind one name."""

from __future__ import annotations

import importlib
import sys

import pytest

from imgcls import __main__, __version__
from tests.conftest import Command


def test_help_names_every_command(run_command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert run_command(__main__, *arguments) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {name} " in text for name in __main__.COMMANDS)
    assert run_command(__main__, "--version") == 0
    assert capsys.readouterr().out == f"imgcls {__version__}\n"


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_each_command_explains_itself(name: str, run_command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(__main__, name, "--help") == 0
    output = capsys.readouterr()
    assert output.out.startswith(("usage: ", f"`python -m imgcls.{name}", f"`python -m imgcls {name}"))
    assert "usage: " in output.out
    assert output.err == ""


def test_a_command_gets_its_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("imgcls.report.__main__")
    found = []
    monkeypatch.setattr(module, "main", lambda: found.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["imgcls", "report", "run=a", "run=b"])
    __main__.main()
    assert found == [["imgcls report", "run=a", "run=b"]]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trian", "Unknown command 'trian'. Did you mean train?"),
        ("data=photos", "data=photos: the command is missing, as in imgcls train data=photos"),
    ],
)
def test_mistakes_are_one_line(
    argument: str, message: str, run_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(__main__, argument) == 2
    assert capsys.readouterr().err == f"imgcls: error: {message}\n"
