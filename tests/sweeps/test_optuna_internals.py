"""The private interfaces of Optuna still exist and do what their names say."""

from __future__ import annotations

import pytest

from imgcls.sweeps.optuna_internals import id_of, id_of_number, open_trial

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
