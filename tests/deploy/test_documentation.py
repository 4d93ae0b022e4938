"""What docs/deploying.md shows is understood: its commands and the options in its text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from imgcls.deploy.__main__ import ACTIONS, command
from imgcls.deploy.options import Options, create_options
from tests.documents import Command, commands, options

SHOWN = [one for one in commands() if one.module == "deploy"]


def test_every_action_is_shown() -> None:
    first = {one.words[0] for one in SHOWN}
    assert {action for action in ACTIONS if action != "deploy"} <= first
    assert {word for one in SHOWN for word in one.words if word.startswith("target=")} == {
        "target=local",
        "target=rehearsal",
    }


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown.line[24:])
def test_commands_are_understood(shown: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That they do what is said of them is for the other tests here."""
    for folder in ("runs/first", "runs/dogs", "runs/better", "holiday"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    done: list[Any] = []

    def perform(action: str, values: Mapping[str, Any], more: list[str]) -> None:
        done.append(create_options(values, more) if action == "deploy" else action)

    monkeypatch.setattr("imgcls.deploy.command.perform", perform)
    command(shown.words)
    expected = Options if "=" in shown.words[0] else str
    assert isinstance(done[0], expected)


def test_options_of_the_text_exist() -> None:
    known = {name for action in ACTIONS.values() for name in action}
    named = {
        word.partition("=")[0] for page, words in options() if page == "docs/deploying.md" for word in words.split()
    }
    assert named
    assert {name for name in named if not name.startswith(("tags.", "environment."))} <= known
