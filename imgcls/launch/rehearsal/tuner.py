"""A stand-in for AWS's tuner: it chooses values at random or all of a grid, and makes a training job for each trial.

It does not learn from the trials, ends none early, and has no criteria of completion: what is rehearsed is that every
trial works. Jobs, names and values have the form that AWS gives them.
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

TICK = 0.1  # seconds
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
        create: makes a training job of a request.
        stop: stops a training job by its name.
        job: gives moto's record of a training job by its name.
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
        """Run the tuning job of a request of CreateHyperParameterTuningJob; `record` is moto's of it."""
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
        """Make no more trials, and stop those that run."""
        self._stopped.add(name)
        for trial in self._running(name):
            self._stop(trial)

    def close(self) -> None:
        """Make no more trials."""
        self._closed.set()
        for thread in self._threads:
            thread.join(5)

    def summaries(self, name: str) -> list[dict[str, Any]]:
        """What ListTrainingJobsForHyperParameterTuningJob answers, latest first."""
        found = []
        for trial, values in reversed(list(self._trials[name].items())):
            job = self._job(trial)
            found.append({**_summary(trial, job), "TunedHyperParameters": values, **self._objective(name, trial)})
        return found

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
        several = definition["ResourceConfig"]["InstanceCount"] > 1  # they meet at one port of this machine
        most = 1 if several else int(limits["MaxParallelTrainingJobs"])
        values, made = suggestions(config), 0
        while not self._closed.is_set():
            over = name in self._stopped or made >= int(limits["MaxNumberOfTrainingJobs"])
            running = self._running(name)
            if over and not running:
                break
            if not over and len(running) < most:
                chosen = next(values, None)
                if chosen is None:
                    break
                made += 1
                self._make(name, made, chosen, definition)
            self._count(name, record)
            time.sleep(TICK)
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
        self._trials[name][trial] = values  # not before it runs: moto's jobs begin as completed
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
        measured = {one["MetricName"]: one["Value"] for one in job.final_metric_data_list}
        if objective["MetricName"] not in measured:
            return {"ObjectiveStatus": "Failed"}
        value = {**objective, "Value": measured[objective["MetricName"]]}
        return {"ObjectiveStatus": "Succeeded", "FinalHyperParameterTuningJobObjectiveMetric": value}


def suggestions(config: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Values by key, as AWS writes them: all of a grid, or at random from the request's seed."""
    ranges = config["ParameterRanges"]
    choices = {one["Name"]: list(one["Values"]) for one in ranges["CategoricalParameterRanges"]}
    if config["Strategy"] == "Grid":
        for combination in itertools.product(*choices.values()):
            yield dict(zip(choices, combination, strict=True))
        return
    chance = random.Random(config.get("RandomSeed"))
    while True:
        values = {name: chance.choice(given) for name, given in choices.items()}
        for one in ranges["ContinuousParameterRanges"]:
            values[one["Name"]] = repr(_between(one, chance.random()))
        for one in ranges["IntegerParameterRanges"]:
            wider = {**one, "MaxValue": int(one["MaxValue"]) + 1}
            values[one["Name"]] = str(min(int(_between(wider, chance.random())), int(one["MaxValue"])))
        yield values


def _between(one: Mapping[str, Any], share: float) -> float:
    low, high = float(one["MinValue"]), float(one["MaxValue"])
    if one.get("ScalingType") == "Logarithmic":
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
