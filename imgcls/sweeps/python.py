"""`imgcls.search`: a search from Python, by the same code as the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from imgcls import config
from imgcls.errors import UserError
from imgcls.launch import launch
from imgcls.sweeps import outcome
from imgcls.sweeps.hydra import finish, read_search, study_name
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.space import Space, value_text
from imgcls.sweeps.study import Claim, Study
from imgcls.sweeps.supervisor import supervise
from imgcls.sweeps.trials import (
    apply_overrides,
    command_overrides,
    is_option,
    refit_overrides,
    reports_of,
    trial_overrides,
)
from imgcls.sweeps.worker import work

if TYPE_CHECKING:
    import optuna

    from imgcls.runs.run import Run


@dataclass(frozen=True)
class Search:
    """A finished search.

    Args:
        study: Optuna's study.
        trials: one dictionary per trial, as in `sweep.csv`.
        best: the best value of each option that was searched over, each of its own type.
        folder: the sweep's folder.
        refit: the best configuration, trained again and tested; None without `search.refit`.
    """

    study: optuna.study.Study
    trials: list[dict[str, Any]]
    best: dict[str, Any]
    folder: Path
    refit: Run | None = None


def search(
    cfg: DictConfig | Sequence[str],
    space: Mapping[str, Any] | None = None,
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Search:
    """Search `space` for the best configuration.

    >>> found = imgcls.search(["data=digits"], {"optim.lr": "tag(log,interval(1e-4,1e-1))"}, trials=5)
    ... # doctest: +SKIP
    >>> found.best["optim.lr"]  # doctest: +SKIP
    0.0043

    Args:
        cfg: a composed configuration, or the overrides to compose it from, which a search over groups, or with several
            workers, needs.
        space: of each option either its space in Hydra's sweep syntax or a list of values; None: `search.space`.
        folder: the sweep's folder; the search in an existing one is resumed. None: `sweeps/<name of the study>`.
        **options: of `search.*`, such as trials=50, workers=2, sampler="gp", pruner="median", refit=True.

    Raises:
        UserError: for what the user can fix, such as too many failed trials.
    """
    from imgcls.sweeps.page import write_page  # which loads matplotlib

    job = _Job.compose(cfg, space, options)
    name = job.options.study or (Path(folder).name if folder is not None else job.name())
    study = Study(name, job.options, job.space, Path(folder) if folder is not None else Path("sweeps") / name)
    announce = outcome.Announcer(study, command_overrides(job.overrides or []))
    try:
        if job.options.workers > 1:
            job.run_with_helpers(study, announce)
        else:
            job.run_here(study, announce)
        finish(study)
        best = outcome.best_trials(study)[0].params
        refit = job.refit(study, best) if job.options.refit else None
        if refit is not None:
            write_page(study)  # which now has its test
    finally:
        study.close()
    return Search(study.optuna, outcome.rows(study), job.space.typed(best), study.folder, refit)


@dataclass(frozen=True)
class _Job:
    """What is searched, and how its trials are run.

    Args:
        base: the configuration without what is searched over.
        overrides: those it was composed from; None where it was given composed.
        space: what is searched over.
        options: of the search.
        search_overrides: the options `search.*` that were given in Python, as overrides.
    """

    base: DictConfig
    overrides: list[str] | None
    space: Space
    options: SearchOptions
    search_overrides: list[str]

    @classmethod
    def compose(
        cls, cfg: DictConfig | Sequence[str], space: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> _Job:
        search_overrides = [text for name, value in options.items() for text in _option_overrides(name, value)]
        if isinstance(cfg, DictConfig):
            overrides, base = None, cfg.copy()
            changed = config.plain(config.compose(search_overrides))["search"]
            for name in options:
                OmegaConf.update(base, f"search.{name}", changed[name], merge=False)
        else:
            overrides = list(cfg)
            base = config.compose([*overrides, *search_overrides])
        searched = config.plain(base)["search"]
        searched = searched if space is None else {**searched, "space": space}
        swept, _, checked = read_search(searched, int(base.seed), metrics=base.get("metrics"))
        if overrides is None and (group := next((name for name in swept.names if not is_option(base, name)), None)):
            raise UserError(
                f"{group} is a group, or not in the configuration. "
                "Give imgcls.search the overrides instead of a composed configuration."
            )
        return cls(base, overrides, swept, checked, search_overrides)

    def name(self) -> str:
        """A name that the same search gets again."""
        if self.overrides is not None:
            deciding = [*self.overrides, *self.search_overrides]
        else:
            values = config.plain(self.base).items()
            deciding = [f"{name}={value}" for name, value in values if name not in ("run_dir", "search")]
        return study_name(str(self.base.data._target_).rpartition(".")[2].lower(), deciding, self.space)

    def run_here(self, study: Study, announce: outcome.Announcer) -> None:
        """Run the trials in this process, so that what one has imported and opened serves the next."""
        from imgcls.data.stores.sharing import shared_data

        reports = reports_of(self.space, self.base.trainer.max_epochs)

        def run(claims: Sequence[Claim]) -> list[BaseException | None]:
            errors: list[BaseException | None] = []
            for claim in claims:
                overrides = trial_overrides(study, claim, reports)
                try:
                    launch(self.composed(overrides), [*(self.overrides or []), *overrides])
                    errors.append(None)
                except Exception as error:
                    errors.append(error)
            return errors

        with shared_data():
            work(study, run, announce=announce)

    def run_with_helpers(self, study: Study, announce: outcome.Announcer) -> None:
        """Run the trials in separate processes."""
        if self.overrides is None:
            raise UserError("workers > 1 needs the overrides instead of a composed configuration.")
        where = [f"hydra.sweep.dir={value_text(str(study.folder))}", f"search.study={value_text(study.name)}"]
        space = [f"{name}={text}" for name, text in self.space.describe().items()]
        command = ["-m", "imgcls.train", "-m", "hydra/sweeper=optuna", *self.overrides, *self.search_overrides]
        supervise(study, [*command, *where, *space], announce, share_gpus=self.base.trainer.devices == "auto")

    def refit(self, study: Study, best: Mapping[str, Any]) -> Run:
        """Train the best configuration again, and test it."""
        overrides = refit_overrides(study, best)
        return launch(self.composed(overrides), [*command_overrides(self.overrides or []), *overrides])

    def composed(self, more: Sequence[str]) -> DictConfig:
        """The configuration with `more` overrides: composed again, or set in the given one."""
        if self.overrides is not None:
            return config.compose([*self.overrides, *self.search_overrides, *more])
        cfg = self.base.copy()
        apply_overrides(cfg, more)
        return cfg


def _option_overrides(name: str, value: Any) -> list[str]:
    """The option `search.<name>` as overrides; samplers and pruners by name, or by class and options."""
    if name not in ("sampler", "pruner"):
        return [f"search.{name}={value_text(value)}"]
    if isinstance(value, str):
        return [f"search/{name}={value}"]
    bare = {"sampler": "random", "pruner": "none"}[name]  # has no options to keep
    return [f"search/{name}={bare}", *(f"++search.{name}.{key}={value_text(item)}" for key, item in value.items())]
