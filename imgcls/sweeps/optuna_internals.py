"""What imgcls needs of Optuna 5 that Optuna does not promise to keep: the one place to look after an upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial


def id_of(trial: FrozenTrial) -> int:
    """The id of `trial` in its storage, which is not its number."""
    return trial._trial_id


def id_of_number(study: Study, number: int) -> int:
    """The id of trial `number`, read from the storage."""
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)


def open_trial(study: Study, trial_id: int) -> Trial:
    """The trial, to suggest values for and to report to; the study rereads the others."""
    from optuna.trial import Trial

    study._thread_local.cached_all_trials = None
    return Trial(study, trial_id)


def share_search_space(sampler: BaseSampler, earlier: BaseSampler) -> None:
    """Let `sampler` know which options the trials have in common, as far as `earlier` has looked at them.

    Both are of one study. By itself each sampler looks at all trials.
    """
    from optuna.search_space import IntersectionSearchSpace

    known = getattr(earlier, "_search_space", None)
    if isinstance(known, IntersectionSearchSpace) and type(sampler) is type(earlier):
        sampler._search_space = known  # type: ignore[attr-defined]
