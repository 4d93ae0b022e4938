"""The options of a job and their checks, which run before anything is imported or uploaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgcls.aws.instances import has_gpu, has_local_disk
from imgcls.aws.rules import check_bucket, check_instance_type, check_role, check_tags, check_variables
from imgcls.aws.s3 import is_remote
from imgcls.errors import UserError
from imgcls.launch.sagemaker.bundle import optional_requirements, read_requirements, requirements_text
from imgcls.system.checks import check_value, choice, flag, number, whole

MAX_RUNTIME_SECONDS = 28 * 86400  # of a training job
MAX_KEEP_ALIVE_SECONDS = 3600
OLDEST_PYTORCH = (2, 8)
RESERVED_VARIABLES = ("SM_", "AWS_", "SAGEMAKER_")
CHECKS = {
    "instance_count": whole(1, 100),
    "volume_size": whole(1, 16384),
    "max_runtime": whole(60, MAX_RUNTIME_SECONDS),
    "keep_alive": whole(0, MAX_KEEP_ALIVE_SECONDS),
    "max_wait": whole(60, 2 * MAX_RUNTIME_SECONDS, none=True),
    **dict.fromkeys(("spot", "debugger", "network_isolation", "encrypt_traffic", "wait"), flag),
    "input_mode": choice("auto", "File", "FastFile"),
    "poll": number(0, open_low=True),
}


@dataclass(frozen=True)
class JobOptions:
    """The options that `conf/launch/_base.yaml` explains."""

    role: str | None = None
    region: str | None = None
    profile: str | None = None
    bucket: str | None = None
    prefix: str = "imgcls"
    name: str | None = None
    instance_type: str = "ml.g4dn.xlarge"
    instance_count: int = 1
    volume_size: int = 50
    input_mode: str = "auto"
    image: str | None = None
    framework_version: str = "2.14"
    requirements: str | None = None
    code: list[str] = field(default_factory=list)
    wheels: str | None = None
    max_runtime: int = 86400
    spot: bool = False
    max_wait: int | None = None
    keep_alive: int = 0
    kms_key: str | None = None
    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    network_isolation: bool = False
    encrypt_traffic: bool = False
    tags: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    debugger: bool = False
    debugger_options: dict[str, Any] = field(default_factory=dict)
    wait: bool = True
    poll: float = 10.0

    @property
    def longest_wait(self) -> int:
        """Seconds that a spot job may wait and train together."""
        return self.max_wait if self.max_wait is not None else 2 * self.max_runtime

    @property
    def volume_key(self) -> str | None:
        """The key of the instance's disk; None for local disks, which encrypt themselves."""
        return None if has_local_disk(self.instance_type) else self.kms_key

    @property
    def wheels_folder(self) -> Path | None:
        """The folder of wheels to install from; None: from the network."""
        return Path(self.wheels).expanduser() if self.wheels is not None else None

    def requirements_for(self, configs: Iterable[Mapping[str, Any]], more: Iterable[str] = ()) -> str:
        """What pip installs for jobs of `configs`, besides the lines `more`; see `requirements_text`."""
        return requirements_text(self.requirements, also=[*more, *optional_requirements(configs, self.instance_type)])


def check_job(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first option of `config["launch"]` that is invalid, or conflicts with the run."""
    launch, trainer, model = config["launch"], config["trainer"], config["model"]
    if is_remote(config["run_dir"]):
        raise UserError("run_dir=s3://…: the job stores its run in S3 by itself. Give a local folder.")
    if (config.get("loss") or {}).get("teacher") is not None:
        raise UserError("loss.teacher: a job does not get the teacher's folder. Train with a teacher on this machine.")
    _check_values(launch)
    _check_instance(launch, trainer)
    if launch["network_isolation"]:
        if model["pretrained"] and model["weights"] is None:
            raise UserError(
                "launch.network_isolation=true: the job cannot download pretrained weights. "
                "Give them with model.weights=FILE, or model.pretrained=false."
            )
        if launch["image"] is None and launch["wheels"] is None:
            raise UserError(
                "launch.network_isolation=true: AWS's image lacks packages that the job cannot download. "
                "Give them with launch.wheels=FOLDER, or a custom image with launch.image=URI."
            )
    if bool(launch["subnets"]) != bool(launch["security_groups"]):
        raise UserError("launch.subnets and launch.security_groups belong together: give both or neither.")
    if launch["spot"] and launch["keep_alive"]:
        raise UserError("launch.keep_alive: a spot instance cannot be kept alive. Use only one of both.")
    if launch["spot"] and launch["max_wait"] is not None and launch["max_wait"] < launch["max_runtime"]:
        raise UserError(
            f"launch.max_wait={launch['max_wait']}: it includes the training, so it must be at least "
            f"launch.max_runtime={launch['max_runtime']}."
        )


def _check_values(launch: Mapping[str, Any]) -> None:
    check_instance_type("launch.instance_type", str(launch["instance_type"]), "ml.g4dn.xlarge")
    for name, check in CHECKS.items():
        check_value(f"launch.{name}", launch[name], check)
    version = str(launch["framework_version"])
    if not re.fullmatch(r"[0-9]+\.[0-9]+(\.[0-9]+)?", version):
        raise UserError(f"launch.framework_version={version}: must be a version such as 2.14 or 2.10.0.")
    if launch["image"] is None and tuple(map(int, version.split(".")[:2])) < OLDEST_PYTORCH:
        raise UserError(
            f"launch.framework_version={version}: imgcls needs PyTorch 2.8 or newer, and Python 3.11. "
            "Write 2.10 as 2.10.0."
        )
    if launch["bucket"] is not None:
        check_bucket("launch.bucket", str(launch["bucket"]))
    if launch["role"] is not None:
        check_role("launch.role", str(launch["role"]))
    check_tags("launch.tags", launch["tags"])
    check_variables("launch.environment", launch["environment"], RESERVED_VARIABLES)
    if launch["requirements"] is not None:
        read_requirements(str(launch["requirements"]))
    wheels = launch["wheels"]
    if wheels is not None and not list(Path(str(wheels)).expanduser().glob("*.whl")):
        raise UserError(
            f"launch.wheels={wheels}: this folder holds no wheels (python -m imgcls.jobs wheels to=FOLDER)."
        )


def _check_instance(launch: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    kind, accelerator = str(launch["instance_type"]), trainer["accelerator"]
    if accelerator in ("gpu", "cuda") and not has_gpu(kind):
        raise UserError(
            f"trainer.accelerator={accelerator}, but launch.instance_type={kind} has no GPU. Try ml.g4dn.xlarge."
        )
    if accelerator == "cpu" and has_gpu(kind):
        raise UserError(
            f"trainer.accelerator=cpu, but launch.instance_type={kind} has a GPU that you would pay for. "
            "Try ml.m5.xlarge, or trainer.accelerator=auto."
        )
    if accelerator == "mps":
        raise UserError("trainer.accelerator=mps: SageMaker has no Apple GPUs. Use trainer.accelerator=auto.")
    if trainer["num_nodes"] not in (1, launch["instance_count"]):
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: must be 1 or launch.instance_count={launch['instance_count']}."
        )
