"""`hydra/sweeper=sagemaker`: from Hydra's command line to a tuning job, and its results back to the sweep's folder."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from imgcls.aws.account import Account
from imgcls.aws.naming import tuning_name
from imgcls.config.composition import plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.channels import upload_channels
from imgcls.launch.sagemaker.launcher import SageMaker, say_versions
from imgcls.launch.sagemaker.options import check_job
from imgcls.launch.sagemaker.preflight import input_mode
from imgcls.launch.sagemaker.progress import warn_if_created
from imgcls.launch.sagemaker.record import JobRecord
from imgcls.launch.sagemaker.training_job import image_uri
from imgcls.sweeps import outcome
from imgcls.sweeps.hydra import (
    check_space,
    compose_trial,
    hydra_launcher,
    name_and_folder,
    read_search,
    refit,
    sample_values,
)
from imgcls.sweeps.remote_search import RemoteSearch
from imgcls.sweeps.sagemaker.hydra_launcher import create_launcher
from imgcls.sweeps.sagemaker.job import TuningPlan, create_tuning_job
from imgcls.sweeps.sagemaker.options import TuningOptions, check_tuning, total_trials
from imgcls.sweeps.sagemaker.results import bring_search_home
from imgcls.sweeps.sagemaker.state import describe_tuning, is_running
from imgcls.sweeps.sagemaker.trial import group_key
from imgcls.sweeps.space import Space
from imgcls.sweeps.trials import REST_SECONDS, command_overrides, is_option
from imgcls.system.cache import alone
from imgcls.system.interrupts import StopSignals
from imgcls.system.logs import log_to_file

log = logging.getLogger(__name__)

# Overrides that change how a search is followed, not what it finds.
FOLLOW_OPTIONS = ("launch.wait", "launch.poll", "search.refit")
MAX_CONFIGURATIONS = 200  # combinations of groups, each of which is packed into the source bundle
TRIAL = (
    "resume=auto",
    "test=false",
    "quiet=false",
    "export.onnx=false",
    "export.calibrate=false",
    f"checkpoint.rest_seconds={REST_SECONDS}",
)


def sweep(
    context: HydraContext, task: TaskFunction, config: DictConfig, arguments: Sequence[str]
) -> RemoteSearch | None:
    """Create the tuning job that `arguments` describe, or find it; wait for it; fetch its results.

    Args: as `imgcls.sweeps.hydra.sweep`.

    Returns:
        The search; None where it had finished before, or is not waited for.

    Raises:
        UserError: for what the user can fix.
    """
    searched: Any = OmegaConf.to_container(config.search, resolve=True)
    tuning = TuningOptions(**searched["tuning"])
    space, fixed, options = read_search(
        searched, int(config.seed), arguments, context.config_loader, config.get("metrics")
    )
    launcher = create_launcher(config, "hydra/sweeper=sagemaker")
    check_tuning(tuning, options, space, {"launch": plain(config.launch), "trainer": plain(config.trainer)})
    groups, configs = configurations(context, config, fixed, space)
    resolved = [plain(OmegaConf.create(cfg)) for cfg in configs.values()]
    for cfg in resolved:
        check_job(cfg)
    check_space(context, config, fixed, space)
    name, folder = name_and_folder(config, options, fixed, space, FOLLOW_OPTIONS)
    found = RemoteSearch(name, options, space, folder, total_trials(tuning, options, space))

    folder.mkdir(parents=True, exist_ok=True)
    record = JobRecord.read(folder)
    if record is not None and record.finished:
        print(f"{outcome.relative(folder)} holds this search, finished; remove it to search again.", flush=True)
        return None
    overrides = command_overrides(fixed)
    with log_to_file(folder / "launch.log"), StopSignals(), launcher.account(resolved[0]) as account:
        with alone(folder / JobRecord.FILE):
            job = launcher.current_tuning(account, folder, _is_usable)
            if job is None:
                job = tuning_name(launcher.name or resolved[0]["model"]["name"])
                channels = _record_job(account, launcher, folder, job, resolved)
                mode = input_mode(resolved[0], launcher)
                epochs = max(cfg["trainer"]["max_epochs"] or -1 for cfg in resolved)
                plan = TuningPlan(
                    job, space, groups, configs, epochs, overrides, launcher, options, tuning, channels, mode
                )
                launcher.say_cost(account, found.total)
                with warn_if_created("the tuning job", f"python -m imgcls.jobs stop job={job}"):
                    create_tuning_job(account, plan)
                log.info(
                    "Created the tuning job %s: %d trials, %d at a time, each on %d x %s.",
                    *(job, found.total, options.workers, launcher.instance_count, launcher.instance_type),
                )
        if not launcher.wait:
            log.info("It runs without this command. Follow it: imgcls.jobs attach run=%s", outcome.relative(folder))
            return None
        bring_search_home(account, job, found, overrides, launcher.poll, launcher.last_words)
    if options.refit:
        refit(hydra_launcher(context, task, config), found, fixed)
    return found


def configurations(
    context: HydraContext, config: DictConfig, fixed: Sequence[str], space: Space
) -> tuple[list[str], dict[str, Any]]:
    """The names in `space` that are groups, and the unresolved configuration for each choice of them.

    A trial sets its options in it before anything is resolved, so that what depends on them is computed in each trial.

    Raises UserError for one that cannot be right, or needs other images or weights than the others.
    """
    groups = [dimension for dimension in space if _is_group(config, dimension.name)]
    names = [group.name for group in groups]
    count = math.prod(group.count for group in groups)
    if count > MAX_CONFIGURATIONS:
        raise UserError(f"{count} combinations of {', '.join(names)} are too many for a tuning job.")
    configs: dict[str, Any] = {}
    inputs: set[tuple[str, ...]] = set()
    for values in itertools.product(*(group.grid() for group in groups)):
        overrides = space.overrides({**sample_values(space), **dict(zip(names, values, strict=True))})
        composed = compose_trial(context, config, [*fixed, *TRIAL, *overrides])
        chosen = [text for name, text in zip(space.names, overrides, strict=True) if name in names]
        configs[group_key(chosen)] = OmegaConf.to_container(composed)
        data = composed.data
        inputs.add((str(data.get("root")), str(data.get("table")), str(data._target_), str(composed.model.weights)))
    if len(inputs) > 1:
        raise UserError(
            f"{', '.join(names)}: the trials of a tuning job read the same images and weights, "
            "which are uploaded once. Search over one data set."
        )
    return names, configs


def _is_group(config: DictConfig, name: str) -> bool:
    bare = name.lstrip("+")
    return "." not in bare and not is_option(config, bare)


def _is_usable(account: Account, name: str) -> bool:
    """Whether the tuning job runs or has results. Logs what became of one that has ended early."""
    description = describe_tuning(account, name)
    if description is None:
        return False
    status = description["HyperParameterTuningJobStatus"]
    if is_running(description):
        log.info("Attached to %s, which is running.", name)
    elif status == "Failed":
        log.info("%s failed (%s); creating another.", name, description.get("FailureReason") or "no reason given")
        return False
    elif status == "Stopped":
        advice = f"search.study=NAME search.tuning.warm_start=[{name}]"
        log.info("%s was stopped and cannot be resumed. Let another one learn from it: %s", name, advice)
    return True


def _record_job(
    account: Account, launcher: SageMaker, folder: Path, job: str, configs: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """Upload the channels of a new tuning job, return them, and record the job in the sweep's folder."""
    log.debug("The trials run as %s.", account.role_arn)  # which raises before anything is uploaded
    launcher.check_limits(account, configs[0])
    image = launcher.image or image_uri(launcher, account.region)
    say_versions(image)
    launcher.check_packages(image, configs)
    channels = upload_channels(account, configs[0])
    bucket, prefix = account.places.bucket, account.places.prefix
    record = JobRecord(job, launcher.where, account.region, bucket, prefix, job=job, profile=launcher.profile)
    record.write(folder)
    return channels
