"""What is deployed: the model of a run, or of a finished training job, packed for the container."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.deploy.names import endpoint_name, name_of_job, name_of_run
from imgcls.deploy.options import SERVERLESS, Options
from imgcls.deploy.record import EndpointRecord
from imgcls.deploy.requests import MEMORY
from imgcls.errors import UserError
from imgcls.portable import DESCRIPTION, WEIGHTS

log = logging.getLogger(__name__)

MEGABYTE = 1 << 20
REQUEST_LIMIT = 6 * MEGABYTE
SERVERLESS_LIMIT = 4 * MEGABYTE
SERVER_MEMORY = 900  # MB of the container's server, Python and PyTorch with one worker, before any weights
COPIES = 2  # of the weights: the file while it is read, and the network


@dataclass(frozen=True)
class Source:
    """A run with its model.

    Attributes:
        folder: of the run.
        model: the portable model's folder.
        name: of the endpoint, where the command names none.
    """

    folder: Path
    model: Path
    name: str


def source_of_run(options: Options) -> Source:
    """The run that the options name. Raises UserError where it has no model."""
    from imgcls.serve.predictor import model_folder

    folder = Path(str(options.run)).expanduser()
    model = model_folder(folder)
    run = model.parent if model != folder else folder
    record = EndpointRecord.read(run)
    name = endpoint_name(options.name) if options.name else record.name if record else _name(run)
    return Source(run, model, name)


def _name(run: Path) -> str:
    """Of the run's training job, if it had one in AWS; of its folder otherwise."""
    from imgcls.launch.sagemaker.record import JobRecord

    record = JobRecord.read(run)
    if record is not None and record.where == "sagemaker" and record.job:
        return name_of_job(record.job)
    return name_of_run(run)


def source_of_job(account: Account, options: Options) -> Source:
    """The run of a training job, fetched if it is not here. Raises UserError where the job has not finished."""
    from imgcls.launch.sagemaker.progress import describe
    from imgcls.runs.reading import read_status
    from imgcls.serve.predictor import model_folder

    job = str(options.job)
    folder = Path(options.to or f"runs/{job}").expanduser()
    if read_status(folder).get("state") != "finished":
        status = describe(account, job)["TrainingJobStatus"]
        if status != "Completed":
            raise UserError(f"The job {job} has not finished ({status}): python -m imgcls.jobs attach job={job}")
        from imgcls.launch.sagemaker.results import bring_home
        from imgcls.sweeps.sagemaker.trial import read_configuration

        bring_home(account, job, folder, poll=options.poll, read=read_configuration)
    return Source(folder, model_folder(folder), endpoint_name(options.name) if options.name else name_of_job(job))


def request_limit(mode: str) -> int:
    """Bytes of a request to an endpoint of the mode; imgcls takes 6 MB also where AWS would take more."""
    return SERVERLESS_LIMIT if mode == SERVERLESS else REQUEST_LIMIT


def check_memory(model: Path, memory: int | None) -> None:
    """Raise UserError where a serverless endpoint of `memory` MB has no room for the model."""
    weights = (model / WEIGHTS).stat().st_size / MEGABYTE
    needs = SERVER_MEMORY + COPIES * weights
    chosen = memory or MEMORY
    if needs > chosen:
        enough = next((size for size in range(1024, 6144 + 1, 1024) if size >= needs), None)
        advice = f"Say memory={enough}." if enough else "It fits in no serverless endpoint: use mode=real-time."
        raise UserError(
            f"memory={chosen}: the model has {weights:.0f} MB of weights and needs about {needs:.0f} MB. {advice}"
        )


def describe_source(source: Source) -> str:
    """Architecture and classes, in words."""
    import json

    content: dict[str, Any] = json.loads((source.model / DESCRIPTION).read_text(encoding="utf-8"))
    return f"{content['architecture']['name']}, {len(content['class_names'])} classes"
