"""`python -m imgcls.jobs`: the training jobs that imgcls has made in SageMaker.

usage: python -m imgcls.jobs [list]                        the latest jobs, and what those that run may still cost
       python -m imgcls.jobs attach run=DIR | job=NAME     follow a job to its end, and fetch its results
       python -m imgcls.jobs fetch  run=DIR | job=NAME     fetch the results of a job that has finished
       python -m imgcls.jobs stop   run=DIR | job=NAME     end a job; the command that made it goes on with it
       python -m imgcls.jobs policies role=NAME            what the role and you must be allowed, as IAM policies

options: region=… profile=… most=20 (jobs listed), poll=10 (seconds), to=DIR (where job=NAME is fetched to),
         bucket=… prefix=imgcls kms_key=… (for policies)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgcls.cli import guarded, parse_arguments
from imgcls.errors import UserError, nearest

OPTIONS = {
    "run": "",
    "job": "",
    "to": "",
    "region": "",
    "profile": "",
    "most": "20",
    "poll": "10",
    "role": "",
    "bucket": "",
    "prefix": "imgcls",
    "kms_key": "",
}
ACTIONS = ("list", "attach", "fetch", "stop", "policies")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments))))


def _main(arguments: list[str]) -> None:
    options, _, words = parse_arguments(arguments, OPTIONS, usage=__doc__ or "")
    action = words[0] if words else "list"
    if action not in ACTIONS or len(words) > 1:
        raise UserError(f"{' '.join(words)}: {nearest(action, ACTIONS)}")
    if not options["most"].isdigit() or not options["poll"].replace(".", "", 1).isdigit():
        raise UserError("most and poll must be numbers.")
    if action == "policies":
        from imgcls.launch.sagemaker.policies import print_policies

        print_policies(options)
    elif action == "list":
        _list(_cloud(options), int(options["most"]))
    else:
        _one(action, options)


def _cloud(options: dict[str, str]) -> Any:
    from imgcls.launch.sagemaker.cloud import Cloud

    given = {name: options[name] or None for name in ("region", "profile", "bucket")}
    return Cloud.connect(given["region"], given["profile"], bucket=given["bucket"], prefix=options["prefix"])


def _list(cloud: Any, most: int) -> None:
    from imgcls.launch.sagemaker.costs import at_most, hours
    from imgcls.launch.sagemaker.following import describe, is_running
    from imgcls.launch.sagemaker.naming import START
    from imgcls.launch.sagemaker.refusals import refusals_explained

    with refusals_explained("list the jobs"):
        found = cloud.client("sagemaker").list_training_jobs(
            NameContains=START, SortBy="CreationTime", SortOrder="Descending", MaxResults=min(100, max(1, most))
        )
    jobs = [describe(cloud, one["TrainingJobName"]) for one in found["TrainingJobSummaries"]]
    if not jobs:
        print(f"There are no jobs of imgcls in {cloud.region}.")
        return
    print(f"{'job':<50} {'state':<11} {'machines':<22} made")
    for job in jobs:
        resources = job["ResourceConfig"]
        machines = f"{resources['InstanceCount']} x {resources['InstanceType']}"
        made = job["CreationTime"].strftime("%Y-%m-%d %H:%M")
        print(f"{job['TrainingJobName']:<50} {job['TrainingJobStatus']:<11} {machines:<22} {made}")
    running = [job for job in jobs if is_running(job)]
    if not running:
        print("\nNone of them runs.")
    for job in running:
        print(f"\n{job['TrainingJobName']} runs: {at_most(cloud, job, hours(job, time.time()))}")
        print(f"  stop it with: python -m imgcls.jobs stop job={job['TrainingJobName']}")


def _one(action: str, options: dict[str, str]) -> None:
    from imgcls.launch.sagemaker.following import describe
    from imgcls.launch.sagemaker.refusals import refusals_explained

    folder, job = _which(options)
    cloud = _cloud(options)
    if action == "stop":
        with refusals_explained(f"stop the job {job}"):
            cloud.client("sagemaker").stop_training_job(TrainingJobName=job)
        print(f"{job} is asked to stop. The command that made it goes on with it from its checkpoints.")
    else:
        from imgcls.launch.sagemaker.results import bring_home

        if action == "fetch" and describe(cloud, job)["TrainingJobStatus"] == "InProgress":
            raise UserError(f"The job {job} still runs. Follow it: python -m imgcls.jobs attach job={job}")
        from imgcls.runs import load
        from imgcls.train import print_summary

        bring_home(cloud, job, folder, poll=float(options["poll"]))
        print_summary(load(folder))


def _which(options: dict[str, str]) -> tuple[Path, str]:
    """The run folder and the job that the options name; the folder's own region where none is given."""
    from imgcls.launch.sagemaker.record import JobRecord

    if bool(options["run"]) == bool(options["job"]):
        raise UserError("Which job? Give run=DIR or job=NAME; `python -m imgcls.jobs` lists them.")
    if options["job"]:
        return Path(options["to"] or f"runs/{options['job']}").expanduser(), options["job"]
    folder = Path(options["run"]).expanduser()
    record = JobRecord.read(folder)
    if record is None or record.job is None:
        raise UserError(f"run={folder}: this folder knows of no job. `python -m imgcls.jobs` lists them.")
    if record.where == "rehearsal":
        raise UserError(f"run={folder}: its job was a rehearsal, which ended with its command.")
    options["region"] = options["region"] or record.region
    options["profile"] = options["profile"] or record.profile or ""
    options["bucket"], options["prefix"] = record.bucket, record.prefix
    return folder, record.job


if __name__ == "__main__":
    main()
