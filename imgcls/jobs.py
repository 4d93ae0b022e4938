"""`python -m imgcls.jobs`: the training jobs and tuning jobs that imgcls has created in SageMaker.

usage: python -m imgcls.jobs [list]                        the latest jobs, and what running ones may still be billed
       python -m imgcls.jobs attach run=DIR | job=NAME     follow a job to its end, and fetch its results
       python -m imgcls.jobs fetch  run=DIR | job=NAME     fetch the results of a job that has finished
       python -m imgcls.jobs stop   run=DIR | job=NAME     end a job; the command that created it resumes it
       python -m imgcls.jobs clean [what=jobs,data,weights] [older=30] [yes=true]   what jobs have left in S3
       python -m imgcls.jobs wheels to=FOLDER [framework_version=2.14] [requirements=FILE]   for launch.wheels=FOLDER
       python -m imgcls.jobs policies role=NAME            the permissions that the role and you need, as IAM policies

A tuning job is given in the same way, with its sweep's folder as run=DIR; each of its trials is a job too.

options: region=… profile=… most=20 (jobs listed), poll=10 (seconds), to=DIR (the folder for job=NAME),
         bucket=… prefix=imgcls kms_key=… subnets=… security_groups=… data=s3://… image=… (for policies)
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls.cli import Option, boolean, confirm_removal, read_options, run_command, texts
from imgcls.errors import UserError, nearest
from imgcls.system.checks import flag, number, whole

OPTIONS = {
    "run": Option(),
    "job": Option(),
    "to": Option(),
    "region": Option(),
    "profile": Option(),
    "most": Option(20, whole(1), int),
    "poll": Option(10.0, number(0, open_low=True), float),
    "what": Option(("jobs", "data", "weights"), parse=texts),
    "older": Option(None, number(0), float),
    "yes": Option(False, flag, boolean),
    "framework_version": Option("2.14"),
    "requirements": Option(),
    "role": Option("imgcls-training"),
    "bucket": Option(),
    "prefix": Option("imgcls"),
    "kms_key": Option(),
    "data": Option((), parse=texts),
    "image": Option(),
    "subnets": Option((), parse=texts),
    "security_groups": Option((), parse=texts),
}
ACTIONS = ("list", "attach", "fetch", "stop", "clean", "wheels", "policies")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_command(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> None:
    options, _, actions = read_options(arguments, OPTIONS, usage=__doc__ or "", others=1)
    action = actions[0] if actions else "list"
    if action not in ACTIONS:
        raise UserError(f"{action}: {nearest(action, ACTIONS)}")
    if action == "policies":
        from imgcls.launch.sagemaker.policies import print_policies

        print_policies(options)
    elif action == "wheels":
        _make_wheels(options)
    elif action == "clean":
        _clean(_account(options), options)
    elif action == "list":
        _list(_account(options), options["most"])
    else:
        _handle_job(action, options)


def _account(options: Mapping[str, Any]) -> Any:
    from imgcls.aws.account import Account, Caller

    given = {name: options[name] for name in ("region", "profile", "bucket", "prefix")}
    return Account.connect(**given, caller=Caller(option_prefix=""))


def _list(account: Any, most: int) -> None:
    from imgcls.aws.costs import describe_cost, remaining_hours, remaining_tuning_hours
    from imgcls.aws.naming import NAME_PREFIX, TUNING_PREFIX, is_trial_name
    from imgcls.aws.refusals import explain_refusals
    from imgcls.launch.sagemaker.progress import describe, is_running
    from imgcls.sweeps.sagemaker.state import describe_tuning

    client = account.client("sagemaker")
    latest = {"SortBy": "CreationTime", "SortOrder": "Descending"}
    with explain_refusals("list the jobs"):
        pages = client.get_paginator("list_training_jobs").paginate(NameContains=NAME_PREFIX, **latest)
        names = (summary["TrainingJobName"] for page in pages for summary in page["TrainingJobSummaries"])
        jobs = list(itertools.islice((name for name in names if not is_trial_name(name)), most))
        searches = client.list_hyper_parameter_tuning_jobs(
            NameContains=TUNING_PREFIX, MaxResults=min(100, most), **latest
        )
    rows: list[tuple[str, str, str, Any]] = []
    costs: list[str] = []
    for job in [describe(account, name) for name in jobs]:
        resources = job["ResourceConfig"]
        instances = f"{resources['InstanceCount']} x {resources['InstanceType']}"
        rows.append((job["TrainingJobName"], job["TrainingJobStatus"], instances, job["CreationTime"]))
        if is_running(job):
            costs.append(_cost(job["TrainingJobName"], describe_cost(account, job, remaining_hours(job, time.time()))))
    for summary in searches["HyperParameterTuningJobSummaries"]:
        name, state = summary["HyperParameterTuningJobName"], summary["HyperParameterTuningJobStatus"]
        total = summary["ResourceLimits"].get("MaxNumberOfTrainingJobs", "?")
        ended = summary["TrainingJobStatusCounters"].get("Completed", 0)
        rows.append((name, state, f"{ended} of {total} trials", summary["CreationTime"]))
        if state in ("InProgress", "Stopping") and (search := describe_tuning(account, name)) is not None:
            costs.append(
                _cost(name, describe_cost(account, search["TrainingJobDefinition"], remaining_tuning_hours(search)))
            )
    if not rows:
        print(f"imgcls has no jobs in {account.region}.")
        return
    print(f"{'job':<50} {'state':<11} {'instances':<22} created")
    for name, state, instances, created in sorted(rows, key=lambda row: row[3], reverse=True)[:most]:
        print(f"{name:<50} {state:<11} {instances:<22} {created:%Y-%m-%d %H:%M}")
    print("\n".join(costs) if costs else "\nNone of them is running.")


def _make_wheels(options: Mapping[str, Any]) -> None:
    """Make the folder for launch.wheels: what a job without network installs, for the Python of its image."""
    from imgcls.launch.sagemaker.options import JobOptions
    from imgcls.launch.sagemaker.training_job import image_uri
    from imgcls.launch.sagemaker.wheels import build_wheels, image_python

    if not options["to"]:
        raise UserError("Give the folder for the wheels: to=FOLDER.")
    job = JobOptions(framework_version=options["framework_version"], requirements=options["requirements"])
    python = image_python(image_uri(job, options["region"] or "us-east-1"))
    if python is None:
        raise UserError(f"framework_version={job.framework_version}: the Python of this image is not known.")
    lines = job.requirements_for([{"export": {"onnx": "auto"}, "data": {"root": ""}}]).splitlines()
    folder = Path(options["to"]).expanduser()
    build_wheels(folder, lines, python)
    print(f"{folder} holds what jobs install, for Python {python[0]}.{python[1]}: launch.wheels={folder}")


def _clean(account: Any, options: Mapping[str, Any]) -> None:
    """List what jobs have left in S3; with `older=DAYS` or `yes=true` remove it, except what running jobs use."""
    from imgcls.launch.sagemaker.leftovers import KINDS, find_leftovers, remove_leftovers

    for kind in options["what"]:
        if kind not in KINDS:
            raise UserError(f"what={kind}: {nearest(kind, KINDS)}")
    found = find_leftovers(account, options["what"])
    place = account.places.uri()
    if not found:
        print(f"Jobs have left nothing in {place}")
        return
    print(f"{'what':<8} {'name':<50} {'MB':>10} {'days old':>9}")
    for entry in found:
        running = "  in use by a running job" if entry.used else ""
        print(f"{entry.kind:<8} {entry.name:<50} {entry.size / 1e6:>10,.1f} {entry.days:>9.0f}{running}")
    print(f"{sum(entry.size for entry in found) / 1e9:,.1f} GB in {place}")
    doomed = [entry for entry in found if not entry.used and entry.days >= (options["older"] or 0)]
    if options["older"] is None and not options["yes"]:
        print(
            "To remove it: python -m imgcls.jobs clean older=30 (days; older=0: all); what=jobs,data,weights selects."
        )
        return
    if not doomed:
        print("None of it is older, or not in use.")
        return
    if not options["yes"]:
        confirm_removal(f"Remove {len(doomed)} of them ({sum(entry.size for entry in doomed) / 1e9:,.1f} GB)?")
    remove_leftovers(account, doomed)
    print(f"Removed {', '.join(f'{entry.kind}/{entry.name}' for entry in doomed)}.")


def _cost(name: str, text: str) -> str:
    return f"\n{name} runs: {text}\n  stop it with: python -m imgcls.jobs stop job={name}"


def _handle_job(action: str, options: dict[str, Any]) -> None:
    from imgcls.aws.naming import is_tuning_name
    from imgcls.system.interrupts import StopSignals

    folder, job = _find_job(options)
    account = _account(options)
    if action == "stop":
        _stop(account.client("sagemaker"), job)
        return
    with StopSignals():
        _follow_or_fetch(action, account, job, folder, is_tuning_name(job), options["poll"])


def _follow_or_fetch(action: str, account: Any, job: str, folder: Path, is_tuning: bool, poll: float) -> None:
    if is_tuning:
        from imgcls.sweeps.sagemaker.results import attach
        from imgcls.sweeps.sagemaker.state import describe_tuning, is_running

        if action == "fetch" and is_running(describe_tuning(account, job) or {"HyperParameterTuningJobStatus": ""}):
            raise UserError(f"The tuning job {job} is still running. Follow it: python -m imgcls.jobs attach job={job}")
        attach(account, job, folder, poll=poll)
    else:
        from imgcls.launch.sagemaker.progress import describe
        from imgcls.launch.sagemaker.results import fetch_job
        from imgcls.runs.run import load, print_summary
        from imgcls.sweeps.sagemaker.trial import read_configuration

        if action == "fetch" and describe(account, job)["TrainingJobStatus"] == "InProgress":
            raise UserError(f"The job {job} is still running. Follow it: python -m imgcls.jobs attach job={job}")
        fetch_job(account, job, folder, poll=poll, read=read_configuration)
        print_summary(load(folder))


def _stop(client: Any, job: str) -> None:
    from imgcls.aws.naming import is_tuning_name
    from imgcls.aws.refusals import explain_refusals

    with explain_refusals(f"stop the job {job}, which is billed until it ends"):
        if is_tuning_name(job):
            client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=job)
            print(f"{job} and its trials are stopping. It cannot be resumed, but its results can be fetched.")
        else:
            client.stop_training_job(TrainingJobName=job)
            print(f"{job} is stopping. The command that created it resumes it from its checkpoints.")


def _find_job(options: dict[str, Any]) -> tuple[Path, str]:
    """The run folder and the job in `options`, which get the folder's region where they have none."""
    from imgcls.aws.naming import is_tuning_name
    from imgcls.launch.sagemaker.record import JobRecord

    if bool(options["run"]) == bool(options["job"]):
        raise UserError("Give run=DIR or job=NAME; `python -m imgcls.jobs` lists them.")
    if job := options["job"]:
        return Path(options["to"] or f"{'sweeps' if is_tuning_name(job) else 'runs'}/{job}").expanduser(), job
    folder = Path(options["run"]).expanduser()
    record = JobRecord.read(folder)
    if record is None or record.job is None:
        raise UserError(f"run={folder}: this folder records no job. `python -m imgcls.jobs` lists them.")
    if record.where == "rehearsal":
        raise UserError(f"run={folder}: its job was a rehearsal, which ended with its command.")
    options["region"] = options["region"] or record.region
    options["profile"] = options["profile"] or record.profile
    options["bucket"], options["prefix"] = record.bucket, record.prefix
    return folder, record.job


if __name__ == "__main__":
    main()
