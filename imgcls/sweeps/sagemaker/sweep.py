"""`hydra/sweeper=sagemaker`: from Hydra's command line to a tuning job, and its results back to the sweep's folder."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from imgcls.aws.account import Account
from imgcls.aws.naming import tuning_name
from imgcls.config.composition import check, plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.channels import upload_channels
from imgcls.launch.sagemaker.launcher import SageMaker
from imgcls.launch.sagemaker.options import check_job
from imgcls.launch.sagemaker.record import JobRecord
from imgcls.sweeps import outcome
from imgcls.sweeps.hydra import check_space, hydra_launcher, refit, study_name, sweep_folder
from imgcls.sweeps.options import SearchOptions, search_options
from imgcls.sweeps.remote_search import RemoteSearch
from imgcls.sweeps.sagemaker.job import TuningPlan, create_tuning_job
from imgcls.sweeps.sagemaker.options import TuningOptions, check_tuning, total_trials
from imgcls.sweeps.sagemaker.results import bring_search_home
from imgcls.sweeps.sagemaker.state import describe_tuning, is_running
from imgcls.sweeps.sagemaker.trial import group_key
from imgcls.sweeps.space import Choice, Dimension, Space, parse_space, space_words
from imgcls.sweeps.trials import REST, command_words
from imgcls.system.cache import alone
from imgcls.system.interrupts import Interrupted, StopSignals
from imgcls.system.logs import logging_to

log = logging.getLogger(__name__)

# Words of a command that change how a search is followed, not what is found.
HOW = ("launch.wait", "launch.poll", "search.refit")
MOST_CONFIGURATIONS = 200  # combinations of groups; each of them travels in the source bundle
TRIAL = ("resume=auto", "test=false", "quiet=false", "export.onnx=false", f"checkpoint.rest_seconds={REST}")


def sweep(
    context: HydraContext, task: TaskFunction, config: DictConfig, arguments: Sequence[str]
) -> RemoteSearch | None:
    """Make the tuning job that `arguments` describe, or find it; wait for it; bring its results here.

    Args: as `imgcls.sweeps.hydra.sweep`.

    Returns:
        The search; None where it was finished before, or is not waited for.

    Raises:
        UserError: for what the user can mend.
    """
    searched: Any = OmegaConf.to_container(config.search, resolve=True)
    tuning = TuningOptions(**searched.pop("tuning"))
    space, fixed = parse_space([*space_words(searched.pop("space")), *arguments], context.config_loader)
    if not space.dimensions:
        raise UserError("There is nothing to search: give a space, such as 'optim.lr=tag(log,interval(1e-3,1e-1))'.")
    search = search_options(searched, int(config.seed))
    launcher = _launcher(config)
    check_tuning(tuning, search, space, {"launch": plain(config.launch), "trainer": plain(config.trainer)})
    groups, configs = configurations(context, config, fixed, space)
    for one in configs.values():
        check_job(plain(OmegaConf.create(one)))
    check_space(context, config, fixed, space)
    data = OmegaConf.select(config, "hydra.runtime.choices.data") or "search"
    name = search.study or study_name(data, fixed, space, how=HOW)
    folder = sweep_folder(config, name)
    total = total_trials(tuning, search, space)
    found = RemoteSearch(name, search, space, folder, total)

    folder.mkdir(parents=True, exist_ok=True)
    record = JobRecord.read(folder)
    if record is not None and record.finished:
        print(f"{outcome.relative(folder)} holds this search, finished; remove it to search again.", flush=True)
        return None
    words = command_words(fixed)
    first = plain(OmegaConf.create(next(iter(configs.values()))))
    with logging_to(folder / "launch.log"), StopSignals(), launcher.account(first) as account:
        with alone(folder / JobRecord.FILE):
            job = launcher.current_tuning(account, folder, _is_there)
            if job is None:
                job = _new_job(account, launcher, folder, tuning, found, (groups, configs, words))
        if not launcher.wait:
            log.info("It goes on by itself: python -m imgcls.jobs attach run=%s", outcome.relative(folder))
            return None
        try:
            bring_search_home(account, job, found, words, poll=launcher.poll)
        except (Interrupted, KeyboardInterrupt) as error:
            launcher.left_running(job, error)
            raise
    if search.refit:
        refit(hydra_launcher(context, task, config), found, fixed)
    return found


def configurations(
    context: HydraContext, config: DictConfig, fixed: Sequence[str], space: Space
) -> tuple[list[str], dict[str, Any]]:
    """The names in `space` that are groups, and the unresolved configuration for each choice of them.

    Options are set in the container, before anything is resolved: what is computed from them is so in each trial.

    Raises UserError for one that cannot be right, or needs other pictures or weights than the others.
    """
    groups = [one for one in space if _is_group(config, one.name)]
    count = math.prod(one.count for one in groups)
    if count > MOST_CONFIGURATIONS:
        raise UserError(
            f"{count} combinations of {', '.join(one.name for one in groups)} are too many for a tuning job."
        )
    usual = {one.name: _usual(one) for one in space}
    found: dict[str, Any] = {}
    read: set[tuple[str, ...]] = set()
    for values in itertools.product(*(one.grid() for one in groups)):
        chosen = {one.name: value for one, value in zip(groups, values, strict=True)}
        words = space.words({**usual, **chosen})
        composed = context.config_loader.load_sweep_config(config, [*fixed, *TRIAL, *words])
        with open_dict(composed):
            composed.run_dir = "."
            del composed["hydra"]
        check(composed)
        own = [word for one, word in zip(space, words, strict=True) if one.name in chosen]
        found[group_key(own)] = OmegaConf.to_container(composed)
        read.add((str(composed.data.get("root")), str(composed.data._target_), str(composed.model.weights)))
    if len(read) > 1:
        raise UserError(
            f"{', '.join(one.name for one in groups)}: the trials of a tuning job read the same pictures and weights, "
            "which are uploaded once. Search over one data set."
        )
    return [one.name for one in groups], found


def _usual(dimension: Dimension) -> Any:
    return dimension.values[0] if isinstance(dimension, Choice) else dimension.low


def _is_group(config: DictConfig, name: str) -> bool:
    bare, missing = name.lstrip("+"), object()
    if "." in bare:
        return False
    there = OmegaConf.select(config, bare, default=missing)
    return there is missing or isinstance(there, DictConfig)


def _launcher(config: DictConfig) -> SageMaker:
    launcher = instantiate(config.launch, _convert_="all")
    if not isinstance(launcher, SageMaker):
        raise UserError(
            "hydra/sweeper=sagemaker makes a tuning job of SageMaker: it needs launch=sagemaker, or launch=rehearsal "
            "to try it here. On this machine hydra/sweeper=optuna searches."
        )
    return launcher


def _is_there(account: Account, name: str) -> bool:
    """Whether the tuning job runs, or has results. Says what became of one that has not."""
    description = describe_tuning(account, name)
    if description is None:
        return False
    status = description["HyperParameterTuningJobStatus"]
    if is_running(description):
        log.info("Attached to %s, which runs already.", name)
    elif status == "Failed":
        log.info(
            "%s failed (%s); a new tuning job is made.", name, description.get("FailureReason") or "no reason given"
        )
        return False
    elif status == "Stopped":
        log.info(
            "%s was stopped, and is not gone on with. Another one learns from it: search.study=NAME "
            "search.tuning.warm_start=[%s]",
            name,
            name,
        )
    return True


def _new_job(
    account: Account,
    launcher: SageMaker,
    folder: Path,
    tuning: TuningOptions,
    found: RemoteSearch,
    travels: tuple[list[str], Mapping[str, Any], list[str]],
) -> str:
    groups, configs, words = travels
    resolved = [plain(OmegaConf.create(one)) for one in configs.values()]
    config, epochs = resolved[0], max(one["trainer"]["max_epochs"] or -1 for one in resolved)
    name = tuning_name(launcher.name or config["model"]["name"])
    role = account.role_arn  # before anything is uploaded
    log.debug("The trials run as %s.", role)
    record = JobRecord(
        name,
        launcher.where,
        account.region,
        account.places.bucket,
        account.places.prefix,
        job=name,
        profile=launcher.profile,
    )
    channels = upload_channels(account, config)
    record.write(folder)
    search: SearchOptions = found.options
    create_tuning_job(
        account, TuningPlan(name, found.space, groups, configs, epochs, words, launcher, search, tuning, channels)
    )
    log.info(
        "Made the tuning job %s: %d trials, %d at a time, each on %d x %s.",
        name,
        found.total,
        search.workers,
        launcher.instance_count,
        launcher.instance_type,
    )
    return name
