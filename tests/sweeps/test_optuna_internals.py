"""The private interfaces of Optuna still exist and do what their names say."""

from __future__ import annotations

from typing import Any

import pytest

from imgcls.sweeps.optuna_internals import id_of, id_of_number, open_trial, share_search_space

optuna = pytest.importorskip("optuna")


def test_a_trial_is_found_by_its_number_and_opened() -> None:
    other = optuna.create_study()
    other.ask()
    study = optuna.create_study(storage=other._storage, study_name="second")
    study.ask()
    study.ask()
    _, frozen = study.get_trials()
    assert id_of(frozen) == id_of_number(study, 1) == 2, "the storage counts over all studies"
    trial = open_trial(study, id_of(frozen))
    assert trial.number == 1
    assert 0 <= trial.suggest_float("lr", 0, 1) <= 1
    trial.report(0.5, 1)
    assert study.get_trials()[1].intermediate_values == {1: 0.5}


def test_a_sampler_continues_the_search_space_of_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    looked: list[int] = []
    original = optuna.search_space.intersection._calculate

    def calculate(trials: Any, *rest: Any) -> Any:
        space, number = original(trials, *rest)
        looked.append(rest[-1])
        return space, number

    monkeypatch.setattr(optuna.search_space.intersection, "_calculate", calculate)
    earlier = None
    for number in range(4):
        sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=0)
        if earlier is not None:
            share_search_space(sampler, earlier)
        study.sampler = earlier = sampler
        trial = study.ask()
        study.tell(trial, trial.suggest_float("lr", 0, 1))
        if number:
            assert sampler.infer_relative_search_space(study, study.trials[-1]).keys() == {"lr"}
    assert looked[-1] >= 3, "of four trials, it began with the last"
    share_search_space(other := optuna.samplers.RandomSampler(), earlier)  # type: ignore[arg-type]
    assert not hasattr(other, "_search_space")
