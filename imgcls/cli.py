"""What all commands share: options of the form name=value, errors in one line, exit codes."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from imgcls import __version__
from imgcls.errors import UserError, describe_users_error, nearest
from imgcls.system.checks import Check, check_value
from imgcls.system.interrupts import Interrupted
from imgcls.system.process import end_process
from imgcls.system.text import printable

CRASHED = 1


def guarded(task: Callable[[], Any]) -> int:
    """Run `task`; return the exit code, with one line on stderr for every error that a user can fix.

    An error in their own code (a data set, a loss) is shown with its traceback from their file on. Characters that the
    encoding of stdout does not have are escaped, as on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        task()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error of it is reported
    except UserError as error:
        _print_error(str(error))
        return error.exit_code
    except Interrupted as error:
        _print_error(f"{error}. {error.advice}", "imgcls: ")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # for example `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the interpreter's last flush
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of stdout; others are named
            _print_error("No space left on the disk that is written to. Free some, then run the same command again.")
            return UserError.exit_code
        if own := describe_users_error(error):
            print(own[0], file=sys.stderr, end="")
            _print_error(own[1])
            return UserError.exit_code
        traceback.print_exc()
        _print_error("this is a bug in imgcls; please report it with the lines above.")
        return CRASHED
    return 0


def run_command(task: Callable[[], Any]) -> NoReturn:
    """Run `task`, see `guarded`, and end the process with its exit code."""
    end_process(guarded(task))


def announce(what: str) -> None:
    """Say on stderr, where that is a terminal, what takes the first seconds: whoever waits there sees it at once."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"imgcls {__version__}: {what} …", file=sys.stderr, flush=True)


def _print_error(text: str, prefix: str = "imgcls: error: ") -> None:
    print(f"{prefix}{printable(text)}", file=sys.stderr)


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Args:
        default: the value where it is left out or empty.
        check: of the value; see `imgcls.system.checks`.
        parse: converts the text. What it cannot parse (ValueError) is checked as text, and so rejected.
        many: it may be given several times; its value is then a tuple.
    """

    default: Any = None
    check: Check | None = None
    parse: Callable[[str], Any] = str
    many: bool = False

    def read(self, name: str, text: str) -> Any:
        """The value of `name=text`. Raises UserError where it cannot be right."""
        if not text:
            return self.default
        try:
            value = self.parse(text)
        except ValueError:
            value = text
        if self.check is not None:
            check_value(name, value, self.check)
        return value


def boolean(text: str) -> bool | str:
    """True or False for `true` or `false`; other texts unchanged."""
    return {"true": True, "false": False}.get(text.lower(), text)


def texts(text: str) -> list[str]:
    """The parts of `a,b` or `[a,b]`."""
    return [part.strip() for part in text.strip("[]").split(",") if part.strip()]


def confirm_removal(question: str) -> None:
    """Ask for confirmation on the terminal. Raises UserError if the answer is no, or there is no terminal."""
    if not sys.stdin.isatty():
        raise UserError("Nothing was removed: there is no terminal for the confirmation. Give yes=true.")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was removed.")


def usage_of(action: str, usage: str, options: Mapping[str, Option]) -> str:
    """The lines of `usage` about one action of a command, and its options with their defaults."""
    lines = [line.strip().removeprefix("usage: ") for line in usage.splitlines()]
    own = [line for line in lines if re.match(rf"python -m imgcls\.\w+ +{action}\b", line)]
    named = [
        name if option.default in (None, ()) else f"{name}={_shown(option.default)}" for name, option in options.items()
    ]
    return "\n".join([f"usage: {'  '.join(own)}", "", *textwrap.wrap(f"options: {' '.join(named)}", 100)])


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_options(
    arguments: Sequence[str],
    options: Mapping[str, Option],
    *,
    usage: str,
    overrides: Sequence[str] = (),
    others: int | None = 0,
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Read a command line of `name=value` arguments.

    Args:
        arguments: the command line.
        options: of the command, by name.
        usage: what `--help` prints.
        overrides: the beginnings of configuration overrides, as in `data.root=DIR`.
        others: how many other arguments are allowed, such as images; None: any number.

    Returns:
        The value of each option, the overrides, the other arguments.

    Raises:
        UserError: an unknown option, a value that cannot be right, or an unexpected argument.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(usage.strip())
        raise SystemExit(0)
    values = {name: option.default for name, option in options.items()}
    passed_on: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if equals and name in options:
            value = options[name].read(name, text)
            if options[name].many:
                value = (*(values[name] or ()), *([value] if text else []))
            values[name] = value
        elif equals and overrides and name.startswith(tuple(overrides)):
            passed_on.append(argument)
        elif others != 0 and Path(argument).is_file():  # an image may be called epoch=3.jpg or -x.jpg
            rest.append(argument)
        elif equals and name.isidentifier():
            raise UserError(f"Unknown option {name!r}. {nearest(name, [*options, *overrides])}")
        elif argument.startswith("-") and options:
            raise UserError(f"Unknown option {argument!r}. Options are given as name=value: {', '.join(options)}.")
        else:
            rest.append(argument)
    if others is not None and len(rest) > others:
        raise UserError(f"Unexpected argument {rest[others]!r}. --help shows the usage.")
    return values, passed_on, rest


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Let the module of a command be called as its `function`: `imgcls.evaluate(run)`."""

    class Command(ModuleType):
        __call__ = staticmethod(function)

    sys.modules[module].__class__ = Command
