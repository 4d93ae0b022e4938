"""What all commands share: Hydra's command line, errors in one line, exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imgcls.errors import UserError, nearest
from imgcls.interrupts import Interrupted

if TYPE_CHECKING:
    from omegaconf import DictConfig

CRASHED = 1


def hydra_command(task: Callable[[DictConfig], Any], config_name: str = "train") -> None:
    """Run `task` with the configuration that the command line composes, and exit with its code.

    A user's mistake ends in one or two lines and exit code 2, a signal in 128 + its number.
    """
    sys.exit(guarded(lambda: _run_hydra(task, config_name)))


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


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """What imgcls says while it works goes to stderr, a line each; Lightning and Python's warnings are not heard."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handlers: dict[str, list[logging.Handler]] = {"imgcls": [handler]}
    handlers |= {name: [logging.NullHandler()] for name in ("lightning.pytorch", "lightning.fabric", "py.warnings")}
    with handled_by(handlers):
        yield


@contextlib.contextmanager
def handled_by(handlers: Mapping[str, list[logging.Handler]], onward: Sequence[str] = ()) -> Iterator[None]:
    """Each logger that is named has these handlers alone, warnings are logged too; those of `onward` also propagate."""
    loggers = {name: logging.getLogger(name) for name in handlers}
    before = {name: (one.handlers, one.level, one.propagate) for name, one in loggers.items()}
    for name, one in loggers.items():
        one.handlers, one.propagate = handlers[name], name in onward
        one.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, one in loggers.items():
            one.handlers, one.level, one.propagate = before[name]


def _print_error(text: str, prefix: str = "imgcls: error: ") -> None:
    print(f"{prefix}{text}", file=sys.stderr)


def _run_hydra(task: Callable[[DictConfig], Any], config_name: str) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from imgcls.config import VERSION_BASE, check, config_dir, explain, register_resolvers
    from imgcls.files import explain_os_errors
    from imgcls.words import expand

    sys.argv[1:] = expand(sys.argv[1:])
    _check_flags(sys.argv[1:])
    register_resolvers()
    quiet = logging.getLogger("hydra")  # what it would say about its own failures is said by `explain`
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting

    raised: list[Exception] = []

    def checked(cfg: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            check(cfg)
            return task(cfg)
        except (UserError, Interrupted) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raised.append(error)  # Hydra would print a line of its own about it
            return None

    try:
        with explain_os_errors_of_hydra(explain_os_errors):
            hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=config_name)(checked)()
        if raised:
            raise raised[0]
    except (HydraException, OmegaConfBaseException) as error:
        if before is not None:
            raise
        raise explain(error, [text for text in sys.argv[1:] if not text.startswith("-")], config_name) from error
    finally:
        quiet.disabled = False
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _check_flags(arguments: list[str]) -> None:
    """Refuse in one line what Hydra would answer with its usage."""
    from hydra.main import get_args_parser

    parser = get_args_parser()
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]

    def refuse(message: str) -> None:
        unknown = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in flags]
        advice = nearest(unknown[0], flags) if unknown else "--help lists what there is."
        raise UserError(f"{message}. {advice}")

    parser.error = refuse  # type: ignore[method-assign,assignment]
    parser.parse_args(arguments)


def explain_os_errors_of_hydra(explain: Any) -> Any:
    """Hydra makes the run folder before the task starts: explain a folder that cannot be made."""
    from pathlib import Path

    named = [text.partition("=")[2] for text in sys.argv[1:] if text.startswith("run_dir=")]
    return explain(Path(named[-1] if named else "runs"))


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
