"""`imgcls.search`: a search from Python, by the same code as the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from imgcls import config
from imgcls.errors import UserError
from imgcls.sweeps import outcome
from imgcls.sweeps.hydra import finish, study_name
from imgcls.sweeps.options import SearchOptions, search_options
from imgcls.sweeps.space import Space, parse_space, space_words, value_text
from imgcls.sweeps.study import Claim, Study
from imgcls.sweeps.trials import command_words, put_in, refit_words, reports_of, trial_words
from imgcls.sweeps.worker import work

if TYPE_CHECKING:
    import optuna

    from imgcls.runs.run import Run


@dataclass(frozen=True)
class Search:
    """A finished search.

    Args:
        study: Optuna's study.
        trials: one dictionary a trial, as in `sweep.csv`.
        best: the best value of each option that was searched over, each of its own type.
        folder: the sweep's folder.
        refit: the best configuration, trained once more and tested; None without `search.refit`.
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
        folder: the sweep's folder; the same folder goes on with what it holds. None: `sweeps/<name of the study>`.
        **options: of `search.*`, such as trials=50, workers=2, sampler="gp", pruner="median", refit=True.

    Raises:
        UserError: for what the user can mend, too many failed trials among it.
    """
    job = _Job.of(cfg, space, options)
    name = job.options.study or (Path(folder).name if folder is not None else job.name())
    study = Study(name, job.options, job.space, Path(folder) if folder is not None else Path("sweeps") / name)
    announce = outcome.Announcer(study, command_words(job.words or []), lambda line: print(line, flush=True))
    try:
        if job.options.workers > 1:
            job.run_with_helpers(study, announce)
        else:
            job.run_here(study, announce)
        finish(study)
        best = outcome.best_trials(study)[0].params
        refit = job.refit(study, best) if job.options.refit else None
    finally:
        study.close()
    return Search(study.optuna, outcome.rows(study), job.space.typed(best), study.folder, refit)


@dataclass(frozen=True)
class _Job:
    """What is searched, and how a trial of it is run.

    Args:
        base: the configuration without what is searched over.
        words: the overrides that it was composed from, where they are known.
        space: what is searched over.
        options: how.
        asked: the options `search.*` that were given in Python, as overrides.
    """

    base: DictConfig
    words: list[str] | None
    space: Space
    options: SearchOptions
    asked: list[str]

    @classmethod
    def of(cls, cfg: DictConfig | Sequence[str], space: Mapping[str, Any] | None, given: Mapping[str, Any]) -> _Job:
        asked = [word for name, value in given.items() for word in _option_words(name, value)]
        if isinstance(cfg, DictConfig):
            words, base = None, cfg.copy()
            changed = config.plain(config.compose(asked))["search"]
            for name in given:
                OmegaConf.update(base, f"search.{name}", changed[name], merge=False)
        else:
            words = list(cfg)
            base = config.compose([*words, *asked])
        searched = config.plain(base)["search"]
        swept, _ = parse_space(space_words(space if space is not None else searched["space"]))
        if not swept.dimensions:
            raise UserError("There is nothing to search: give a space, such as {'optim.lr': 'interval(0.001,0.1)'}.")
        if words is None and (named := next((name for name in swept.names if not _is_option(base, name)), None)):
            raise UserError(
                f"{named} is a group, or not in the configuration. "
                "Give imgcls.search the overrides instead of a composed configuration."
            )
        return cls(base, words, swept, search_options(searched, int(base.seed)), asked)

    def name(self) -> str:
        """A name that the same search gives again."""
        if self.words is not None:
            told = [*self.words, *self.asked]
        else:
            told = [
                f"{name}={value}"
                for name, value in config.plain(self.base).items()
                if name not in ("run_dir", "search")
            ]
        return study_name(str(self.base.data._target_).rpartition(".")[2].lower(), told, self.space)

    def run_here(self, study: Study, announce: outcome.Announcer) -> None:
        """Run the trials in this process: all that is imported and opened serves the next trial too."""
        from imgcls.data.stores.sharing import shared_data
        from imgcls.launch import launch

        reports = reports_of(self.space, self.base.trainer.max_epochs)

        def run(claims: Sequence[Claim]) -> list[BaseException | None]:
            errors: list[BaseException | None] = []
            for claim in claims:
                words = trial_words(study, claim, reports)
                try:
                    launch(self.composed(words), [*(self.words or []), *words])
                    errors.append(None)
                except Exception as error:
                    errors.append(error)
            return errors

        with shared_data():
            work(study, run, announce=announce)

    def run_with_helpers(self, study: Study, announce: outcome.Announcer) -> None:
        """Run the trials in processes of their own."""
        from imgcls.sweeps.supervisor import supervise

        if self.words is None:
            raise UserError("workers > 1 needs the overrides instead of a composed configuration.")
        where = [f"hydra.sweep.dir={value_text(str(study.folder))}", f"search.study={value_text(study.name)}"]
        space = [f"{name}={text}" for name, text in self.space.describe().items()]
        words = ["-m", "hydra/sweeper=optuna", *self.words, *self.asked, *where, *space]
        supervise(study, ["-m", "imgcls.train", *words], announce, share_gpus=self.base.trainer.devices == "auto")

    def refit(self, study: Study, best: Mapping[str, Any]) -> Run:
        """Train the best configuration once more, and test it."""
        from imgcls.launch import launch

        words = refit_words(study, best)
        return launch(self.composed(words), [*command_words(self.words or []), *words])

    def composed(self, more: Sequence[str]) -> DictConfig:
        """The configuration with `more` overrides: composed anew, or put in."""
        if self.words is not None:
            return config.compose([*self.words, *self.asked, *more])
        cfg = self.base.copy()
        put_in(cfg, more)
        return cfg


def _is_option(cfg: DictConfig, name: str) -> bool:
    missing = object()
    found = OmegaConf.select(cfg, name, default=missing)
    return found is not missing and not isinstance(found, DictConfig)


def _option_words(name: str, value: Any) -> list[str]:
    """`value` of the option `search.<name>` as overrides; samplers and pruners by name, or by class and options."""
    if name not in ("sampler", "pruner"):
        return [f"search.{name}={value_text(value)}"]
    if isinstance(value, str):
        return [f"search/{name}={value}"]
    bare = {"sampler": "random", "pruner": "none"}[name]  # has no options of its own
    return [f"search/{name}={bare}", *(f"++search.{name}.{key}={value_text(one)}" for key, one in value.items())]
