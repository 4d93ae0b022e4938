"""Creates training jobs with the SDK's ModelTrainer."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account, configure_sdk, silence_sdk
from imgcls.aws.naming import tags
from imgcls.aws.refusals import explain_refusals
from imgcls.config.starts import is_multilabel
from imgcls.errors import UserError, nearest
from imgcls.launch.sagemaker.bundle import (
    BUNDLE,
    find_user_modules,
    write_bundle,
)
from imgcls.launch.sagemaker.options import JobOptions
from imgcls.models.choices import MULTILABEL_METRICS, SINGLE_LABEL_METRICS
from imgcls.system.extras import need

log = logging.getLogger(__name__)

COMMAND = "exec python3 -m imgcls.launch.sagemaker.container"
SCRIPT = "/opt/ml/input/data/sm_drivers/sm_train.sh"
# With `exec` Python replaces the shells, so that it receives SIGTERM.
ARGUMENTS = ["-c", f"chmod +x {SCRIPT} && exec {SCRIPT}"]
METRICS = ("lr", "train/loss", "train/accuracy", *SINGLE_LABEL_METRICS, "seconds")
LABEL_METRICS = ("lr", "train/loss", *MULTILABEL_METRICS, "seconds")
IMAGE_FAMILIES = ("pytorch", "pytorch-amzn2023")
NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?"  # as `metric_line` prints it, without nan and inf
MAX_REGEX_LENGTH = 500  # of CreateTrainingJob
MAX_DEFINITIONS = 40  # per job


@dataclass(frozen=True)
class JobPlan:
    """A job to create.

    Args:
        base: prefix of its name, see `naming.base_name`.
        config: the composed configuration as plain dictionaries.
        overrides: the overrides it was composed from.
        options: `config["launch"]`.
        channels: S3 URIs of uploaded inputs by channel name.
        input_mode: of the channel `data`: File or FastFile.
        requirements: further lines for pip; they replace imgcls's pins of the same packages.
        more: returns the request fields that ModelTrainer lacks, given the job's name.
    """

    base: str
    config: Mapping[str, Any]
    overrides: list[str]
    options: JobOptions
    channels: Mapping[str, str]
    input_mode: str = "File"
    requirements: Sequence[str] = ()
    more: Callable[[str], Mapping[str, Any]] = lambda job: {}


def create_job(account: Account, plan: JobPlan) -> str:
    """Upload the source, create the training job, and return its name. Raises UserError if AWS refuses."""
    options, places = plan.options, account.places
    configure_sdk()
    log.info("Loading the SageMaker SDK.")
    need("sagemaker.train.model_trainer")
    from sagemaker.core.training import configs
    from sagemaker.train.model_trainer import ModelTrainer

    silence_sdk()

    with tempfile.TemporaryDirectory(prefix="imgcls-") as work, explain_refusals("create the training job"):
        bundle = Path(work) / BUNDLE
        job = {"config": plan.config, "overrides": plan.overrides, "base": plan.base}
        write_bundle(
            bundle,
            job,
            code=find_user_modules(plan.config, options.code),
            requirements=options.requirements_for([plan.config], plan.requirements),
            wheels=options.wheels_folder,
        )
        trainer = ModelTrainer(
            sagemaker_session=account.sdk_session(),
            role=account.role_arn,
            base_job_name=plan.base,
            input_s3_key_prefix=places.jobs,
            training_image=options.image or image_uri(options, account.region),
            source_code=configs.SourceCode(source_dir=str(bundle), command=COMMAND),
            compute=configs.Compute(
                instance_type=options.instance_type,
                instance_count=options.instance_count,
                volume_size_in_gb=options.volume_size,
                volume_kms_key_id=options.volume_key,
                keep_alive_period_in_seconds=options.keep_alive or None,
                enable_managed_spot_training=options.spot,
            ),
            stopping_condition=configs.StoppingCondition(
                max_runtime_in_seconds=options.max_runtime,
                max_wait_time_in_seconds=options.longest_wait if options.spot else None,
            ),
            networking=configs.Networking(
                subnets=options.subnets or None,
                security_group_ids=options.security_groups or None,
                enable_network_isolation=options.network_isolation,
                enable_inter_container_traffic_encryption=options.encrypt_traffic,
            ),
            output_data_config=configs.OutputDataConfig(
                s3_output_path=places.uri("jobs"), kms_key_id=options.kms_key, compression_type="GZIP"
            ),
            checkpoint_config=configs.CheckpointConfig(
                s3_uri=places.checkpoints(plan.base), local_path="/opt/ml/checkpoints"
            ),
            environment={name: str(value) for name, value in options.environment.items()},
            tags=[
                configs.Tag(key=tag["Key"], value=tag["Value"])
                for tag in tags("training-job", {name: str(value) for name, value in options.tags.items()})
            ],
        )
        metrics = LABEL_METRICS if is_multilabel(plan.config) else METRICS
        names = [*metrics, *(f"val/{name}" for name in plan.config.get("metrics") or {})]
        trainer.with_metric_definitions(
            [configs.MetricDefinition(name=d["Name"], regex=d["Regex"]) for d in metric_definitions(names)]
        )
        channels = [
            configs.InputData(channel_name=name, data_source=uri) for name, uri in sorted(plan.channels.items())
        ]
        with _extra_fields(account, plan) as names:
            try:
                trainer.train(input_data_config=channels, wait=False, logs=False)
            except Exception as error:  # the SDK asks for more than the job
                if not account.created.intersection(names):
                    raise
                log.debug("The job was created before this: %s", error)
    return names[-1]


def image_uri(options: JobOptions, region: str) -> str:
    """URI of AWS's PyTorch training image for the version and instance type. Raises UserError if there is none."""
    from sagemaker.core import image_uris

    version = str(options.framework_version)
    short = ".".join(version.split(".")[:2])
    reasons = []
    # AWS writes newer versions as 2.14, older ones as 2.10.0.
    ways = dict.fromkeys((version, short, f"{short}.0")) if version in (short, f"{short}.0") else [version]
    for family, written in itertools.product(IMAGE_FAMILIES, ways):
        try:
            return str(
                image_uris.retrieve(
                    family, region, version=written, instance_type=options.instance_type, image_scope="training"
                )
            )
        except ValueError as error:
            reasons.append(" ".join(str(error).split()))
    if any("unsupported region" in reason.lower() for reason in reasons) and not _has_images(region):
        raise UserError(f"launch.region={region}: AWS has no PyTorch images in this region. Give launch.image=URI.")
    words = {word.rstrip(".,") for reason in reasons for word in reason.partition("Supported")[2].split()}
    known = sorted(word for word in words if re.fullmatch(r"2\.([89]|\d\d)(\.\d+)?", word))
    raise UserError(
        f"launch.framework_version={version}: AWS has no such PyTorch training image. {nearest(version, known)}"
    )


