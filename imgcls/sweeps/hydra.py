"""`hydra/sweeper=optuna`: from Hydra's command line to a study and back to Hydra's launcher."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from imgcls.config.composition import check
from imgcls.config.hydra_internals import result_of, silence_basic_launcher
from imgcls.config.options import OPTIONS
from imgcls.errors import UserError
from imgcls.sweeps import outcome
from imgcls.sweeps.options import SearchOptions, search_options
from imgcls.sweeps.remote_search import Search
from imgcls.sweeps.space import Choice, Numbers, Space, parse_space, space_overrides, value_text
from imgcls.sweeps.study import Claim, Study
from imgcls.sweeps.supervisor import HELPER, stop_with_parent, supervise
from imgcls.sweeps.trials import command_overrides, refit_overrides, reports_of, trial_overrides
from imgcls.sweeps.worker import work

log = logging.getLogger(__name__)

# Overrides that change how a search is run, not what it finds.
RUN_OPTIONS = tuple(
    f"search.{name}" for name in ("trials", "workers", "refit", "max_failures", "attempts", "dead_after")
)


def sweep(context: HydraContext, task: TaskFunction, config: DictConfig, arguments: Sequence[str]) -> Study:
    """Run the search that `arguments` describe and return its study.

    Args:
        context, task: Hydra's, and what a trial runs.
        config: the composed configuration, without what is searched over.
        arguments: the overrides of the command, sweeps among them.

    Raises:
        UserError: for what the user can fix, such as too many failed trials.
    """
    plain: Any = OmegaConf.to_container(config.search, resolve=True)
    metrics = config.get("metrics")
    space, fixed, options = read_search(plain, int(config.seed), arguments, context.config_loader, metrics)
    if importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None:
        log.warning("hydra-optuna-sweeper is installed too, but imgcls uses its own sweeper. pip uninstall the other.")
    in_jobs = _runs_in_jobs(config, options)
    name, folder = name_and_folder(config, options, fixed, space)
    check_space(context, config, fixed, space)

    is_helper = HELPER in os.environ
    study = Study(name, options, space, folder, supervised=is_helper)
    try:
        launcher = hydra_launcher(context, task, config)
        here = type(launcher).__name__ == "BasicLauncher"
        reports = reports_of(space, config.trainer.max_epochs)

        def launch(claims: Sequence[Claim]) -> list[BaseException | None]:
            overrides = [[*fixed, *trial_overrides(study, claim, reports, in_job=in_jobs)] for claim in claims]
            try:
                jobs = launcher.launch(overrides, initial_job_idx=claims[0].number)
            except Exception as error:  # the launcher lost its jobs; the run folders record what became of them
                return [error] * len(claims)
            return [_error_of(job) for job in jobs]

        if is_helper:
            with stop_with_parent():
                work(study, launch, wait=False)
            return study
        announce = outcome.Announcer(study, command_overrides(fixed))
        if here and options.workers > 1:
            share = config.trainer.devices == "auto"
            supervise(study, ["-m", "imgcls.train", *sys.argv[1:]], announce, share_gpus=share)
        else:
            work(study, launch, together=1 if here else options.workers, announce=announce)
        finish(study)
        if options.refit and study.win("refit"):
            refit(launcher, study, fixed)
    finally:
        study.close()
    return study


def read_search(
    search: Mapping[str, Any],
    seed: int,
    arguments: Sequence[str] = (),
    config_loader: Any = None,
    metrics: Iterable[str] | None = None,
) -> tuple[Space, list[str], SearchOptions]:
    """The space, the overrides that all trials share, and the options.

    They come from the plain `search.*`, a command and the option `metrics`.

    Raises UserError where an option cannot be right, or nothing is searched over.
    """
    space, fixed = parse_space([*space_overrides(search["space"]), *arguments], config_loader)
    if not space.dimensions:
        raise UserError(
            "There is nothing to search over: give a space, such as 'optim.lr=tag(log,interval(1e-3,1e-1))', "
            "or in Python {'optim.lr': 'tag(log,interval(1e-3,1e-1))'}."
        )
    return space, fixed, search_options(search, seed, metrics or ())


def finish(study: Search) -> None:
    """Write the page and print the summary. Raises UserError where no trial is complete."""
    from imgcls.sweeps.page import write_page  # which loads matplotlib

    write_page(study)
    print(outcome.summary(study), flush=True)
    if not outcome.best_trials(study):
        raise UserError(f"No trial of the search {study.name} is complete; see {study.folder / 'sweep.csv'}.")


def study_name(data: str, overrides: Sequence[str], space: Space, ignored: Sequence[str] = RUN_OPTIONS) -> str:
    """A name that the same search gets again, from `data`, `space` and those `overrides` that are not `ignored`."""
    deciding = sorted(override for override in overrides if not override.startswith(tuple(ignored)))
    content = json.dumps([deciding, space.describe()], sort_keys=True)
    return f"{data}-{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}"


def name_and_folder(
    config: DictConfig, options: SearchOptions, fixed: Sequence[str], space: Space, ignored: Sequence[str] = RUN_OPTIONS
) -> tuple[str, Path]:
    """The study's name, and the sweep's folder: `hydra.sweep.dir` if given, else one that the same command gets again.

    The folder is written to `config` for Hydra's launcher.
    """
    data = OmegaConf.select(config, "hydra.runtime.choices.data") or "search"
    name = options.study or study_name(data, fixed, space, ignored)
    is_given = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
    folder = (Path(config.hydra.sweep.dir).expanduser() if is_given else Path("sweeps") / name).absolute()
    with open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={value_text(str(folder))}")
    return name, folder


def check_space(context: HydraContext, config: DictConfig, fixed: Sequence[str], space: Space) -> None:
    """Raise UserError for the first value of the space that cannot be right, before anything is trained."""
    attempts = [sample_values(space)]
    for dimension in space:
        if isinstance(dimension, Choice) and "." not in dimension.name:  # each group composes another configuration
            attempts += [{**attempts[0], dimension.name: value} for value in dimension.values[1:]]
        elif check_option := OPTIONS.get(dimension.name):
            ends = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
            for value in map(dimension.typed, ends):
                if (complaint := check_option(value)) is not None:
                    hint = ""
                    if isinstance(dimension, Numbers) and not dimension.whole and "whole" in complaint:
                        hint = " Whole numbers are range(…) or int(interval(…))."
                    raise UserError(f"{dimension.name}={value}: {complaint}{hint}")
    for values in attempts:
        compose_trial(context, config, [*fixed, *space.overrides(values)])


def sample_values(space: Space) -> dict[str, Any]:
    """One value of each option, to compose a configuration with where any will do."""
    return {item.name: item.values[0] if isinstance(item, Choice) else item.low for item in space}


def compose_trial(context: HydraContext, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The checked configuration of a trial, without Hydra's part and a run folder."""
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.run_dir = "."
        del composed["hydra"]
    check(composed)
    return composed


