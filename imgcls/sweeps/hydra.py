"""`hydra/sweeper=optuna`: from Hydra's command line to a study and back to Hydra's launcher."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from imgcls.config.composition import check
from imgcls.config.hydra_internals import result_of, silence_basic_launcher
from imgcls.config.options import OPTIONS
from imgcls.errors import UserError
from imgcls.sweeps import outcome
from imgcls.sweeps.options import SearchOptions, search_options
from imgcls.sweeps.remote_search import Search
from imgcls.sweeps.space import Choice, Numbers, Space, parse_space, space_words, value_text
from imgcls.sweeps.study import Claim, Study
from imgcls.sweeps.supervisor import HELPER, leaving_with_parent, supervise
from imgcls.sweeps.trials import command_words, refit_words, reports_of, trial_words
from imgcls.sweeps.worker import Launch, work

log = logging.getLogger(__name__)

# Words of a command that change how a search is run, not what is found.
HOW = ("search.trials", "search.workers", "search.refit", "search.max_failures", "search.attempts", "search.dead_after")


def sweep(context: HydraContext, task: TaskFunction, config: DictConfig, arguments: Sequence[str]) -> Study:
    """Run the search that `arguments` describe; return its study.

    Args:
        context: Hydra's.
        task: what a trial runs.
        config: the composed configuration, without what is swept over.
        arguments: the overrides of the command, sweeps among them.

    Raises:
        UserError: for what the user can mend, too many failed trials among it.
    """
    plain: Any = OmegaConf.to_container(config.search, resolve=True)
    space, fixed = parse_space([*space_words(plain.pop("space")), *arguments], context.config_loader)
    if not space.dimensions:
        raise UserError("There is nothing to search: give a space, such as 'optim.lr=tag(log,interval(1e-3,1e-1))'.")
    if importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None:
        log.warning("hydra-optuna-sweeper is installed too; imgcls uses its own sweeper. pip uninstall the other one.")
    options = search_options(plain, int(config.seed))
    elsewhere = _runs_elsewhere(config, options)
    data = OmegaConf.select(config, "hydra.runtime.choices.data") or "search"
    name = options.study or study_name(data, fixed, space)
    folder = sweep_folder(config, name)
    check_space(context, config, fixed, space)

    is_helper = HELPER in os.environ
    study = Study(name, options, space, folder, supervised=is_helper)
    try:
        launcher = hydra_launcher(context, task, config)
        here = type(launcher).__name__ == "BasicLauncher"
        launch = _launch(launcher, study, fixed, reports_of(space, config.trainer.max_epochs), elsewhere=elsewhere)
        if is_helper:
            with leaving_with_parent():
                work(study, launch, wait=False)
            return study
        announce = outcome.Announcer(study, command_words(fixed), lambda line: print(line, flush=True))
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


def finish(study: Search) -> None:
    """The page, and the last lines on the terminal. Raises UserError where no trial is complete."""
    from imgcls.sweeps.page import write_page

    write_page(study)
    print(outcome.summary(study), flush=True)
    if not outcome.best_trials(study):
        raise UserError(f"The search {study.name} has found nothing; {study.folder / 'sweep.csv'} says why.")


def study_name(data: str, told: Sequence[str], space: Space, how: tuple[str, ...] = HOW) -> str:
    """A name that the same search gives again: its data set, and a hash of what it searches.

    Args:
        data: the name of the data set.
        told: what else decides what is found, as overrides.
        space: what is searched over.
        how: the beginnings of words that decide nothing.
    """
    content = json.dumps([sorted(word for word in told if not word.startswith(how)), space.describe()], sort_keys=True)
    return f"{data}-{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}"


def check_space(context: HydraContext, config: DictConfig, fixed: Sequence[str], space: Space) -> None:
    """Raise for the first value of the space that cannot be right, before anything is trained."""
    usual = {one.name: one.values[0] if isinstance(one, Choice) else one.low for one in space.dimensions}
    attempts = [usual]
    for one in space.dimensions:
        if isinstance(one, Choice) and "." not in one.name:  # groups: each of them composes another configuration
            attempts += [{**usual, one.name: value} for value in one.values[1:]]
        elif complaint_of := OPTIONS.get(one.name):
            ends = one.values if isinstance(one, Choice) else (one.checked(one.low), one.checked(one.high))
            for value in ends:
                if (complaint := complaint_of(one.typed(value))) is not None:
                    hint = ""
                    if isinstance(one, Numbers) and not one.whole and "whole" in complaint:
                        hint = " Whole numbers are range(…) or int(interval(…))."
                    raise UserError(f"{one.name}={value}: {complaint}{hint}")
    for values in attempts:
        composed = context.config_loader.load_sweep_config(config, [*fixed, *space.words(values)])
        with open_dict(composed):
            composed.run_dir = "."
            del composed["hydra"]
        check(composed)


def sweep_folder(config: DictConfig, name: str) -> Path:
    """The sweep's folder: `hydra.sweep.dir` if it was given, else one that the same command finds again."""
    given = [word for word in config.hydra.overrides.hydra if word.startswith("hydra.sweep.dir=")]
    folder = (Path(config.hydra.sweep.dir).expanduser() if given else Path("sweeps") / name).absolute()
    with open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={value_text(str(folder))}")
    return folder


def hydra_launcher(context: HydraContext, task: TaskFunction, config: DictConfig) -> Any:
    """The launcher that `hydra/launcher` names."""
    from hydra.core.plugins import Plugins

    silence_basic_launcher()
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def _runs_elsewhere(config: DictConfig, options: SearchOptions) -> bool:
    """Whether the trials are jobs of SageMaker. Raises UserError for what these cannot do."""
    if str(config.launch._target_).endswith(".Local"):
        return False
    if options.prunes:
        raise UserError("search/pruner: trials in jobs of SageMaker do not reach the study. Use search/pruner=none.")
    if config.launch.get("wait") is False:
        raise UserError("launch.wait=false: a search needs the results of its trials. Leave it out.")
    return True


def _launch(launcher: Any, study: Study, fixed: Sequence[str], reports: int | None, *, elsewhere: bool) -> Launch:
    def launch(claims: Sequence[Claim]) -> list[BaseException | None]:
        words = [[*fixed, *trial_words(study, claim, reports, elsewhere=elsewhere)] for claim in claims]
        try:
            returned = launcher.launch(words, initial_job_idx=claims[0].number)
        except Exception as error:  # a launcher that lost its jobs; their folders say what became of them
            return [error] * len(claims)
        return [_error(one) for one in returned]

    return launch


def _error(returned: Any) -> BaseException | None:
    value = result_of(returned)
    return value if isinstance(value, BaseException) else None


def refit(launcher: Any, study: Search, fixed: Sequence[str]) -> None:
    """Train the best configuration of `study` once more, and test it. Raises what ends that."""
    best = outcome.best_trials(study)[0]
    print(f"\nTraining the best configuration (trial {best.number}) once more, to test it.", flush=True)
    words = [*command_words(fixed), *refit_words(study, best.params), "hydra.sweep.subdir=refit"]
    (returned,) = launcher.launch([words], initial_job_idx=study.total)
    error = _error(returned)
    if error is not None:
        raise error
