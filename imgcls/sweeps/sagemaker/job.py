"""The request that creates a tuning job.

The SDK's HyperparameterTuner is not used: it does not ship the source of our command, ignores the trainer's metric
definitions, names jobs by the minute, and converts values to text with `str`; the request itself is plain.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account, configure_sdk
from imgcls.aws.naming import tags
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import split_uri
from imgcls.config.choices import TUNING_STRATEGIES, WARM_STARTS
from imgcls.launch.sagemaker.bundle import (
    BUNDLE,
    find_user_modules,
    write_bundle,
)
from imgcls.launch.sagemaker.options import JobOptions
from imgcls.launch.sagemaker.training_job import METRICS, image_uri, metric_definitions
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.sagemaker.options import TuningOptions, most_epochs, total_trials
from imgcls.sweeps.sagemaker.ranges import Ranges
from imgcls.sweeps.sagemaker.trial import SCRIPT, SCRIPT_TEXT, SIGNALS, SIGNALS_TEXT
from imgcls.sweeps.space import Space

log = logging.getLogger(__name__)

CODE = "/opt/ml/input/data/code"
# Hyperparameters of AWS's toolkit, as JSON. As a channel, the code needs no network. The native launcher leaves our
# lines as they are; otherwise the toolkit reads them through a pipe and may cut one in two.
TOOLKIT = {
    "sagemaker_program": SCRIPT,
    "sagemaker_submit_directory": f"{CODE}/{BUNDLE}",
    "sagemaker_toolkit_native_launcher_enabled": True,
}


@dataclass(frozen=True)
class TuningPlan:
    """What a new tuning job is created from.

    Args:
        name: of the job.
        space: what is searched over.
        groups: the names in it that are configuration groups.
        configs: the unresolved configuration for each choice of groups, by `trial.group_key`.
        epochs: of the longest trial; ignored where they are searched over.
        overrides: those that all trials share.
        options: the options `launch.*`.
        search, tuning: the options `search.*` and `search.tuning.*`.
        channels: channel name to s3:// address of the uploads.
        input_mode: of the channel `data`: File or FastFile.
    """

    name: str
    space: Space
    groups: Sequence[str]
    configs: Mapping[str, Any]
    epochs: int | None
    overrides: Sequence[str]
    options: JobOptions
    search: SearchOptions
    tuning: TuningOptions
    channels: Mapping[str, str]
    input_mode: str = "File"


def create_tuning_job(account: Account, plan: TuningPlan) -> None:
    """Upload the source and create the tuning job. Raises UserError for what AWS refuses."""
    options = plan.options
    configure_sdk()
    image = options.image or image_uri(options, account.region)
    code = account.places.uri("jobs", plan.name, "code")
    with explain_refusals("upload the source of the tuning job"):
        _upload_source(account, plan, code)
    with explain_refusals("create the tuning job"):
        account.client("sagemaker").create_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=plan.name,
            HyperParameterTuningJobConfig=search_request(plan),
            TrainingJobDefinition=trial_request(account, plan, image, {**plan.channels, "code": f"{code}/"}),
            Tags=tags("tuning-job", {name: str(value) for name, value in options.tags.items()}),
            **warm_start_request(plan.tuning),
        )


def search_request(plan: TuningPlan) -> dict[str, Any]:
    """The field HyperParameterTuningJobConfig."""
    tuning, search = plan.tuning, plan.search
    ((metric, way),) = search.objectives.items()
    limits = _without_none(
        MaxNumberOfTrainingJobs=total_trials(tuning, search, plan.space),
        MaxParallelTrainingJobs=search.workers,
        MaxRuntimeInSeconds=tuning.max_runtime,
    )
    criteria = _without_none(
        TargetObjectiveMetricValue=tuning.target,
        BestObjectiveNotImproving=tuning.patience and {"MaxNumberOfTrainingJobsNotImproving": tuning.patience},
        ConvergenceDetected={"CompleteOnConvergence": "Enabled"} if tuning.converge else None,
    )
    request = {
        "Strategy": TUNING_STRATEGIES[tuning.strategy],
        "HyperParameterTuningJobObjective": {"Type": "Maximize" if way == "max" else "Minimize", "MetricName": metric},
        "ResourceLimits": limits,
        "ParameterRanges": Ranges(plan.space, every_value=tuning.strategy == "grid").request,
        "TrainingJobEarlyStoppingType": "Auto" if tuning.stop_early else "Off",
        "RandomSeed": search.seed,
        "TuningJobCompletionCriteria": criteria or None,
    }
    if tuning.strategy == "hyperband":
        # one unit per metric line, and one more for the last line, which repeats the kept epoch
        longest = most_epochs(plan.space, plan.epochs) or 1
        resource = {"MinResource": tuning.min_epochs, "MaxResource": longest + 1}
        request["StrategyConfig"] = {"HyperbandStrategyConfig": resource}
    return _without_none(**request)


def warm_start_request(tuning: TuningOptions) -> dict[str, Any]:
    """The field WarmStartConfig; empty where there are no earlier jobs to learn from."""
    if not tuning.warm_start:
        return {}
    parents = [{"HyperParameterTuningJobName": name} for name in tuning.warm_start]
    kind = WARM_STARTS[tuning.warm_start_type]
    return {"WarmStartConfig": {"ParentHyperParameterTuningJobs": parents, "WarmStartType": kind}}


def trial_request(account: Account, plan: TuningPlan, image: str, channels: Mapping[str, str]) -> dict[str, Any]:
    """The field TrainingJobDefinition."""
    options = plan.options
    request = {
        "StaticHyperParameters": {name: json.dumps(value) for name, value in TOOLKIT.items()},
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "MetricDefinitions": metric_definitions(
                [*METRICS, *(name for name in plan.search.objectives if name not in METRICS)]
            ),
        },
        "RoleArn": account.role_arn,
        "InputDataConfig": [
            _channel(name, uri, plan.input_mode if name == "data" else "File") for name, uri in sorted(channels.items())
        ],
        "OutputDataConfig": _without_none(S3OutputPath=account.places.uri("jobs"), KmsKeyId=options.kms_key),
        "ResourceConfig": _without_none(
            InstanceType=options.instance_type,
            InstanceCount=options.instance_count,
            VolumeSizeInGB=options.volume_size,
            VolumeKmsKeyId=options.volume_key,
            KeepAlivePeriodInSeconds=options.keep_alive or None,
        ),
        "StoppingCondition": _without_none(
            MaxRuntimeInSeconds=options.max_runtime,
            MaxWaitTimeInSeconds=options.longest_wait if options.spot else None,
        ),
        "VpcConfig": {"SecurityGroupIds": options.security_groups, "Subnets": options.subnets}
        if options.subnets
        else None,
        "EnableNetworkIsolation": options.network_isolation,
        "EnableInterContainerTrafficEncryption": options.encrypt_traffic,
        "EnableManagedSpotTraining": options.spot,
        "CheckpointConfig": {"S3Uri": account.places.checkpoints(plan.name), "LocalPath": "/opt/ml/checkpoints"},
        "Environment": {
            "BASH_ENV": f"{CODE}/{SIGNALS}",
            **{name: str(value) for name, value in options.environment.items()},
        },
    }
    return _without_none(**request)


def _upload_source(account: Account, plan: TuningPlan, uri: str) -> None:
    bucket, prefix = split_uri(uri)
    client = account.client("s3")
    job = {
        "base": plan.name,
        "space": plan.space.describe(),
        "groups": list(plan.groups),
        "configs": plan.configs,
        "overrides": list(plan.overrides),
        "objectives": dict(plan.search.objectives),
    }
    options = plan.options
    with tempfile.TemporaryDirectory(prefix="imgcls-") as work:
        bundle = Path(work) / BUNDLE
        write_bundle(
            bundle,
            job,
            code=find_user_modules(list(plan.configs.values()), options.code),
            requirements=options.requirements_for(plan.configs.values()),
            wheels=options.wheels_folder,
            script=(SCRIPT, SCRIPT_TEXT),
        )
        client.upload_file(str(bundle), bucket, f"{prefix}/{BUNDLE}", ExtraArgs=account.encryption or None)
    client.put_object(Bucket=bucket, Key=f"{prefix}/{SIGNALS}", Body=SIGNALS_TEXT.encode(), **account.encryption)


def _channel(name: str, uri: str, mode: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
