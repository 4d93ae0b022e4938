"""Hydra's command line: compose, check and run a configuration, with errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imgcls.config.hydra_internals import flags_of
from imgcls.errors import UserError, users_frames
from imgcls.system.interrupts import Interrupted


def run_hydra(task: Callable[[DictConfig], Any], config_name: str = "train") -> None:
    """Run `task` with the configuration that the command line composes and checks.

    Raises UserError for what cannot be composed, in one line with the nearest valid names.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from imgcls.config.composition import check_composed, register_resolvers
    from imgcls.config.explain import explain
    from imgcls.config.groups import VERSION_BASE, config_dir
    from imgcls.config.overrides import expand
    from imgcls.system.files import explain_os_errors

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as with python -m: the user's own classes are beside their conf/
    sys.argv[1:] = expand(sys.argv[1:])
    if _check_flags(sys.argv[1:], config_name).help:
        from imgcls.config.help import help_of_train

        print(help_of_train())
        return
    register_resolvers()
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting

    raised: list[Exception] = []

    def checked(cfg: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            check_composed(cfg, [text for text in sys.argv[1:] if not text.startswith("-")], config_name)
            return task(cfg)
        except Exception as error:
            if not isinstance(error, UserError | Interrupted | BrokenPipeError) and users_frames(error) is None:
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                if isinstance(error, Interrupted) and in_plain_sweep():
                    raised.append(error)
                    raise KeyboardInterrupt from None  # Hydra begins the next run after any other exception
                raise
            raised.append(error)  # Hydra would print another line about it
            return None
        finally:
            if not any(text.startswith("run_dir=") for text in sys.argv[1:]):
                _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))

    try:
        with explain_os_errors(_run_folder()):
            hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=config_name)(checked)()
        if raised:
            raise raised[0]
    except KeyboardInterrupt:
        if raised:
            raise raised[0] from None
        raise
    except (HydraException, OmegaConfBaseException) as error:
        if before is not None:
            raise
        raise explain(error, [text for text in sys.argv[1:] if not text.startswith("-")], config_name) from error
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _check_flags(arguments: list[str], config_name: str) -> argparse.Namespace:
    """Hydra's flags among `arguments`. Raises UserError, in one line, where Hydra would print its usage."""
    from hydra.main import get_args_parser

    parser = get_args_parser()
    flags = flags_of(parser)

    def refuse(message: str) -> None:
        unknown = [text for text in arguments if text.startswith("-") and text.partition("=")[0] not in flags]
        if not unknown:
            raise UserError(f"{message}. --help shows the usage.")
        name = unknown[0].partition("=")[0].lstrip("-")
        if close := difflib.get_close_matches(name, [flag.lstrip("-") for flag in flags], n=1, cutoff=0.8):
            raise UserError(f"{message}. Did you mean --{close[0]}?")
        from imgcls.config.explain import nearest_option
        from imgcls.config.groups import is_option

        name = name.replace("-", "_")
        advice = f"Write {name}=…" if is_option(name) else nearest_option(name, [], config_name)
        raise UserError(f"{unknown[0]}: options are given as name=value, without dashes. {advice}")

    parser.error = refuse  # type: ignore[method-assign,assignment]
    flags_given: argparse.Namespace = parser.parse_args(arguments)
    return flags_given


def _run_folder() -> Path:
    """The folder that Hydra creates before the task starts."""
    folders = [text.partition("=")[2] for text in sys.argv[1:] if text.startswith("run_dir=")]
    return Path(folders[-1] if folders else "runs")


def in_plain_sweep() -> bool:
    """Whether Hydra's own sweeper runs this configuration with others, which is not a search of imgcls."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and "imgcls" not in hydra.sweeper._target_


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder that Hydra has created for a run that did not begin, or was resumed in another folder."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def overrides_of(cfg: DictConfig) -> list[str]:
    """The overrides of Hydra's current run; in a sweep, its `run_dir` is set to the folder that Hydra created."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN and not any(text.startswith("run_dir=") for text in overrides):
        cfg.run_dir = hydra.runtime.output_dir
    return overrides
