"""A stand-in for AWS's tuner: it creates a training job for each trial, with random values or all of a grid.

It does not learn from the trials, ends none early, and has no completion criteria: a rehearsal shows that every trial
works. Jobs, names and values have AWS's format.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
ENDED = ("Completed", "Failed", "Stopped")
COPIED = (
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "VpcConfig",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "Environment",
)


class Tuner:
    """The tuning jobs of an account.

    Args:
        create: creates a training job from a request.
        stop: stops a training job by name.
        job: returns moto's record of a training job by name.
    """

    def __init__(
        self, create: Callable[[dict[str, Any]], None], stop: Callable[[str], None], job: Callable[[str], Any]
    ) -> None:
        self._create, self._stop, self._job = create, stop, job
        self._trials: dict[str, dict[str, Mapping[str, str]]] = {}
        self._objectives: dict[str, dict[str, str]] = {}
        self._stopped: set[str] = set()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, request: dict[str, Any], record: Any) -> None:
        """Run the tuning job of a CreateHyperParameterTuningJob request; `record` is moto's."""
        name = request["HyperParameterTuningJobName"]
        self._trials[name] = {}
        self._objectives[name] = request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
        record.hyper_parameter_tuning_job_status = "InProgress"
        record.hyper_parameter_tuning_end_time = None
        record.best_training_job = record.OverallBestTrainingJob = None
        self._count(name, record)
        thread = threading.Thread(target=self._run, args=(name, request, record), name=f"imgcls-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self, name: str) -> None:
        """Create no more trials, and stop the running ones."""
        self._stopped.add(name)
        for trial in self._running(name):
            self._stop(trial)

    def close(self) -> None:
        """Create no more trials."""
        self._closed.set()
        for thread in self._threads:
            thread.join(5)

    def summaries(self, name: str) -> list[dict[str, Any]]:
        """The summaries of ListTrainingJobsForHyperParameterTuningJob, latest first."""
        summaries = []
        for trial, values in reversed(list(self._trials[name].items())):
            job = self._job(trial)
            summaries.append({**_summary(trial, job), "TunedHyperParameters": values, **self._objective(name, trial)})
        return summaries

    # ----

    def _run(self, name: str, request: dict[str, Any], record: Any) -> None:
        try:
            self._search(name, request, record)
        except Exception as error:
            log.debug("The rehearsal of the tuning job failed.", exc_info=True)
            record.failure_reason = f"InternalServerError: {type(error).__name__}: {error}"
            record.hyper_parameter_tuning_job_status = "Failed"

    def _search(self, name: str, request: dict[str, Any], record: Any) -> None:
        config, definition = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]
        limits = config["ResourceLimits"]
        multi_host = definition["ResourceConfig"]["InstanceCount"] > 1  # its hosts meet at a fixed port
        parallel = 1 if multi_host else int(limits["MaxParallelTrainingJobs"])
        values, made = suggestions(config), 0
        while not self._closed.is_set():
            over = name in self._stopped or made >= int(limits["MaxNumberOfTrainingJobs"])
            running = self._running(name)
            if over and not running:
                break
            if not over and len(running) < parallel:
                chosen = next(values, None)
                if chosen is None:
                    break
                made += 1
                self._make(name, made, chosen, definition)
            self._count(name, record)
            time.sleep(TICK_SECONDS)
        self._count(name, record)
        failed = made > 0 and all(self._job(trial).training_job_status == "Failed" for trial in self._trials[name])
        if failed:
            record.failure_reason = "All training jobs failed. Please take a look at the training jobs failures"
        stopped = name in self._stopped
        record.hyper_parameter_tuning_job_status = "Failed" if failed else "Stopped" if stopped else "Completed"

    def _make(self, name: str, number: int, values: Mapping[str, str], definition: Mapping[str, Any]) -> None:
        trial = f"{name}-{number:03d}-{secrets.token_hex(4)}"
        static = definition.get("StaticHyperParameters") or {}
        objective = {"_tuning_objective_metric": self._objectives[name]["MetricName"]}
        request = {key: definition[key] for key in COPIED if definition.get(key) is not None}
        place = definition["CheckpointConfig"]
        self._create(
            {
                **request,
                "TrainingJobName": trial,
                "HyperParameters": {**static, **objective, **values},
                "CheckpointConfig": {**place, "S3Uri": f"{place['S3Uri'].rstrip('/')}/{trial}"},
            }
        )
        self._trials[name][trial] = values  # not before it runs: moto creates jobs as completed
        if name in self._stopped:
            self._stop(trial)

    def _running(self, name: str) -> list[str]:
        return [trial for trial in list(self._trials[name]) if self._status(trial) not in ENDED]

    def _status(self, trial: str) -> str:
        return str(self._job(trial).training_job_status)

    def _count(self, name: str, record: Any) -> None:
        states = [self._status(trial) for trial in list(self._trials[name])]
        record.training_job_status_counters = {
            "Completed": states.count("Completed"),
            "InProgress": sum(state not in ENDED for state in states),
            "RetryableError": 0,
            "NonRetryableError": states.count("Failed"),
            "Stopped": states.count("Stopped"),
        }

    def _objective(self, name: str, trial: str) -> dict[str, Any]:
        objective, job = self._objectives[name], self._job(trial)
        if self._status(trial) not in ENDED:
            return {"ObjectiveStatus": "Pending"}
        measured = {metric["MetricName"]: metric["Value"] for metric in job.final_metric_data_list}
        if objective["MetricName"] not in measured:
            return {"ObjectiveStatus": "Failed"}
        value = {**objective, "Value": measured[objective["MetricName"]]}
        return {"ObjectiveStatus": "Succeeded", "FinalHyperParameterTuningJobObjectiveMetric": value}


def suggestions(config: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Values by key in AWS's format: all of a grid, or random ones with the request's seed."""
    ranges = config["ParameterRanges"]
    choices = {entry["Name"]: list(entry["Values"]) for entry in ranges["CategoricalParameterRanges"]}
    if config["Strategy"] == "Grid":
        for combination in itertools.product(*choices.values()):
            yield dict(zip(choices, combination, strict=True))
        return
    generator = random.Random(config.get("RandomSeed"))
    while True:
        values = {name: generator.choice(options) for name, options in choices.items()}
        for entry in ranges["ContinuousParameterRanges"]:
            values[entry["Name"]] = repr(_interpolate(entry, generator.random()))
        for entry in ranges["IntegerParameterRanges"]:
            wider = {**entry, "MaxValue": int(entry["MaxValue"]) + 1}
            values[entry["Name"]] = str(min(int(_interpolate(wider, generator.random())), int(entry["MaxValue"])))
        yield values


def _interpolate(entry: Mapping[str, Any], share: float) -> float:
    low, high = float(entry["MinValue"]), float(entry["MaxValue"])
    if entry.get("ScalingType") == "Logarithmic":
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)


def _summary(trial: str, job: Any) -> dict[str, Any]:
    ended = job.training_job_status in ENDED
    summary = {
        "TrainingJobName": trial,
        "TrainingJobArn": job.arn,
        "TrainingJobStatus": job.training_job_status,
        "CreationTime": job.creation_time.timestamp(),
        "TrainingStartTime": job.training_start_time.timestamp(),
        "FailureReason": getattr(job, "failure_reason", None) or "",
    }
    return {**summary, "TrainingEndTime": job.training_end_time.timestamp()} if ended else summary
