"""What runs in the container: `python -m imgcls.launch.sagemaker.container`, in the folder of the source bundle.

It installs what the image lacks, trains with the job's configuration, and hands the run folder over. At its start it
needs nothing but Python.

The run folder is /opt/ml/checkpoints, which SageMaker keeps in S3: a job that is interrupted and started again finds
all of the run there, and goes on. With several hosts the first one owns it; the others have a copy of their own.
"""

from __future__ import annotations

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
STARTED = "imgcls: the job starts"  # what comes before it in the log is SageMaker's
MOST_REASON = 1000  # characters of the failure file that SageMaker shows
JOB_FILE = "job.json"


@dataclass(frozen=True)
class Host:
    """This machine among those of the job."""

    name: str
    rank: int
    count: int
    gpus: int
    instance_type: str
    network_interface: str

    @classmethod
    def of_environment(cls) -> Host:
        """From what SageMaker's script, or its older toolkit in a tuning job, has exported."""
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


class Failed(Exception):  # noqa: N818 - what is shown is its text
    """The job cannot go on; the text is its reason."""


Choose = Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]]


def main() -> int:
    """Train, hand over; the exit code is the container's."""
    return run(lambda job: (job["config"], job["overrides"]), CHECKPOINTS)


def run(choose: Choose, kept: Path, finished: Callable[[Path], None] = lambda folder: None) -> int:
    """Train what `choose` says, hand over; the exit code is the container's.

    Args:
        choose: gets the content of the job's file; returns the configuration and the words it was composed from.
        kept: the run folder, which SageMaker keeps in S3.
        finished: called on the first host with the folder of the finished run.
    """
    signal.signal(signal.SIGTERM, _leave)  # as process 1 it would otherwise not be heard before training begins
    print(STARTED, flush=True)
    host = Host.of_environment()
    try:
        job = json.loads(Path(JOB_FILE).read_text(encoding="utf-8"))
        install(Path("requirements.txt"), Path("wheels"))
        os.environ.setdefault("IMGCLS_CACHE", str(CACHE))
        os.environ.setdefault("HF_HOME", str(CACHE / "huggingface"))
        chosen, overrides = choose(job)
        config = configuration(chosen, host, Path(os.environ.get("SM_INPUT_DATA_DIR", DATA)))
        folder = run_folder(host, kept)
        if host.count == 1:
            code = train(config, overrides, folder)
        else:
            code = train_with_torchrun(config, overrides, folder, host)
        if code == 0 and host.rank == 0:
            finished(folder)
            hand_over(folder, Path(os.environ["SM_MODEL_DIR"]), Path(os.environ["SM_OUTPUT_DATA_DIR"]))
    except Failed as error:
        say_why(str(error))
        return 2
    except Exception as error:
        traceback.print_exc()
        say_why(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return 1
    return code


def install(requirements: Path, wheels: Path) -> None:
    """Install what `requirements` lists and the image lacks. Raises Failed."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text().splitlines()]
    if all(_is_there(line) for line in lines if line):
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        str(requirements),
    ]
    if wheels.is_dir():
        command += ["--no-index", "--find-links", str(wheels)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise Failed(
            "The packages could not be installed. Without network access give launch.wheels=FOLDER or launch.image."
            f"\n{last}"
        )


def _is_there(requirement: str) -> bool:
    """Whether `name==version` or `name` is installed; anything else is left to pip."""
    import importlib.metadata as metadata

    name, _, version = requirement.partition("==")
    try:
        return metadata.version(name.strip()) == version.strip() or not version
    except (metadata.PackageNotFoundError, ValueError):
        return False


def configuration(config: dict[str, Any], host: Host, channels: Path) -> dict[str, Any]:
    """The run's configuration as this machine needs it: its paths, its devices."""
    from imgcls.aws.instances import has_gpu

    config = json.loads(json.dumps(config))
    config["launch"] = {"_target_": "imgcls.launch.local.Local"}
    config["quiet"] = False  # SageMaker reads the metrics from what is printed
    if (channels / "data").is_dir():
        config["data"]["root"] = str(channels / "data")
    if (channels / "weights").is_dir():
        files = sorted(path for path in (channels / "weights").iterdir() if not path.name.startswith("."))
        config["model"]["weights"] = str(files[0]) if len(files) == 1 else str(channels / "weights")
    trainer = config["trainer"]
    trainer["num_nodes"] = host.count
    if has_gpu(host.instance_type) and trainer["accelerator"] != "cpu":
        if host.gpus == 0:
            raise Failed(
                f"{host.instance_type} was asked for its GPU, but the container sees none "
                "(nvidia-smi lists no device). Take an image for GPUs, or launch.instance_type=ml.m5.xlarge."
            )
        if trainer["accelerator"] == "auto":
            trainer["accelerator"] = "gpu"  # which ends the run where torch finds none
    return config


def run_folder(host: Host, kept: Path = CHECKPOINTS) -> Path:
    """Where this machine writes its run: kept in S3 for the first one, a copy of that for the others."""
    if host.rank == 0:
        kept.mkdir(parents=True, exist_ok=True)
        return kept
    folder = ML / "run"
    folder.mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        shutil.copytree(kept, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    return folder


def train(config: dict[str, Any], overrides: list[str], folder: Path) -> int:
    """Train in `folder`; the exit code."""
    from omegaconf import OmegaConf

    from imgcls.errors import UserError
    from imgcls.system.interrupts import Interrupted
    from imgcls.training.fit import fit

    config["run_dir"] = str(folder)
    cfg: Any = OmegaConf.create(config)
    try:
        fit(cfg, overrides)
    except UserError as error:
        say_why(str(error))
        return error.exit_code
    except Interrupted as error:
        print(f"imgcls: {error}; the checkpoint is written.", flush=True)
        return error.exit_code
    return 0


def train_with_torchrun(config: dict[str, Any], overrides: list[str], folder: Path, host: Host) -> int:
    """Train on all hosts together, in one process for each device; the exit code of this host."""
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
        "OMP_NUM_THREADS": threads_of_each(devices),
    }
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(f"--nnodes={host.count}", f"--nproc_per_node={devices}", f"--node_rank={host.rank}"),
        *(f"--master_addr={os.environ.get('SM_MASTER_ADDR', 'algo-1')}", "--max_restarts=0"),
        *(
            f"--master_port={os.environ.get('SM_MASTER_PORT', '7777')}",
            "-m",
            "imgcls.launch.sagemaker.worker",
            str(work),
        ),
    ]
    process = subprocess.Popen(torchrun, env=environment)
    stopped = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        stopped.append(signum)
        process.send_signal(signum)

    signal.signal(signal.SIGTERM, pass_on)
    code = process.wait()
    if stopped:
        print("imgcls: stopped by SIGTERM; the checkpoint is written.", flush=True)
        return 128 + signal.SIGTERM
    if code:
        say_why(f"A training process of {host.name} ended with exit code {code}; the log has its last words.")
    return code


def hand_over(folder: Path, model: Path, output: Path) -> None:
    """The portable model to `model`, the rest of the run folder to `output`; both become archives in S3."""
    for target in (model, output):
        target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "model", model, dirs_exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.name == "model" or path.name == ".lock" or path.name.endswith(".tmp"):
            continue
        if path.is_dir():
            shutil.copytree(path, output / path.name, dirs_exist_ok=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(path), str(output / path.name))


def _link_or_copy(source: str, target: str) -> str:
    """A second name for the file where that is possible: checkpoints are large."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def say_why(reason: str) -> None:
    """Write the job's failure reason, unless another process has already said why, and print it."""
    print(f"imgcls: error: {reason}", file=sys.stderr, flush=True)
    file = Path(os.environ.get("SM_OUTPUT_FAILURE", ML / "output" / "failure"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as failure:
            failure.write(reason[:MOST_REASON])
    except FileExistsError:
        pass


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
