"""Downloads the results of a job: the run folder as a local run would have left it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgcls.aws.account import Account
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import fetch_file, list_objects, split_uri
from imgcls.launch.sagemaker.container import CHECKPOINT_LIST, JOB_FILE
from imgcls.system.files import explain_os_errors
from imgcls.system.unpacking import extract

log = logging.getLogger(__name__)

LOCAL_FILES = {"status.json", "config.yaml", "overrides.yaml", JOB_FILE, ".lock"}
"""Files of the run folder that describe the local run, not the container."""
TRACES = ("log.txt", "metrics.csv")
STATUS_FIELDS = ("micro_batch_size", "stopped_by", "reason", "resumed")


def fetch_results(account: Account, description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Download the results of the finished job with this `description` into the run folder.

    Returns:
        The job's own STATUS_FIELDS.

    Raises:
        UserError: S3 cannot be read, or the disk is full.
    """
    name = description["TrainingJobName"]
    model = description["ModelArtifacts"]["S3ModelArtifacts"]
    output = f"{description['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output/output.tar.gz"
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as work:
            unpacked = Path(work) / "run"
            _unpack(account, output, unpacked, Path(work))
            _unpack(account, model, unpacked / "model", Path(work))
            _fetch_checkpoints(account, description, unpacked)
            status = _status(unpacked)
            _move(unpacked, folder)
    log.info("The results of %s are in %s.", name, folder)
    return {key: status[key] for key in STATUS_FIELDS if status.get(key) is not None}


def _fetch_checkpoints(account: Account, description: dict[str, Any], folder: Path) -> None:
    """Download the checkpoints on the list in `folder`, and remove it. The archives of older jobs hold them instead."""
    list_file = folder / CHECKPOINT_LIST
    if not list_file.is_file():
        return
    sizes = json.loads(list_file.read_text(encoding="utf-8"))
    list_file.unlink()
    uri, trial = description["CheckpointConfig"]["S3Uri"].rstrip("/"), description["TrainingJobName"]
    client = account.client("s3")
    with explain_refusals(f"fetch the checkpoints in {uri}"):
        stored = {file.path: file for file in list_objects(client, uri)} if sizes else {}
        for path, size in sizes.items():
            # the trials of a tuning job share the place, and each has a folder there
            file = next((stored[place] for place in (path, f"{trial}/{path}") if place in stored), None)
            file = file or next((stored[place] for place in stored if place.endswith(f"/{trial}/{path}")), None)
            if file is None or file.size != size:
                log.warning("%s is not in %s any more: the run folder lacks it.", path, uri)
            else:
                fetch_file(client, file, folder / path)


def fetch_traces(account: Account, checkpoints: str, folder: Path) -> None:
    """Download the log and metrics of an unfinished job; its checkpoints stay in S3."""
    _fetch_matching(account, checkpoints, folder, lambda path: path in TRACES or path.startswith("debug/rules"))


def fetch_reports(account: Account, description: dict[str, Any], folder: Path) -> None:
    """Download the reports of SageMaker Debugger's rules: the profiler's page, and its findings as JSON."""
    output, name = description["OutputDataConfig"]["S3OutputPath"].rstrip("/"), description["TrainingJobName"]
    reports = f"{output}/{name}/rule-output"
    for file in _fetch_matching(account, reports, folder, lambda path: path.endswith((".html", ".json"))):
        if file.suffix == ".html":
            log.info("The profiler's report: %s", file)


def _fetch_matching(account: Account, uri: str, folder: Path, matches: Callable[[str], bool]) -> list[Path]:
    """Download the files below `uri` whose relative paths match."""
    client = account.client("s3")
    with explain_refusals(f"read {uri}"), explain_os_errors(folder):
        stored = [stored for stored in list_objects(client, uri) if matches(stored.path)]
        for file in stored:
            fetch_file(client, file, folder / file.path)
    return [folder / file.path for file in stored]


def _unpack(account: Account, uri: str, target: Path, work: Path) -> None:
    bucket, key = split_uri(uri)
    archive = work / "archive.tar.gz"
    with explain_refusals(f"fetch {uri}"):
        account.client("s3").download_file(bucket, key, str(archive))
    extract(archive, target)
    archive.unlink()


def _status(unpacked: Path) -> dict[str, Any]:
    try:
        content = json.loads((unpacked / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _move(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.name in LOCAL_FILES:
            continue
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        path.replace(target)
