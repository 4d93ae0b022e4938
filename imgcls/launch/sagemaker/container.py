"""What runs in the container: `python -m imgcls.launch.sagemaker.container`, in the folder of the source bundle.

It installs what the image lacks, trains with the job's configuration, and exports the run folder. It starts with
nothing but Python.

The run folder is /opt/ml/checkpoints, which SageMaker copies to S3: a job that is interrupted and restarted finds the
whole run there, and resumes it. With several hosts the first one owns it; the others work on copies.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ML = Path("/opt/ml")
CHECKPOINTS = ML / "checkpoints"
DATA = ML / "input" / "data"
CACHE = ML / "cache"  # on the job's volume; the root disk of the instance is small
START_LINE = "imgcls: the job starts"  # earlier lines of the log come from SageMaker
MAX_REASON_LENGTH = 1000  # characters of the failure file that SageMaker shows
JOB_FILE = "job.json"
# https://github.com/aws/sagemaker-python-sdk, sagemaker-train, container_drivers/common/utils.py
RDMA_TYPES = {f"ml.{size}" for size in ("p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5e.48xlarge")}
EFA_TYPES = RDMA_TYPES | {f"ml.{size}" for size in ("g4dn.8xlarge", "g4dn.12xlarge", "g5.48xlarge", "p3dn.24xlarge")}
CHECKPOINT_FOLDER, CHECKPOINT_LIST = "checkpoints", "checkpoints.json"


@dataclass(frozen=True)
class Host:
    """This host of the job."""

    name: str
    rank: int
    count: int
    gpus: int
    instance_type: str
    network_interface: str

    @classmethod
    def of_environment(cls) -> Host:
        """From the variables that SageMaker's script, or its older toolkit in tuning jobs, has exported."""
        name = os.environ.get("SM_CURRENT_HOST", "algo-1")
        hosts = json.loads(os.environ.get("SM_HOSTS") or "[]")
        return cls(
            name,
            int(os.environ.get("SM_CURRENT_HOST_RANK", hosts.index(name) if name in hosts else 0)),
            int(os.environ.get("SM_HOST_COUNT", len(hosts) or 1)),
            int(os.environ.get("SM_NUM_GPUS", "0")),
            os.environ.get("SM_CURRENT_INSTANCE_TYPE", "local"),
            os.environ.get("SM_NETWORK_INTERFACE_NAME", "eth0"),
        )


class JobError(Exception):
    """The job cannot continue; the text is the reason."""


ReadJob = Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]]


def main() -> int:
    """Train and export the results. Returns the container's exit code."""
    return run(lambda job: (job["config"], job["overrides"]), CHECKPOINTS)


