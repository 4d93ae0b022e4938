import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imgcls.config.composition import compose, plain
from imgcls.launch.sagemaker import container, worker
from imgcls.launch.sagemaker.container import Host, JobError, configuration, export_results, install, report_failure
from imgcls.system.interrupts import Interrupted
from tests.launch.rehearsal.test_job import until


def host(**changes) -> Host:
    given = {"name": "algo-1", "rank": 0, "count": 1, "gpus": 0, "instance_type": "ml.m5.xlarge"}
    return Host(**{**given, "network_interface": "eth0", **changes})


@pytest.fixture
def config() -> dict:
    return plain(compose(["data=digits", "launch=sagemaker"]))


def test_channels_become_the_paths_of_the_run(config: dict, tmp_path: Path) -> None:
    before = json.dumps(config)
    assert configuration(config, host(), tmp_path)["data"]["root"] is None
    (tmp_path / "data").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_text("x")
    changed = configuration(config, host(count=2), tmp_path)
    assert changed["data"]["root"] == str(tmp_path / "data")
    assert changed["model"]["weights"] == str(tmp_path / "weights" / "model.safetensors")
    assert changed["launch"] == {"_target_": "imgcls.launch.local.Local"}
    assert (changed["trainer"]["num_nodes"], changed["trainer"]["accelerator"]) == (2, "auto")
    assert json.dumps(config) == before


def test_a_gpu_that_was_asked_for_must_be_there(config: dict, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"ml\.g4dn\.xlarge has a GPU, but the container sees none"):
        configuration(config, host(instance_type="ml.g4dn.xlarge"), tmp_path)
    seen = configuration(config, host(instance_type="ml.g4dn.xlarge", gpus=1), tmp_path)
    assert seen["trainer"]["accelerator"] == "gpu", "which ends the run where torch finds none"
    config["trainer"]["accelerator"] = "cpu"
    assert configuration(config, host(instance_type="ml.g4dn.xlarge"), tmp_path)["trainer"]["accelerator"] == "cpu"


def test_only_what_is_missing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    ran = []

    def run(command, **options):
        ran.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution")

    monkeypatch.setattr(container.subprocess, "run", run)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"timm=={timm.__version__}  # pinned\nnumpy\n\n")
    install(requirements, tmp_path / "wheels")
    assert ran == []
    requirements.write_text("timm==0.0.1\n")
    (tmp_path / "wheels").mkdir()
    with pytest.raises(JobError, match=r"(?s)launch\.wheels=FOLDER.*No matching distribution"):
        install(requirements, tmp_path / "wheels")
    assert "--no-index" in ran[0]


def test_the_first_reason_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_OUTPUT_FAILURE", str(tmp_path / "output" / "failure"))
    report_failure("the disk is full" + "x" * 5000)
    report_failure("a consequence of it")
    text = (tmp_path / "output" / "failure").read_text()
    assert text.startswith("the disk is full")
    assert len(text) <= 1024


def test_the_run_folder_is_handed_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in ("model/model.safetensors", "checkpoints/best.ckpt", "metrics.json", ".lock", ".x.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for _ in range(2):  # a job that is killed in the middle does it again
        export_results(folder, tmp_path / "model", tmp_path / "output")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]
    there = sorted(path.relative_to(tmp_path / "output").as_posix() for path in (tmp_path / "output").rglob("*.*"))
    assert there == ["checkpoints.json", "metrics.json"], "checkpoints are in S3 already"
    assert json.loads((tmp_path / "output" / "checkpoints.json").read_text()) == {
        "checkpoints/best.ckpt": (folder / "checkpoints" / "best.ckpt").stat().st_size
    }
    assert (folder / "metrics.json").read_text() == "metrics.json"


