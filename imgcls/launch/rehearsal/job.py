"""Runs one training job like SageMaker: downloads its channels, runs its containers, uploads its archives."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from imgcls.aws.s3 import fetch_file, list_objects, split_folder, split_uri
from imgcls.launch.rehearsal.image import ENVIRONMENT, container_command, hide_packages, write_programs
from imgcls.launch.rehearsal.namespaces import host_command, unshare
from imgcls.launch.sagemaker.progress import LOG_GROUP
from imgcls.system.machine import threads_of_each

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
GRACE_SECONDS = 120.0  # from SIGTERM to SIGKILL, as in SageMaker
EPOCH = "imgcls epoch="
INHERITED_VARIABLES = ("LANG", "LC_ALL", "HF_HOME", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES")


@dataclass
class RehearsedJob:
    """A job that runs in a separate thread.

    Args:
        request: of CreateTrainingJob.
        record: moto's record of the job, which is updated.
        session: boto3 session of the account.
        work: a new folder for the job, which the supervisor removes.
        links: S3 URIs of channels to the local folders that they read in place.
        interrupt_after: epochs after which the job is interrupted like a spot job; None: never.
    """

    request: dict[str, Any]
    record: Any
    session: Any
    work: Path
    links: Mapping[str, Path] = field(default_factory=dict)
    interrupt_after: int | None = None

    def __post_init__(self) -> None:
        self.name: str = self.request["TrainingJobName"]
        self.stop = threading.Event()
        self.metrics: dict[str, float] = {}
        self._s3, self._logs = self.session.client("s3"), self.session.client("logs")
        self._regexes = {
            metric["Name"]: re.compile(metric["Regex"])
            for metric in self.request["AlgorithmSpecification"].get("MetricDefinitions", ())
        }
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._epochs = 0
        self.record.secondary_status_transitions = []
        self._set_state("Starting")
        self.thread = threading.Thread(target=self._run, name=f"imgcls-{self.name}", daemon=True)

    def _set_state(self, secondary: str, status: str = "InProgress") -> None:
        now = datetime.now(UTC)
        transitions = [*self.record.secondary_status_transitions]
        if transitions:
            transitions[-1] = {**transitions[-1], "EndTime": now}
        self.record.secondary_status_transitions = [*transitions, {"Status": secondary, "StartTime": now}]
        self.record.secondary_status = secondary
        if status != "InProgress":
            self.record.training_end_time = now
        self.record.training_job_status = status

    def _run(self) -> None:
        try:
            self._run_attempts()
        except Exception as error:
            log.debug("The rehearsal failed.", exc_info=True)
            self.record.failure_reason = f"InternalServerError: {type(error).__name__}: {error}"
            self._set_state("Failed", "Failed")

    def _run_attempts(self) -> None:
        hosts = [f"algo-{number + 1}" for number in range(self.request["ResourceConfig"]["InstanceCount"])]
        with contextlib.suppress(self._logs.exceptions.ResourceAlreadyExistsException):
            self._logs.create_log_group(logGroupName=LOG_GROUP)
        began = time.time()
        while True:
            self._set_state("Downloading")
            folders = {host: self._create_folder(host, hosts) for host in hosts}
            self._set_state("Training")
            self._start(folders, hosts)
            end, codes = self._watch(folders, began)
            self._set_state("Uploading" if end != "interrupted" else "Interrupted")
            self._upload_checkpoints(folders[hosts[0]])
            if end != "interrupted":
                break
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
        self._upload_archives(folders[hosts[0]])
        self.record.final_metric_data_list = [
            {"MetricName": name, "Value": value, "Timestamp": int(time.time())} for name, value in self.metrics.items()
        ]
        self._conclude(end, codes, folders)

    def _conclude(self, end: str, codes: Mapping[str, int], folders: Mapping[str, Path]) -> None:
        if end in ("stopped", "timeout"):
            self._set_state("MaxRuntimeExceeded" if end == "timeout" else "Stopped", "Stopped")
        elif all(code == 0 for code in codes.values()):
            self._set_state("Completed", "Completed")
        else:
            failures = [folder / "ml" / "output" / "failure" for folder in folders.values()]
            reasons = [file.read_text(encoding="utf-8") for file in failures if file.is_file()]
            code = next(code for code in codes.values() if code)
            reason = reasons[0] if reasons else "the container gave no reason"
            self.record.failure_reason = f"AlgorithmError: {reason}, exit code: {code}"
            self._set_state("Failed", "Failed")

    def _create_folder(self, host: str, hosts: list[str]) -> Path:
        """Create the folder of a host, with /opt/ml in SageMaker's layout."""
        folder = self.work / host
        for place in ("input/config", "input/data", "model", "output/data", "checkpoints"):
            (folder / "ml" / place).mkdir(parents=True, exist_ok=True)
        config = folder / "ml" / "input" / "config"
        channels = self.request.get("InputDataConfig", [])
        modes = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
        contents = {
            "hyperparameters.json": self.request.get("HyperParameters") or {},
            "inputdataconfig.json": {channel["ChannelName"]: modes for channel in channels},
            "resourceconfig.json": {
                "current_host": host,
                "current_instance_type": "local",  # the entrypoint expects no GPU then
                "current_group_name": "homogeneousCluster",
                "hosts": hosts,
                "network_interface_name": "lo",
            },
        }
        if "DebugHookConfig" in self.request:
            contents["debughookconfig.json"] = self.request["DebugHookConfig"]
        for name, content in contents.items():
            (config / name).write_text(json.dumps(content))
        for channel in channels:
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            if uri not in self.links:
                self._download(uri, folder / "ml" / "input" / "data" / channel["ChannelName"])
        if "CheckpointConfig" in self.request:
            self._download(f"{self.request['CheckpointConfig']['S3Uri'].rstrip('/')}/", folder / "ml" / "checkpoints")
        return folder

    def _download(self, uri: str, target: Path) -> None:
        """Download the files of the folder `uri`, or the single file."""
        files = list(list_objects(self._s3, uri))
        for stored in files:
            fetch_file(self._s3, stored, target / stored.path)
        if not files and not uri.endswith("/"):
            bucket, key = split_uri(uri)
            target.mkdir(parents=True, exist_ok=True)
            self._s3.download_file(bucket, key, str(target / key.rpartition("/")[2]))

    def _start(self, folders: Mapping[str, Path], hosts: list[str]) -> None:
        specification = self.request["AlgorithmSpecification"]
        channels = {
            channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in self.request.get("InputDataConfig", [])
        }
        links = {name: self.links[uri] for name, uri in channels.items() if uri in self.links}
        spec = [
            {
                "name": host,
                "log": str(folder / "log"),
                "command": host_command(folder, container_command(specification, programs), hosts, links),
                "environment": self._environment(folder, programs),
            }
            for host, folder in folders.items()
            if (programs := write_programs(folder))
        ]
        file = self.work / "spec.json"
        file.write_text(json.dumps(spec))
        if self._supervisor is None:
            isolated = bool(self.request.get("EnableNetworkIsolation"))
            command = [sys.executable, "-I", str(Path(__file__).with_name("supervisor.py")), str(file)]
            self._supervisor = subprocess.Popen(
                [*unshare(network=True), *command, "isolated"] if isolated else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
            )
        self._command("start")

    def _environment(self, folder: Path, programs: Path) -> dict[str, str]:
        """The container's environment: this Python under the names that the SDK uses, but nothing of imgcls."""
        (folder / "tmp").mkdir(exist_ok=True)
        image, code = self.request["AlgorithmSpecification"]["TrainingImage"], folder / "ml" / "input" / "data" / "code"
        return {
            **hide_packages(folder, image, code),
            "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
            "HOME": os.environ.get("HOME", "/"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads_of_each(self.request["ResourceConfig"]["InstanceCount"]),
            **ENVIRONMENT,
            **{name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ},
            "TRAINING_JOB_NAME": self.name,
            "AWS_REGION": self.session.region_name,
            **(self.request.get("Environment") or {}),
        }

    def _watch(self, folders: Mapping[str, Path], began: float) -> tuple[str, dict[str, int]]:
        """Wait for the hosts. Returns finished, interrupted, stopped, timeout or failed, and their exit codes."""
        assert self._supervisor is not None
        assert self._supervisor.stdout is not None
        answers = self._supervisor.stdout
        os.set_blocking(answers.fileno(), False)
        limits = self.request["StoppingCondition"]
        logs = {host: _Tail(folder / "log") for host, folder in folders.items()}
        codes: dict[str, int] = {}
        end, signalled_at, unread = "finished", 0.0, b""
        while len(codes) < len(folders):
            self._forward_logs(logs)
            unread += answers.read() or b""
            *lines, unread = unread.split(b"\n")
            for line in lines:
                report = json.loads(line)
                codes[report["host"]] = int(report["code"])
            if self._supervisor.poll() is not None and len(codes) < len(folders):
                raise RuntimeError("the supervisor of the hosts ended")
            if end == "finished":
                end = self._reason_to_stop(time.time() - began > limits["MaxRuntimeInSeconds"])
                if end != "finished":
                    signalled_at = time.monotonic()
                    self._command("term")
            elif time.monotonic() - signalled_at > GRACE_SECONDS:
                self._command("kill")
            if any(codes.values()) and len(codes) < len(folders) and end == "finished":
                signalled_at, end = time.monotonic(), "failed"  # the other hosts wait for the failed one
                self._command("term")
            time.sleep(TICK_SECONDS)
        self._forward_logs(logs)
        if end == "interrupted" and not any(codes.values()):
            end = "finished"  # before the signal
        return end, codes

    def _reason_to_stop(self, too_long: bool) -> str:
        if self.stop.is_set():
            return "stopped"
        if too_long:
            return "timeout"
        if self.interrupt_after is not None and self._epochs >= self.interrupt_after:
            self.interrupt_after = None
            return "interrupted"
        return "finished"

    def _command(self, command: str) -> None:
        assert self._supervisor is not None
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.stdin.write(command.encode() + b"\n")
            self._supervisor.stdin.flush()

    def close(self) -> None:
        """End the job and remove its folder. The supervisor does that too if this process is killed."""
        self.stop.set()
        supervisor = self._supervisor
        if supervisor is not None and supervisor.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.close()
            supervisor.wait()
        self.thread.join(5)
        shutil.rmtree(self.work, ignore_errors=True)

    def _forward_logs(self, logs: Mapping[str, _Tail]) -> None:
        """Send new lines of the hosts to CloudWatch, and record their metrics."""
        for host, tail in logs.items():
            lines = tail.lines()
            if not lines:
                continue
            stream = f"{self.name}/{host}-{int(self.record.creation_time.timestamp())}"
            with contextlib.suppress(self._logs.exceptions.ResourceAlreadyExistsException):
                self._logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
            now = int(time.time() * 1000)
            events = [{"timestamp": now, "message": line or " "} for line in lines]
            self._logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)
            for line in lines:
                self._epochs += line.startswith(EPOCH)
                for name, regex in self._regexes.items():
                    if match := regex.search(line):
                        self.metrics[name] = float(match[1])

    def _upload_checkpoints(self, first: Path) -> None:
        if "CheckpointConfig" not in self.request:
            return
        bucket, prefix = split_folder(self.request["CheckpointConfig"]["S3Uri"])
        folder = first / "ml" / "checkpoints"
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self._s3.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(folder).as_posix()}")

    def _upload_archives(self, first: Path) -> None:
        bucket, prefix = split_uri(f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output")
        for name, folder in {"model": first / "ml" / "model", "output": first / "ml" / "output" / "data"}.items():
            archive = self.work / f"{name}.tar.gz"
            # not compressed: weights hardly shrink, and it takes time
            with gzip.open(archive, "wb", compresslevel=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
                tar.add(folder, arcname=".")
            self._s3.upload_file(str(archive), bucket, f"{prefix}/{name}.tar.gz")
            archive.unlink()


class _Tail:
    """Reads new complete lines of a growing file."""

    def __init__(self, file: Path) -> None:
        self._file: IO[bytes] | None = None
        self._path, self._rest = file, b""

    def lines(self) -> list[str]:
        if self._file is None:
            if not self._path.is_file():
                return []
            self._file = self._path.open("rb")
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]
