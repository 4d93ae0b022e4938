"""The request for a tuning job, and what it cannot do: reported before anything heavy is imported."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from imgcls.config.composition import compose, plain
from imgcls.config.options import check_options
from imgcls.errors import UserError
from imgcls.launch.sagemaker.options import JobOptions
from imgcls.sweeps.options import search_options
from imgcls.sweeps.sagemaker.job import TuningPlan, search_request, warm_start_request
from imgcls.sweeps.sagemaker.options import TuningOptions, check_tuning
from imgcls.sweeps.sagemaker.ranges import Ranges
from imgcls.sweeps.space import parse_space

RATE = "optim.lr=interval(0.001,0.1)"


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    return plain(compose(["data=digits", "launch=sagemaker", "hydra/sweeper=sagemaker", "trainer.max_epochs=10"]))


def plan(composed: dict[str, Any], options: dict[str, Any], *space: str) -> TuningPlan:
    """The checked plan of a search with `options`, by dotted name."""
    config = copy.deepcopy(composed)
    for name, value in options.items():
        *path, last = name.split(".")
        place = config
        for part in path:
            place = place[part]
        assert last in place
        place[last] = value
    check_options(config)
    searched = dict(config["search"])
    tuning, search = TuningOptions(**searched.pop("tuning")), search_options(searched, config["seed"])
    swept, _ = parse_space(space or [RATE])
    check_tuning(tuning, search, swept, config)
    return TuningPlan("name", swept, [], {}, config["trainer"]["max_epochs"], [], JobOptions(), search, tuning, {})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"Strategy": "Bayesian", "TrainingJobEarlyStoppingType": "Off", "RandomSeed": 0}),
        ({"search.tuning.strategy": "random"}, {"Strategy": "Random"}),
        (
            {"search.tuning.strategy": "hyperband", "search.tuning.min_epochs": 3},
            {"StrategyConfig": {"HyperbandStrategyConfig": {"MinResource": 3, "MaxResource": 11}}},
        ),
        ({"search.tuning.stop_early": True}, {"TrainingJobEarlyStoppingType": "Auto"}),
        ({"search.tuning.target": 0.9}, {"TuningJobCompletionCriteria": {"TargetObjectiveMetricValue": 0.9}}),
        (
            {"search.tuning.converge": True},
            {"TuningJobCompletionCriteria": {"ConvergenceDetected": {"CompleteOnConvergence": "Enabled"}}},
        ),
        (
            {"search.tuning.max_runtime": 600, "search.workers": 2},
            {
                "ResourceLimits": {
                    "MaxNumberOfTrainingJobs": 20,
                    "MaxParallelTrainingJobs": 2,
                    "MaxRuntimeInSeconds": 600,
                }
            },
        ),
        (
            {"search.objective": "val/loss"},
            {"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "val/loss"}},
        ),
    ],
)
def test_how_it_searches(composed: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]) -> None:
    request = search_request(plan(composed, options))
    assert {name: request[name] for name in expected} == expected


def test_a_grid_has_every_combination_as_choices(composed: dict[str, Any]) -> None:
    grid = plan(composed, {"search.tuning.strategy": "grid"}, "optim.lr=0.1,0.01", "trainer.max_epochs=range(2,5)")
    request = search_request(grid)
    assert request["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 6
    assert request["ParameterRanges"]["IntegerParameterRanges"] == []
    assert request["ParameterRanges"]["CategoricalParameterRanges"] == [
        {"Name": "optim_lr", "Values": ['"0.1"', '"0.01"']},
        {"Name": "trainer_max_epochs", "Values": ['"2"', '"3"', '"4"']},
    ]


def test_it_learns_from_earlier_jobs(composed: dict[str, Any]) -> None:
    assert warm_start_request(plan(composed, {}).tuning) == {}
    warm = {"search.tuning.warm_start": ["first-1", "second"], "search.tuning.warm_start_type": "transfer"}
    assert warm_start_request(plan(composed, warm).tuning)["WarmStartConfig"] == {
        "ParentHyperParameterTuningJobs": [
            {"HyperParameterTuningJobName": "first-1"},
            {"HyperParameterTuningJobName": "second"},
        ],
        "WarmStartType": "TransferLearning",
    }


@pytest.mark.parametrize(
    ("options", "space", "complaint"),
    [
        ({"launch.debugger": True}, RATE, "tuning jobs have no field for SageMaker Debugger"),
        ({"search.tuning.strategy": "grid"}, RATE, "a grid needs single values"),
        (
            {"search.tuning.strategy": "hyperband", "search.tuning.stop_early": True},
            RATE,
            "hyperband ends trials by itself",
        ),
        ({"search.tuning.strategy": "hyperband", "search.tuning.min_epochs": 11}, RATE, "do not fit"),
        (
            {"search.tuning.strategy": "hyperband", "trainer.max_epochs": -1, "optim.schedule": "constant"},
            RATE,
            "trials with an end",
        ),
        ({"search.tuning.strategy": "hyperbnd"}, RATE, "Did you mean hyperband"),
        ({"search.tuning.min_epochs": 2}, RATE, "is for search.tuning.strategy=hyperband"),
        ({"search.tuning.patience": 2}, RATE, "must be a whole number of at least 3"),
        ({"search.tuning.warm_start": ["a_b"]}, RATE, "not the name of a tuning job"),
        (
            {"search.tuning.warm_start": ["a"], "search.tuning.strategy": "hyperband"},
            RATE,
            "cannot learn from earlier jobs",
        ),
        ({"search.tuning.warm_start": list("abcdef")}, RATE, "up to 5 jobs"),
        ({"search.tuning.warm_start_type": "transfer"}, RATE, "needs earlier jobs"),
        ({"search.workers": 21}, RATE, "only 20 trials"),
        ({"search.objective": ["val/loss", "parameters"]}, RATE, "has one objective"),
        ({"search.sampler": {"_target_": "grid"}}, RATE, "search.tuning.strategy="),
        ({"search.pruner": {"_target_": "optuna.pruners.MedianPruner"}}, RATE, "search.tuning.stop_early=true"),
        ({"search.first": [{"optim.lr": 0.01}]}, RATE, "cannot be given first values"),
        ({"search.cv": 5}, RATE, "search.cv: .* not the mean of folds"),
        ({"cv.folds": 5}, RATE, "cv.folds: .* not the mean of folds"),
        ({"search.storage": "journal"}, RATE, "AWS stores a tuning job"),
        ({}, "launch.instance_type=ml.g5.xlarge,ml.g4dn.xlarge", "cannot be searched over"),
        ({}, "data=digits,cifar10", "cannot be searched over"),
        ({}, "model.weights=a,b", "cannot be searched over"),
        ({}, f"data.batch_size={','.join(map(str, range(8, 40)))}", "has 32 values"),
        ({}, "data.batch_size=range(8,128,2)", "has 60 values"),
        ({}, f"model.name={'x' * 300},b", "up to 256 characters"),
    ],
)
def test_what_it_cannot_do_is_reported(
    composed: dict[str, Any], options: dict[str, Any], space: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        plan(composed, options, space)
    assert "\n" not in str(raised.value)


def test_a_job_has_at_most_thirty_ranges(composed: dict[str, Any]) -> None:
    space = [f"callbacks.x.a{number}=interval(0,1)" for number in range(31)]
    with pytest.raises(UserError, match="31 options are searched over; a tuning job takes 30"):
        plan(composed, {}, *space)


def test_values_come_back_as_they_were(composed: dict[str, Any]) -> None:
    """What AWS and its toolkit make of the values: JSON, decoded, as text."""
    overrides = ["a.b=true,false,null", "c.d='it\\'s \"so\" $(x)',y", "e.f=[1000,100],[512]", "g.h=1,2"]
    overrides += ["i.j=interval(0.1,1)", "k=range(2,9)"]
    ranges = Ranges(parse_space(overrides)[0])
    choices = ranges.request["CategoricalParameterRanges"]
    texts = {choice["Name"]: str(json.loads(choice["Values"][0])) for choice in choices}
    texts |= {"i_j": "0.09999999999999999", "k": "8"}
    texts = {key if key != "k" else ranges.keys["k"]: text for key, text in texts.items()}
    expected = {"a.b": True, "c.d": 'it\'s "so" $(x)', "e.f": [1000, 100], "g.h": 1, "i.j": 0.1, "k": 8}
    found = ranges.values(texts)
    assert found == expected
    assert [type(value) for value in found.values()] == [bool, str, list, int, float, int]
    with pytest.raises(UserError, match=r"has no value of a\.b"):
        ranges.values({})
    with pytest.raises(UserError, match="not in its search space"):
        ranges.values({**texts, "i_j": "0.05"})