def test_sigterm_before_the_training_ends_the_container(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from imgcls.launch.sagemaker import container\n"
        "container.Host.of_environment = lambda: (print('waiting', flush=True), time.sleep(60))\n"
        "raise SystemExit(container.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path.cwd(), text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == container.START_LINE
    assert process.stdout.readline().strip() == "waiting"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    process.stdout.close()


def test_processes_share_the_processors_that_the_container_may_use(
    config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            started.append((env["OMP_NUM_THREADS"], env.get("FI_PROVIDER")))

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(container.subprocess, "Popen", Process)
    monkeypatch.setattr(container, "ML", tmp_path)
    monkeypatch.setattr("imgcls.system.machine.available_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config["trainer"]["devices"] = 2
    before = signal.getsignal(signal.SIGTERM)
    for kind in ("ml.m5.xlarge", "ml.g5.48xlarge"):
        assert container.train_with_torchrun(config, [], tmp_path, host(count=2, instance_type=kind)) == 0
    signal.signal(signal.SIGTERM, before)
    assert started == [("3", None), ("3", "efa")], "which uses the fast network of its type"


LAUNCHER = """
import subprocess, sys, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit("torchrun ends its processes"))
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]]).returncode)
"""
WORKER = """
import pathlib, signal, sys
file = pathlib.Path(sys.argv[1])
def save(signum, frame):
    file.write_text("checkpoint")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
file.touch()
signal.pause()
"""


def test_only_sagemaker_limits_the_time_for_a_checkpoint(
    config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Torchrun, which would kill the process after 30 s, gets no signal."""
    file, popen = tmp_path / "state", subprocess.Popen

    def start(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        launcher = popen([sys.executable, "-c", LAUNCHER, WORKER, str(file)])
        threading.Thread(target=lambda: (until(file.is_file), os.kill(os.getpid(), signal.SIGTERM))).start()
        return launcher

    monkeypatch.setattr(container.subprocess, "Popen", start)
    monkeypatch.setattr(container, "ML", tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    assert container.train_with_torchrun(config, [], tmp_path, host(count=2)) == 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, before)
    assert file.read_text() == "checkpoint"
    assert "stopped by SIGTERM; the checkpoint has been written" in capsys.readouterr().out


def test_an_interrupted_process_is_no_failure_to_torchrun(
    config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cfg: object, overrides: object) -> None:
        raise Interrupted(signal.SIGTERM)

    work = tmp_path / "work.json"
    work.write_text(json.dumps({"config": config, "overrides": [], "folder": str(tmp_path)}))
    monkeypatch.setattr("imgcls.training.fit.fit", interrupted)
    monkeypatch.setattr(sys, "argv", ["worker", str(work)])
    monkeypatch.setenv("RANK", "0")
    assert worker.main() == 0


def test_a_bad_bundle_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SM_OUTPUT_FAILURE", str(tmp_path / "failure"))
    before = signal.getsignal(signal.SIGTERM)
    assert container.main() == 1
    signal.signal(signal.SIGTERM, before)
    assert "FileNotFoundError" in (tmp_path / "failure").read_text()
    assert os.path.basename("job.json") in capsys.readouterr().err  # noqa: PTH119


def test_fast_networks_are_used_where_the_instances_have_them() -> None:
    assert container.efa_variables("ml.g4dn.xlarge") == {}
    assert container.efa_variables("ml.g5.48xlarge")["FI_PROVIDER"] == "efa"
    assert container.efa_variables("ml.p4d.24xlarge")["FI_EFA_USE_DEVICE_RDMA"] == "1"
    utils = pytest.importorskip("sagemaker.train.container_drivers.common.utils", exc_type=ImportError)
    for kinds, ours in [(utils.SM_EFA_NCCL_INSTANCES, "FI_PROVIDER"), (utils.SM_EFA_RDMA_INSTANCES, "RDMAV_FORK_SAFE")]:
        for kind in set(kinds) - {"ml.trn1.32xlarge"}:  # which has no CUDA
            assert ours in container.efa_variables(kind), kind
