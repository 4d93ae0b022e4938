"""Containers that are namespaces: what a job finds, what becomes of what it leaves, and that nothing stays behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.launch.rehearsal.aws import LocalAws
from imgcls.launch.rehearsal.image import hide_packages
from imgcls.launch.rehearsal.job import RehearsedJob
from imgcls.launch.rehearsal.launcher import START, remove_left_over
from imgcls.launch.rehearsal.namespaces import check_namespaces
from imgcls.launch.sagemaker.policies import Names, role_policy
from tests.aws_account import needs_moto
from tests.permissions import BY_AWS, check


def namespaces() -> bool:
    try:
        check_namespaces()
    except UserError:
        return False
    return True


pytestmark = [needs_moto, pytest.mark.skipif(not namespaces(), reason="namespaces are not allowed here")]

BUCKET, LONGEST = "bucket", 60.0


class Place:
    """An account with a bucket, and the jobs that were made in it."""

    def __init__(self, aws: LocalAws) -> None:
        self.aws, self.session = aws, aws.session()
        self.s3 = self.session.client("s3")
        self.s3.create_bucket(Bucket=BUCKET)
        self.s3.put_object(Bucket=BUCKET, Key="imgcls/data/set/cat/1.jpg", Body=b"a cat")
        self.jobs: list[RehearsedJob] = []

    def run(self, script: str, *, hosts: int = 1, isolated: bool = False, wait: bool = True, **options: Any) -> Any:
        """Run a job whose container is `sh -c script`; moto's description of it."""
        request = {
            "TrainingJobName": f"imgcls-job-{len(self.jobs)}",
            "RoleArn": "arn:aws:iam::123456789012:role/r",
            "AlgorithmSpecification": {
                "TrainingImage": options.pop("image", "image"),
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["/bin/sh"],
                "ContainerArguments": ["-c", script],
                "MetricDefinitions": [{"Name": "val/loss", "Regex": "val/loss=([0-9.]+)"}],
            },
            "InputDataConfig": [
                {
                    "ChannelName": "data",
                    "DataSource": {
                        "S3DataSource": {
                            "S3DataType": "S3Prefix",
                            "S3Uri": f"s3://{BUCKET}/imgcls/data/set/",
                            "S3DataDistributionType": "FullyReplicated",
                        }
                    },
                }
            ],
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/imgcls/jobs"},
            "CheckpointConfig": {
                "S3Uri": f"s3://{BUCKET}/imgcls/jobs/run/checkpoints",
                "LocalPath": "/opt/ml/checkpoints",
            },
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": hosts, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": options.pop("max_runtime", 600)},
            "EnableNetworkIsolation": isolated,
            "Environment": {"COLOUR": "it's $blue"},
        }
        client = self.session.client("sagemaker")
        client.create_training_job(**request)
        work = Path(tempfile.mkdtemp(prefix=START))
        session = self.aws.session("role")
        job = RehearsedJob(request, self.aws.job(request["TrainingJobName"]), session, work, **options)
        self.jobs.append(job)
        job.thread.start()
        if wait:
            job.thread.join(LONGEST)
        return client.describe_training_job(TrainingJobName=request["TrainingJobName"])

    def archive(self, name: str, into: Path) -> dict[str, str]:
        """Files of an archive of the last job."""
        self.s3.download_file(
            BUCKET, f"imgcls/jobs/imgcls-job-{len(self.jobs) - 1}/output/{name}.tar.gz", str(into / "a.tar.gz")
        )
        with tarfile.open(into / "a.tar.gz") as tar:
            found = {one.name: tar.extractfile(one) for one in tar if one.isfile()}
            return {name.removeprefix("./"): file.read().decode() for name, file in found.items() if file is not None}

    def lines(self) -> list[str]:
        """Everything in the log."""
        client = self.session.client("logs")
        group = "/aws/sagemaker/TrainingJobs"
        streams = client.describe_log_streams(logGroupName=group)["logStreams"]
        pages = [client.get_log_events(logGroupName=group, logStreamName=one["logStreamName"]) for one in streams]
        return [event["message"] for page in pages for event in page["events"]]


