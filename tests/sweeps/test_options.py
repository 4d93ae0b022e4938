"""The options search.*: refused early where they cannot be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.sweeps.options import SearchOptions, search_options
from imgcls.sweeps.space import parse_space, space_overrides

SPACES = sorted(
    file.stem for file in (Path(__file__).parents[2] / "conf" / "search").glob("*.yaml") if file.stem != "default"
)


def options(*overrides: str) -> SearchOptions:
    return search_options(plain(compose(overrides))["search"], seed=0)


def test_the_metric_decides_which_way_is_better() -> None:
    assert options().objectives == {"val/accuracy": "max"}
    assert options("search.objective=val/loss").objectives == {"val/loss": "min"}
    assert options("checkpoint.monitor=val/loss", "checkpoint.mode=min").objectives == {"val/loss": "min"}
    both = options("search.objective=[val/accuracy,parameters]")
    assert both.objectives == {"val/accuracy": "max", "parameters": "min"}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["search.objective=test/accuracy"], "the test set is never searched on"),
        (["search.objective=val/acuracy"], "Did you mean val/accuracy"),
        (["search.objective=parameters"], "Put a val/ metric first"),
        (["search.direction=up"], "search.direction=up: is not known. Choose one of: max, min, null."),
        (["search.objective=[val/accuracy,seconds]", "search.direction=[max]"], "2 metrics"),
        (["search.objective=[val/accuracy,seconds]", "search/pruner=median"], "several objectives cannot prune"),
        (["search.trials=0"], "whole number of at least 1"),
        (["search.workers=two"], "whole number of at least 1"),
        (["search.first=[0.1]"], "must be a list"),
        (["search/sampler=tpr"], "Did you mean tpe"),
        (["search=cifar"], "there is no search called 'cifar'"),
    ],
)
def test_what_cannot_be_right_is_explained(overrides: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        options(*overrides)


@pytest.mark.parametrize("name", ["tpe", "random", "grid", "gp", "cmaes", "nsga2"])
def test_samplers_are_chosen_by_one_word(name: str) -> None:
    from imgcls.sweeps.storage import build

    chosen = options(f"search/sampler={name}")
    assert chosen.grid == (name == "grid")
    if not chosen.grid:
        wanted = {"nsga2": "nsgaii"}.get(name, name)
        assert (
            type(build(chosen.sampler, seed=3)).__name__.lower() == {"cmaes": "cmaes"}.get(wanted, wanted) + "sampler"
        )


@pytest.mark.parametrize("name", ["none", "median", "successive_halving", "hyperband"])
def test_pruners_are_chosen_by_name(name: str) -> None:
    from imgcls.sweeps.storage import build
    from imgcls.sweeps.trials import pruner_config

    chosen = options(f"search/pruner={name}")
    assert chosen.prunes == (name != "none")
    pruner = build(pruner_config(chosen.pruner, 12))
    assert type(pruner).__name__ == {"none": "Nop"}.get(name, name.title().replace("_", "")) + "Pruner"
    if name == "hyperband":
        assert pruner._max_resource == 12


def test_an_impossible_sampler_is_explained() -> None:
    from imgcls.sweeps.storage import build

    with pytest.raises(UserError, match="no_such"):
        build({"_target_": "optuna.samplers.no_such"})
    with pytest.raises(UserError, match="RandomSampler cannot be used"):
        build({"_target_": "optuna.samplers.RandomSampler", "speed": 3})


@pytest.mark.parametrize("name", SPACES)
def test_the_spaces_that_come_with_imgcls(name: str) -> None:
    search = plain(compose([f"search={name}"]))["search"]
    space, fixed = parse_space(space_overrides(search["space"]))
    assert not fixed
    assert {"optim.lr"} < set(space.names)
    assert search_options(search, 0).trials >= 2
    if name == "cifar10_resnet50":
        assert (space["optim.lr"].low, space["optim.lr"].high) == (0.001, 0.1)
        assert space["trainer.max_epochs"].grid() == (5, 10, 15, 20)
