"""What all commands share: words of the form name=value, errors in one line, exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imgcls.errors import UserError, nearest
from imgcls.system.interrupts import Interrupted

CRASHED = 1


def guarded(task: Callable[[], Any]) -> int:
    """Run `task`; return the exit code, with one line on stderr for every error that a user can mend."""
    try:
        task()
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
    except Exception:
        traceback.print_exc()
        _print_error("this is a fault of imgcls; please report it with the lines above.")
        return CRASHED
    return 0


def _print_error(text: str, prefix: str = "imgcls: error: ") -> None:
    print(f"{prefix}{text}", file=sys.stderr)


def parse_arguments(
    arguments: Sequence[str], options: Mapping[str, str], *, usage: str, overrides: Sequence[str] = ()
) -> tuple[dict[str, str], list[str], list[str]]:
    """Split a command line of `name=value` words into options, overrides of the data, and the rest.

    Args:
        arguments: the words.
        options: the known names, each with its default.
        usage: what `--help` prints.
        overrides: words that begin with one of these are overrides, as in `data.root=DIR`.

    Returns:
        The options, the overrides, the other words (pictures, say).
    """
    if any(word in ("-h", "--help") for word in arguments):
        print(usage.strip())
        raise SystemExit(0)
    values, passed_on, rest = dict(options), [], []
    for word in arguments:
        name, equals, value = word.partition("=")
        if equals and name in values:
            values[name] = value
        elif equals and name.startswith(tuple(overrides)) and overrides:
            passed_on.append(word)
        elif equals and name.isidentifier():
            raise UserError(f"Unknown option {name!r}. {nearest(name, [*options, *overrides])}")
        elif word.startswith("-"):
            raise UserError(f"Unknown option {word!r}. Options are given as name=value: {', '.join(options)}.")
        else:
            rest.append(word)
    return values, passed_on, rest