def run(read_job: ReadJob, checkpoints: Path, on_finish: Callable[[Path], None] = lambda folder: None) -> int:
    """Train and export the results. Returns the container's exit code.

    Args:
        read_job: returns configuration and overrides, given the content of the job file.
        checkpoints: the run folder, which SageMaker copies to S3.
        on_finish: called on the first host with the folder of the finished run.
    """
    signal.signal(signal.SIGTERM, _exit)  # process 1 ignores signals without a handler
    print(START_LINE, flush=True)
    host = Host.of_environment()
    try:
        job = json.loads(Path(JOB_FILE).read_text(encoding="utf-8"))
        install(Path("requirements.txt"), Path("wheels"))
        os.environ.setdefault("IMGCLS_CACHE", str(CACHE))
        os.environ.setdefault("HF_HOME", str(CACHE / "huggingface"))
        job_config, overrides = read_job(job)
        config = configuration(job_config, host, Path(os.environ.get("SM_INPUT_DATA_DIR", DATA)))
        folder = run_folder(host, checkpoints)
        if host.count == 1:
            code = train(config, overrides, folder)
        else:
            code = train_with_torchrun(config, overrides, folder, host)
        if code == 0 and host.rank == 0:
            on_finish(folder)
            export_results(folder, Path(os.environ["SM_MODEL_DIR"]), Path(os.environ["SM_OUTPUT_DATA_DIR"]))
    except JobError as error:
        report_failure(str(error))
        return 2
    except Exception as error:
        traceback.print_exc()
        report_failure(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return 1
    return code


def install(requirements: Path, wheels: Path) -> None:
    """Install what `requirements` lists and the image lacks. Raises JobError."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text().splitlines()]
    if all(_is_installed(line) for line in lines if line):
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "-r", str(requirements)]
    if wheels.is_dir():
        command += ["--no-index", "--find-links", str(wheels)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise JobError(
            "The packages could not be installed. Without network access give launch.wheels=FOLDER or launch.image."
            f"\n{last}"
        )


def _is_installed(requirement: str) -> bool:
    """Whether `name==version` or `name` is installed; other requirements are left to pip."""
    name, _, version = requirement.partition("==")
    try:
        return metadata.version(name.strip()) == version.strip() or not version
    except (metadata.PackageNotFoundError, ValueError):
        return False


def configuration(config: dict[str, Any], host: Host, channels: Path) -> dict[str, Any]:
    """The run's configuration with the paths and devices of this host."""
    from imgcls.aws.instances import has_gpu

    config = json.loads(json.dumps(config))
    config["launch"] = {"_target_": "imgcls.launch.local.Local"}
    config["quiet"] = False  # SageMaker reads the metrics from the log
    if (channels / "data").is_dir():
        config["data"]["root"] = str(channels / "data")
    if (channels / "weights").is_dir():
        files = sorted(path for path in (channels / "weights").iterdir() if not path.name.startswith("."))
        config["model"]["weights"] = str(files[0]) if len(files) == 1 else str(channels / "weights")
    trainer = config["trainer"]
    trainer["num_nodes"] = host.count
    if has_gpu(host.instance_type) and trainer["accelerator"] != "cpu":
        if host.gpus == 0:
            raise JobError(
                f"{host.instance_type} has a GPU, but the container sees none (nvidia-smi lists no device). "
                "Use an image for GPUs, or launch.instance_type=ml.m5.xlarge."
            )
        if trainer["accelerator"] == "auto":
            trainer["accelerator"] = "gpu"  # training fails if torch finds none
    return config


def run_folder(host: Host, checkpoints: Path = CHECKPOINTS) -> Path:
    """The run folder of this host: `checkpoints`, which is copied to S3, or a local copy on all but the first host."""
    if host.rank == 0:
        checkpoints.mkdir(parents=True, exist_ok=True)
        return checkpoints
    folder = ML / "run"
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoints.is_dir():
        shutil.copytree(checkpoints, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    return folder


def train(config: dict[str, Any], overrides: list[str], folder: Path) -> int:
    """Train in `folder`. Returns the exit code."""
    from omegaconf import OmegaConf

    from imgcls.errors import UserError
    from imgcls.system.interrupts import Interrupted
    from imgcls.training.fit import fit

    config["run_dir"] = str(folder)
    cfg: Any = OmegaConf.create(config)
    try:
        fit(cfg, overrides)
    except UserError as error:
        report_failure(str(error))
        return error.exit_code
    except Interrupted as error:
        print(f"imgcls: {error}; the checkpoint has been written.", flush=True)
        return error.exit_code
    return 0


def train_with_torchrun(config: dict[str, Any], overrides: list[str], folder: Path, host: Host) -> int:
    """Train on all hosts, in one process per device. Returns the exit code of this host."""
    import psutil

    from imgcls.system.machine import threads_of_each

    device = config["trainer"]["devices"]
    devices = len(device) if isinstance(device, list) else int(device) if device != "auto" else max(1, host.gpus)
    if host.gpus == 0 and device == "auto":
        config["trainer"]["accelerator"] = "cpu"
    config["trainer"]["devices"] = devices if not isinstance(device, list) else device
    config["run_dir"] = str(folder)
    work = ML / "work.json"
    work.write_text(json.dumps({"config": config, "overrides": overrides, "folder": str(folder)}))
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": host.network_interface,
        "NCCL_SOCKET_IFNAME": host.network_interface,
        **efa_variables(host.instance_type),
        "OMP_NUM_THREADS": threads_of_each(devices),
    }
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--max_restarts=0"),
        *(f"--nnodes={host.count}", f"--nproc_per_node={devices}", f"--node_rank={host.rank}"),
        f"--master_addr={os.environ.get('SM_MASTER_ADDR', 'algo-1')}",
        f"--master_port={os.environ.get('SM_MASTER_PORT', '7777')}",
        *("-m", "imgcls.launch.sagemaker.worker", str(work)),
    ]
    process = subprocess.Popen(torchrun, env=environment)
    stopped = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)
        # not to torchrun, which kills its processes 30 s later: a checkpoint has the 120 s that SageMaker waits
        for receiver in psutil.Process(process.pid).children() or [process]:
            receiver.send_signal(signum)

    signal.signal(signal.SIGTERM, pass_on)
    code = process.wait()
    if stopped:
        print("imgcls: stopped by SIGTERM; the checkpoint has been written.", flush=True)
        return 128 + signal.SIGTERM
    if code:
        report_failure(f"A training process of {host.name} ended with exit code {code}; see the log.")
    return code


def efa_variables(instance_type: str) -> dict[str, str]:
    """The environment with which NCCL uses the Elastic Fabric Adapter, as the SDK's driver of torchrun sets it."""
    variables = {}
    if instance_type in EFA_TYPES:
        variables = {"FI_PROVIDER": "efa", "NCCL_PROTO": "simple"}
    if instance_type in RDMA_TYPES:
        variables |= {"FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
    return variables


def export_results(folder: Path, model: Path, output: Path) -> None:
    """Copy the portable model to `model`, and the rest of the run to `output`: SageMaker archives both in S3.

    Checkpoints are in S3 already, as part of the run folder. `output` has only the list of them, with their sizes.
    """
    for target in (model, output):
        target.mkdir(parents=True, exist_ok=True)
    if (folder / "model").is_dir():  # a cross-validation may have no model of its own
        shutil.copytree(folder / "model", model, dirs_exist_ok=True)
    checkpoints = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.glob(f"{CHECKPOINT_FOLDER}/**/*"))
        if path.is_file() and not path.name.startswith(".")
    }
    (output / CHECKPOINT_LIST).write_text(json.dumps(checkpoints))
    for path in sorted(folder.iterdir()):
        if path.name in ("model", CHECKPOINT_FOLDER, ".lock") or path.name.endswith(".tmp"):
            continue
        if path.is_dir():
            shutil.copytree(path, output / path.name, dirs_exist_ok=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(path), str(output / path.name))


def _link_or_copy(source: str, target: str) -> str:
    """Hard-link the file if possible, because checkpoints are large."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def report_failure(reason: str) -> None:
    """Print the reason, and write it to the job's failure file unless another process has done so."""
    print(f"imgcls: error: {reason}", file=sys.stderr, flush=True)
    file = Path(os.environ.get("SM_OUTPUT_FAILURE", ML / "output" / "failure"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as failure:
            failure.write(reason[:MAX_REASON_LENGTH])
    except FileExistsError:
        pass


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