def hydra_launcher(context: HydraContext, task: TaskFunction, config: DictConfig) -> Any:
    """The launcher that `hydra/launcher` names."""
    silence_basic_launcher()
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def refit(launcher: Any, study: Search, fixed: Sequence[str]) -> None:
    """Train the best configuration of `study` again and test it. Raises the error that ends the run."""
    from imgcls.sweeps.page import write_page  # which loads matplotlib

    best = outcome.best_trials(study)[0]
    print(f"\nTraining the best configuration (trial {best.number}) again, to test it.", flush=True)
    overrides = [*command_overrides(fixed), *refit_overrides(study, best.params), "hydra.sweep.subdir=refit"]
    (job,) = launcher.launch([overrides], initial_job_idx=study.total)
    if (error := _error_of(job)) is not None:
        raise error
    write_page(study)  # which now has its test


def _runs_in_jobs(config: DictConfig, options: SearchOptions) -> bool:
    """Whether the trials are jobs of SageMaker. Raises UserError for what these cannot do."""
    if str(config.launch._target_).endswith(".Local"):
        return False
    if options.prunes:
        raise UserError("search/pruner: trials in jobs of SageMaker cannot reach the study. Use search/pruner=none.")
    if config.launch.get("wait") is False:
        raise UserError("launch.wait=false: a search needs the results of its trials. Leave it out.")
    return True


def _error_of(job: Any) -> BaseException | None:
    value = result_of(job)
    return value if isinstance(value, BaseException) else None
