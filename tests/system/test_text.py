"""Names that others chose do not control the terminal."""

import logging

import pytest

from imgcls.cli import guarded
from imgcls.errors import UserError
from imgcls.system.logs import log_to_terminal
from imgcls.system.text import printable


def test_controls_are_escaped_and_writing_stays() -> None:
    assert printable("\x1b[2J\x9b1m\x07\r\u202eeton\u2069") == ("\\u001b[2J\\u009b1m\\u0007\\u000d\\u202eeton\\u2069")
    for text in ("Käfer 犬 🐈‍⬛ نمی‌دانم", "two\nlines\tand blanks\xa0"):
        assert printable(text) == text


def test_messages_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("\x1b]0;title\x07 is no class")

    assert guarded(fail) == 2
    with log_to_terminal():
        logging.getLogger("imgcls.x").info("class %s", "\x1b[31mred")
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\x07" not in err
    assert "\\u001b[31mred" in err