def _has_images(region: str) -> bool:
    """Whether the SDK knows an image for the default version there: not all families are in all regions."""
    from sagemaker.core import image_uris

    for family, version in zip(IMAGE_FAMILIES, ("2.10.0", "2.14"), strict=True):
        with contextlib.suppress(ValueError):
            image_uris.retrieve(family, region, version=version, instance_type="ml.m5.large", image_scope="training")
            return True
    return False


def image_version(image: str) -> str | None:
    """The version of PyTorch in an image of AWS; None if its URI does not tell.

    >>> image_version("763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.14-cpu-amzn2023-sagemaker")
    '2.14'
    """
    match = re.search(r"/pytorch(?:-training)?:(\d+\.\d+(?:\.\d+)?)-", image)
    return match[1] if match else None


@contextlib.contextmanager
def _extra_fields(account: Account, plan: JobPlan) -> Iterator[list[str]]:
    """Add the fields that ModelTrainer lacks to the request of this job; yields the names of the jobs requested."""
    names: list[str] = []

    def fields(job: str) -> dict[str, Any]:
        names.append(job)
        return {"ContainerArguments": ARGUMENTS, "InputMode": {"data": plan.input_mode}, **plan.more(job)}

    account.additions[plan.base] = fields
    try:
        yield names
    finally:
        del account.additions[plan.base]


def metric_definitions(names: Iterable[str]) -> list[dict[str, str]]:
    """The metric definitions of CreateTrainingJob for `names`, which `imgcls.callbacks.history.metric_line` prints.

    A metric that is not finite in an epoch has no value for it.

    >>> metric_definitions(["val/loss"])[0]["Name"]
    'val/loss'

    Raises ValueError for more metrics, or longer names, than SageMaker accepts.
    """
    definitions = [{"Name": name, "Regex": _regex(name)} for name in dict.fromkeys(names)]
    if len(definitions) > MAX_DEFINITIONS:
        raise ValueError(f"{len(definitions)} metrics, but a job can have at most {MAX_DEFINITIONS}")
    for definition in definitions:
        if len(definition["Regex"]) > MAX_REGEX_LENGTH:
            raise ValueError(f"the name of the metric {definition['Name']!r} is too long for SageMaker")
    return definitions


def _regex(name: str) -> str:
    return rf"imgcls epoch=[0-9]+ (?:.* )?{re.escape(name)}=({NUMBER})(?:\s|$)"
