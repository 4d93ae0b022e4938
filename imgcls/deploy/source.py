"""The model to deploy: of a run, or of a finished training job."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.deploy import registry
from imgcls.deploy.lookup import default_name
from imgcls.deploy.names import endpoint_name, name_of_job
from imgcls.deploy.options import MEMORY_SIZES, SERVERLESS, Options
from imgcls.deploy.record import EndpointRecord
from imgcls.deploy.requests import MEMORY_MB
from imgcls.errors import UserError
from imgcls.launch.sagemaker.progress import describe
from imgcls.launch.sagemaker.results import fetch_job
from imgcls.portable import DESCRIPTION, WEIGHTS
from imgcls.runs.reading import read_status
from imgcls.serve.predictor import model_folder
from imgcls.sweeps.sagemaker.trial import read_configuration

MEGABYTE = 1 << 20
REQUEST_LIMIT = 6 * MEGABYTE
SERVERLESS_LIMIT = 4 * MEGABYTE
SERVER_MEMORY_MB = 900  # MB of the server, Python and PyTorch with one worker, without weights
COPIES = 2  # of the weights: the file that is read, and the network


@dataclass(frozen=True)
class Source:
    """A run with its model.

    Attributes:
        folder: of the run.
        model: folder of the portable model.
        name: of the endpoint.
        package: ARN of the registered version that it is; None: it is none.
    """

    folder: Path
    model: Path
    name: str
    package: str | None = None


def find_run(run: str) -> tuple[Path, Path]:
    """The folders of a run and of its model. Raises UserError if it has none."""
    folder = Path(run).expanduser()
    model = model_folder(folder)
    return model.parent if model != folder else folder, model


def source_of_run(account: Account, run: str, name: str | None) -> Source:
    """The run in this folder, with its endpoint's name unless another `name` is given. Raises UserError."""
    folder, model = find_run(run)
    record = EndpointRecord.read(folder)
    given = endpoint_name(name) if name else record.name if record else default_name(folder, account)
    return Source(folder, model, given)


def find_source(account: Account, options: Options) -> Source:
    """The run, job or registered version of the options, downloaded if necessary. Raises UserError."""
    if options.run:
        return source_of_run(account, options.run, options.name)
    return source_of_package(account, options) if options.package else source_of_job(account, options)


def source_of_job(account: Account, options: Options) -> Source:
    """The run of a training job, downloaded if necessary. Raises UserError if the job has not finished."""
    job = str(options.job)
    folder = Path(options.to or f"runs/{job}").expanduser()
    if read_status(folder).get("state") != "finished":
        status = describe(account, job)["TrainingJobStatus"]
        if status != "Completed":
            raise UserError(f"The job {job} has not finished ({status}): python -m imgcls.jobs attach job={job}")
        fetch_job(account, job, folder, poll=options.poll, read=read_configuration)
    return Source(folder, model_folder(folder), endpoint_name(options.name) if options.name else name_of_job(job))


def source_of_package(account: Account, options: Options) -> Source:
    """The registered version of the options, downloaded. Raises UserError if it has not been approved."""
    package = registry.find_package(account, str(options.package))
    registry.check_approved(package)
    folder = Path(options.to or f"runs/{package.group}-{package.version}").expanduser()
    model = registry.download(account, package, folder)
    return Source(folder, model, endpoint_name(options.name or package.group), package.arn)


def request_limit(mode: str) -> int:
    """Maximum bytes of a request; 6 MB also where AWS would accept more."""
    return SERVERLESS_LIMIT if mode == SERVERLESS else REQUEST_LIMIT


def check_memory(model: Path, memory: int | None) -> None:
    """Raise UserError if the model does not fit into a serverless endpoint with `memory` MB."""
    weights = (model / WEIGHTS).stat().st_size / MEGABYTE
    needs = SERVER_MEMORY_MB + COPIES * weights
    chosen = memory or MEMORY_MB
    if needs > chosen:
        enough = next((size for size in MEMORY_SIZES if size >= needs), None)
        advice = f"Use memory={enough}." if enough else "It is too large for serverless endpoints: use mode=real-time."
        raise UserError(
            f"memory={chosen}: the model has {weights:.0f} MB of weights and needs about {needs:.0f} MB. {advice}"
        )


def describe_model(model: Path) -> str:
    """Architecture and number of classes of a portable model as text."""
    content: dict[str, Any] = json.loads((model / DESCRIPTION).read_text(encoding="utf-8"))
    return f"{content['architecture']['name']}, {len(content['class_names'])} classes"