@pytest.fixture
def place() -> Iterator[Place]:
    with LocalAws(lambda request: None, lambda name: None) as aws:
        made = Place(aws)
        try:
            yield made
        finally:
            for job in made.jobs:
                job.close()
            assert not [job.work for job in made.jobs if job.work.exists()]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_hosts_of_a_job_share_the_cores(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.system.machine.available_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    place.run("echo of six: $OMP_NUM_THREADS", hosts=2)
    assert place.lines() == ["of six: 3"] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    place.run("echo as told: $OMP_NUM_THREADS", hosts=2)
    assert place.lines().count("as told: 5") == 2


def test_each_host_finds_what_the_container_would(place: Place, tmp_path: Path) -> None:
    script = """
    set -e
    name=$(python3 -c 'import json; print(json.load(open("/opt/ml/input/config/resourceconfig.json"))["current_host"])')
    test "$(cat /opt/ml/input/data/data/cat/1.jpg)" = "a cat"
    test "$(cat /proc/1/cmdline | head -c 7)" = "/bin/sh"
    echo "$name val/loss=0.25 $COLOUR $TRAINING_JOB_NAME $(getent hosts algo-2 | cut -d' ' -f1)"
    if [ $name = algo-1 ]; then
        echo weights > /opt/ml/model/model.safetensors
        echo results > /opt/ml/output/data/metrics.json
        echo state > /opt/ml/checkpoints/last.ckpt
    fi
    """
    before = sorted(path.name for path in Path("/opt").iterdir())
    done = place.run(script, hosts=2)
    assert (done["TrainingJobStatus"], done["SecondaryStatus"]) == ("Completed", "Completed"), done
    assert place.archive("model", tmp_path) == {"model.safetensors": "weights\n"}
    assert place.archive("output", tmp_path) == {"metrics.json": "results\n"}
    assert place.s3.get_object(Bucket=BUCKET, Key="imgcls/jobs/run/checkpoints/last.ckpt")["Body"].read() == b"state\n"
    assert sorted(place.lines()) == [f"algo-{n} val/loss=0.25 it's $blue imgcls-job-0 127.0.0.1" for n in (1, 2)]
    (metric,) = done["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("val/loss", 0.25)
    assert sorted(path.name for path in Path("/opt").iterdir()) == before


def test_what_the_image_lacks_is_not_found(place: Place) -> None:
    """The image of AWS has no moto: unless the job installs it, its code cannot import it, nor does pip see it."""
    script = """
    python3 - <<'PY'
import importlib.metadata, importlib.util
import numpy
print("found" if importlib.util.find_spec("moto") else "hidden")
try:
    importlib.metadata.version("moto")
except importlib.metadata.PackageNotFoundError as error:
    print(error)
import moto
PY
    """
    aws = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.14-cpu-amzn2023-sagemaker"
    assert place.run(script, image=aws)["TrainingJobStatus"] == "Failed"
    assert place.lines()[:2] == ["hidden", "No package metadata was found for moto"]
    assert place.lines()[-1] == "ModuleNotFoundError: No module named 'moto'"
    assert place.run(script)["TrainingJobStatus"] == "Completed", "of another image nothing is known"


def test_what_the_job_installs_is_found(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    with tarfile.open(code / "source.tar.gz", "w:gz") as bundle:
        (tmp_path / "requirements.txt").write_text("Moto[s3]==5.2\n")
        bundle.add(tmp_path / "requirements.txt", "source/requirements.txt")
    aws = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.14-cpu-amzn2023-sagemaker"
    place = hide_packages(tmp_path, aws, code)["PYTHONPATH"]
    hidden = json.loads((Path(place) / "hidden.json").read_text())
    assert "moto" not in hidden["packages"]
    assert not {"moto", "numpy", "torch", "timm", "imgcls", "json"} & set(hidden["modules"])


def test_a_failure_has_its_reason(place: Place) -> None:
    done = place.run("echo 'no such folder' > /opt/ml/output/failure; exit 3")
    assert done["TrainingJobStatus"] == "Failed"
    assert done["FailureReason"] == "AlgorithmError: no such folder\n, exit code: 3"


def test_when_one_host_fails_the_others_are_ended(place: Place) -> None:
    second = "grep -q 'current_host.: .algo-2' /opt/ml/input/config/resourceconfig.json"
    script = f"trap 'exit 1' TERM; {second} && exit 4; "
    done = place.run(script + "sleep 300 & wait", hosts=2)
    assert done["TrainingJobStatus"] == "Failed"


def test_an_interrupted_job_finds_its_checkpoints(place: Place) -> None:
    script = """
    if [ -f /opt/ml/checkpoints/state ]; then echo "goes on from $(cat /opt/ml/checkpoints/state)"; exit 0; fi
    trap 'echo five > /opt/ml/checkpoints/state; exit 143' TERM
    echo 'imgcls epoch=0 val/loss=1'
    sleep 300 & wait
    """
    done = place.run(script, interrupt_after=1)
    assert done["TrainingJobStatus"] == "Completed"
    assert place.lines()[-1] == "goes on from five"
    passed = done["SecondaryStatusTransitions"]
    twice = ["Downloading", "Training"]
    states = ["Starting", *twice, "Interrupted", *twice, "Uploading", "Completed"]
    assert [transition["Status"] for transition in passed] == states
    assert all(before["EndTime"] == after["StartTime"] for before, after in itertools.pairwise(passed))


@pytest.mark.parametrize("secondary", ["Stopped", "MaxRuntimeExceeded"])
def test_a_stopped_job_keeps_its_checkpoints(place: Place, secondary: str) -> None:
    script = "trap 'echo kept > /opt/ml/checkpoints/state; exit 143' TERM; echo ready; sleep 300 & wait"
    place.run(script, wait=False)
    (job,) = place.jobs
    until(lambda: (job.work / "algo-1" / "log").is_file() and "ready" in (job.work / "algo-1" / "log").read_text())
    if secondary == "Stopped":
        job.stop.set()
    else:
        job.request["StoppingCondition"]["MaxRuntimeInSeconds"] = 0
    job.thread.join(LONGEST)
    done = place.session.client("sagemaker").describe_training_job(TrainingJobName="imgcls-job-0")
    assert (done["TrainingJobStatus"], done["SecondaryStatus"]) == ("Stopped", secondary)
    assert place.s3.get_object(Bucket=BUCKET, Key="imgcls/jobs/run/checkpoints/state")["Body"].read() == b"kept\n"


def test_an_isolated_job_reaches_its_own_machine_alone(place: Place) -> None:
    port = place.aws.address.rpartition(":")[2]
    script = f"""
    python3 - <<'PY'
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), timeout=5).close()
print("own machine")
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=5)
    print("the network")
except OSError:
    pass
PY
    """
    assert place.run(script, isolated=True)["TrainingJobStatus"] == "Completed"
    assert place.lines() == ["own machine"]
    assert place.run(script)["TrainingJobStatus"] == "Completed"
    assert "the network" in place.lines(), "without isolation it is reached"


def test_a_folder_that_is_read_in_place_cannot_be_written_to(place: Place, tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("here")
    script = "cat /opt/ml/input/data/data/here.txt && ! touch /opt/ml/input/data/data/new"
    done = place.run(script, links={f"s3://{BUCKET}/imgcls/data/set/": tmp_path})
    assert done["TrainingJobStatus"] == "Completed"
    assert [path.name for path in tmp_path.iterdir()] == ["here.txt"]


KILLED = """
import sys, tempfile, threading
from tests.launch.rehearsal.test_job import Place, LocalAws
with LocalAws(lambda request: None, lambda name: None) as aws:
    place = Place(aws)
    place.run("echo $$ > /opt/ml/output/data/pid; exec sleep 3600", wait=False)
    print(place.jobs[0].work, flush=True)
    threading.Event().wait()
"""


def test_a_killed_rehearsal_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    rehearsal = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, env=environment)
    assert rehearsal.stdout is not None
    work = Path(rehearsal.stdout.readline().strip())
    until(lambda: (work / "algo-1/ml/output/data/pid").is_file())
    assert mine("sleep\x003600")
    rehearsal.send_signal(signal.SIGKILL)
    rehearsal.wait()
    rehearsal.stdout.close()
    until(lambda: not work.exists() and not mine("sleep\x003600") and not mine(str(work)))


def mine(words: str) -> list[str]:
    """Processes of this machine with `words` in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = file.read_text()
        except OSError:
            continue
        if words in text:
            found.append(text)
    return found


def test_what_a_killed_supervisor_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / f"{START}{name}").mkdir()
        (tmp_path / f"{START}{name}" / ".lock").touch()
    import fcntl

    with (tmp_path / f"{START}b" / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_left_over()
        assert [path.name for path in tmp_path.iterdir()] == [f"{START}b"]


def test_without_namespaces_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_namespaces.cache_clear()
    monkeypatch.setattr("imgcls.launch.rehearsal.namespaces.shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs Linux namespaces"):
        check_namespaces()
    check_namespaces.cache_clear()


def test_the_policy_of_the_role_holds_what_a_job_needs_and_no_more(place: Place) -> None:
    place.run("echo hello; echo state > /opt/ml/checkpoints/last.ckpt; echo x > /opt/ml/model/x")
    images = ["arn:aws:ecr:us-east-1:1:repository/x"]
    names = Names("aws", "us-east-1", "123456789012", bucket=BUCKET, role="r", images=images)
    check(role_policy(names), [call for call in place.aws.calls if call.who == "role"], BY_AWS)
