"""A study that several workers share, some of which die: each trial is run once."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.sweeps import outcome
from imgcls.sweeps import study as study_module
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.optuna_internals import id_of
from imgcls.sweeps.space import parse_space
from imgcls.sweeps.study import Claim, Study
from imgcls.sweeps.worker import work
from imgcls.system.interrupts import Interrupted
from imgcls.system.tables import as_csv
from tests.clock import Clock

SPACE = parse_space(["optim.lr=tag(log,interval(1e-3,1))", "data.batch_size=32,64"])[0]
Open = Callable[..., Study]


@pytest.fixture
def open_study(tmp_path: Path) -> Open:
    def open_(name: str = "one", space: Any = SPACE, **options: Any) -> Study:
        values = {"objectives": {"val/accuracy": "max"}, "trials": 6, "storage": "journal", **options}
        return Study(name, SearchOptions(**values), space, tmp_path / name)

    return open_


def write_run(folder: Path, state: str = "finished", **metrics: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": state, "reason": None}))
    (folder / "metrics.json").write_text(json.dumps({"epochs": 2, **metrics}))


def value_of(overrides: Sequence[str]) -> float:
    values = dict(override.split("=") for override in overrides)
    return 1 - abs(float(values["optim.lr"]) - 0.03) - (values["data.batch_size"] == "64") * 0.1


def good(claims: Sequence[Claim]) -> list[BaseException | None]:
    for claim in claims:
        write_run(claim.folder, **{"val/accuracy": value_of(claim.overrides)})
    return [None] * len(claims)


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("storage", [None, "journal"])
def test_a_study_ends_with_all_its_trials(open_study: Open, storage: str | None, tmp_path: Path) -> None:
    study = open_study(storage=storage)
    work(study, good)
    assert states(study) == ["COMPLETE"] * 6
    best = outcome.best_trials(study)[0]
    assert best.values[0] == max(trial.values[0] for trial in study.trials)
    assert best.values[0] == value_of(SPACE.overrides(best.params))
    again = open_study(storage=storage, trials=8)
    work(again, good)
    assert states(again) == ["COMPLETE"] * 8, "more trials resume the study"
    assert [trial.params for trial in again.trials[:6]] == [trial.params for trial in study.trials]
    assert (tmp_path / "one" / ("study.journal" if storage else "study.db")).is_file()


def test_the_seed_decides_what_is_tried(open_study: Open) -> None:
    tried = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        study = open_study(name, seed=seed, trials=4)
        work(study, good)
        tried.append([trial.params for trial in study.trials])
    assert tried[0] == tried[1] != tried[2]


@pytest.mark.parametrize("sampler", ["RandomSampler", "TPESampler"])
def test_a_trial_killed_between_two_values_gets_the_values_of_an_unkilled_one(
    open_study: Open, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"_target_": f"optuna.samplers.{sampler}"}
    expected = [claim.overrides for claim in iter(open_study("whole", sampler=target).claim, None)]
    killed, suggest, suggested = open_study("killed", sampler=target), study_module._suggest, []

    def die(trial: Any, dimension: Any) -> Any:
        suggested.append(dimension.name)
        if len(suggested) % 2 == 0:
            raise KeyboardInterrupt
        return suggest(trial, dimension)

    found = []
    for _ in expected:
        with monkeypatch.context() as patch:
            patch.setattr(study_module, "_suggest", die)
            with pytest.raises(KeyboardInterrupt):
                killed.claim()
        found.append(killed.claim().overrides)  # type: ignore[union-attr]
    assert found == expected


def test_known_good_values_come_first(open_study: Open) -> None:
    study = open_study(first=[{"optim.lr": 0.03, "data.batch_size": 32}, {"optim.lr": 0.5}], trials=3)
    work(study, good)
    first, second, third = (trial.params for trial in study.trials)
    assert first == {"optim.lr": 0.03, "data.batch_size": 32}
    assert second["optim.lr"] == 0.5
    assert third["optim.lr"] not in (0.03, 0.5)
    with pytest.raises(UserError, match=r"search\.first: optim\.momentum is not searched over"):
        open_study("other", first=[{"optim.momentum": 0.9}])


def test_a_grid_tries_every_combination(open_study: Open) -> None:
    space = parse_space(["optim.lr=0.1,0.2,0.3", "data.batch_size=32,64"])[0]
    study = open_study(space=space, sampler={"_target_": "grid"})
    work(study, good)
    assert [tuple(trial.params.values()) for trial in study.trials] == [
        (lr, batch) for lr in (0.1, 0.2, 0.3) for batch in (32, 64)
    ]


@pytest.mark.parametrize(
    "sampler", ["RandomSampler", "TPESampler", "GPSampler", "CmaEsSampler", "NSGAIISampler", "QMCSampler"]
)
def test_all_samplers_suggest_different_values(open_study: Open, sampler: str) -> None:
    config = {"_target_": f"optuna.samplers.{sampler}"}
    if sampler in ("TPESampler", "GPSampler"):
        config["n_startup_trials"] = 3  # type: ignore[assignment]
    study = open_study(sampler=config, trials=6)
    work(study, good)
    assert states(study) == ["COMPLETE"] * 6
    assert len({trial.params["optim.lr"] for trial in study.trials}) == 6


def test_several_objectives_have_several_best(open_study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[None]:
        value = value_of(claims[0].overrides)
        write_run(claims[0].folder, **{"val/accuracy": value, "seconds": 10 * (value > 0.9)})
        return [None]

    study = open_study(
        objectives={"val/accuracy": "max", "seconds": "min"},
        trials=8,
        sampler={"_target_": "optuna.samplers.NSGAIISampler"},
    )
    work(study, run)
    best = outcome.best_trials(study)
    assert 1 <= len(best) <= 2
    assert {trial.number for trial in best} <= {trial.number for trial in study.optuna.best_trials}
    assert best[0].values[0] == max(trial.values[0] for trial in study.trials)


def test_a_failing_trial_is_recorded_and_the_search_continues(open_study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[BaseException | None]:
        if claims[0].number == 1:
            return [RuntimeError("the sky fell\nand more")]
        if claims[0].number == 2:
            write_run(claims[0].folder, **{"val/accuracy": float("nan")})
            return [None]
        return good(claims)

    study = open_study()
    work(study, run)
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    reasons = [trial.user_attrs.get("reason") for trial in study.trials[1:3]]
    assert reasons == ["RuntimeError: the sky fell", "val/accuracy is nan"]
    assert "the sky fell" in (study.folder / "1" / "error.txt").read_text()
    row = outcome.rows(study)[1]
    assert (row["state"], row["reason"], row["val/accuracy"]) == ("failed", "RuntimeError: the sky fell", "")


def test_too_many_failures_stop_the_search(open_study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[BaseException | None]:
        return [UserError("no images here")]

    study = open_study(max_failures=2)
    with pytest.raises(UserError, match=r"2 trials failed.*no images here"):
        work(study, run)
    assert states(study).count("FAIL") == 2
    fixed = open_study(max_failures=3)
    work(fixed, good)
    assert states(fixed) == ["FAIL", "FAIL", *["COMPLETE"] * 4]


def test_a_trial_is_created_when_it_is_claimed(open_study: Open) -> None:
    """Each look at a study reads every trial that has not ended: 10 s per trial where 2,000 wait from the start."""
    study = open_study(trials=2000)
    assert states(study) == []
    assert study.has_waiting
    assert not study.finished
    first = study.claim()
    assert states(study) == ["RUNNING"]
    good([first])
    study.complete(first, [0.5])
    assert study.has_waiting
    assert study.claim().number == 1
    assert states(study) == ["COMPLETE", "RUNNING"]


def test_what_two_machines_create_at_once_is_not_too_much(open_study: Open) -> None:
    study = open_study(trials=3)
    for _ in range(5):  # also what a study of an older imgcls, which created all trials at its start, looks like
        study.optuna.enqueue_trial({})
    work(study, good)
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.state.name for trial in study.optuna.get_trials()[3:]] == ["WAITING"] * 2
    alone = open_study("alone", trials=3)
    work(alone, good)
    assert [trial.params for trial in study.trials] == [trial.params for trial in alone.trials]


def test_the_table_is_complete_while_the_search_runs(open_study: Open) -> None:
    study = open_study(trials=4)
    announce, seen = outcome.Announcer(study, []), []

    def look() -> None:
        announce()
        file = study.folder / "sweep.csv"
        seen.append(file.read_text() if file.is_file() else None)
        assert seen[-1] is None or seen[-1] == as_csv(outcome.rows(study))

    work(study, good, announce=look)
    assert [text and len(text.splitlines()) for text in seen] == [None, 2, 3, 4, 5]


def test_an_interrupted_trial_is_released(open_study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[BaseException | None]:
        return [Interrupted(signal.SIGTERM)] if claims[0].number == 2 else good(claims)

    study = open_study()
    with pytest.raises(Interrupted):
        work(study, run)
    assert states(study) == ["COMPLETE", "COMPLETE", "WAITING"]
    tried = dict(study.trials[2].params)
    work(study, good)
    assert study.trials[2].params == tried, "the same values, which its run folder belongs to"


def test_another_space_is_another_study(open_study: Open) -> None:
    open_study()
    with pytest.raises(UserError, match="started with space="):
        open_study(space=parse_space(["optim.lr=0.1,0.2"])[0])
    with pytest.raises(UserError, match=r"started with objectives=|Cannot overwrite|direction"):
        open_study(objectives={"val/loss": "min"})


def test_a_storage_that_cannot_be_opened_is_explained_without_its_password(open_study: Open) -> None:
    for address in ("nodatabase://me:secret@host/db", "just_a_name"):
        with pytest.raises(UserError, match=r"search\.storage=") as caught:
            open_study(storage=address)
        assert "secret" not in str(caught.value)


def test_the_driver_that_a_database_needs_is_named(open_study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    def engine(*_: Any, **__: Any) -> None:
        import driver_of_nobody  # type: ignore[import-not-found] # noqa: F401

    monkeypatch.setattr(sqlalchemy.engine, "create_engine", engine)
    with pytest.raises(UserError, match="not installed, the module driver_of_nobody"):
        open_study(storage="postgresql://me@host/db")


@pytest.mark.parametrize("failures", [1, 3, 99])
def test_two_machines_may_start_on_an_empty_database(
    open_study: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """The error of PostgreSQL 15 for the second of two processes that create the same tables at the same time."""
    import optuna

    from imgcls.sweeps import storage

    opened: list[str] = []
    waited: list[float] = []

    class OtherWasFirst(optuna.storages.RDBStorage):
        def __init__(self, address: str, **options: Any) -> None:
            opened.append(address)
            if len(opened) <= failures:
                raise RuntimeError('duplicate key value violates "pg_type"\nDETAIL: Key (studies) already exists.')
            super().__init__(f"sqlite:///{tmp_path / 'server.db'}")

    monkeypatch.setattr(optuna.storages, "RDBStorage", OtherWasFirst)
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    storage.open_storage.cache_clear()
    if failures == 99:
        with pytest.raises(UserError, match="cannot be opened: duplicate key"):
            open_study(storage="postgresql://host/db")
    else:
        open_study(storage="postgresql://host/db")
        assert len(opened) == failures + 1
    assert waited == [0.2, 0.4, 0.8, 1.6, 3.2][:failures]


def test_a_worker_that_dies_at_the_same_point_fails_the_trial(open_study: Open) -> None:
    study = open_study(attempts=2, trials=2)
    for _ in range(2):
        dead = _forked(lambda: (study.claim(), os._exit(9)))
        os.waitpid(dead, 0)
    assert study.claim().number == 1, "the first trial is not started a third time"
    assert states(study)[0] == "FAIL"
    assert "its worker died 2 times" in study.trials[0].user_attrs["reason"]


def test_a_restarted_command_does_not_count_deaths(open_study: Open) -> None:
    for _ in range(4):
        os.waitpid(_forked(lambda: (open_study(attempts=2).claim(), os._exit(9))), 0)
    study = open_study(attempts=2)
    work(study, good)
    assert states(study) == ["COMPLETE"] * 6


def test_a_trial_of_a_living_worker_is_left_alone(open_study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    study, other = open_study(), open_study()
    claim = study.claim()
    other.requeue()
    assert states(other)[0] == "RUNNING"
    assert other.claim().number == 1
    study.close()  # which looks to others as if its worker had died
    other.requeue()
    assert states(other)[0] == "WAITING"
    assert claim is not None


def test_a_worker_on_another_machine_is_given_time(open_study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("imgcls.sweeps.liveness.time", clock)
    study = open_study(dead_after=300)
    claim = study.claim()
    trial_id = id_of(study.trials[0])
    study.note(claim, worker={"host": "elsewhere", "pid": 1, "born": 1.0, "token": "x", "beat": 1})
    study._mine.discard(trial_id)
    for clock.ahead in (0, 200):
        study.requeue()
        assert states(study)[0] == "RUNNING"
    clock.ahead = 400
    study.requeue()
    assert states(study)[0] == "WAITING", "no heartbeat for longer than dead_after"


def test_optuna_dashboard_opens_the_storage(open_study: Open) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    study = open_study(storage=None, trials=2)
    work(study, good)
    statuses: list[str] = []
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "wsgi.input": io.BytesIO()}
    answer = dashboard.wsgi(study.address)(environment, lambda status, *_: statuses.append(status))
    assert statuses == ["200 OK"]
    assert study.name in b"".join(answer).decode()


def test_only_one_worker_wins(open_study: Open) -> None:
    study, other = open_study(), open_study()
    assert study.win("refit")
    assert not other.win("refit")
    study.close()
    assert other.win("refit"), "after its death another worker may"


def _forked(act: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("storage", [None, "journal"])
def test_workers_that_are_killed_at_random_lose_repeat_and_duplicate_nothing(
    open_study: Open, tmp_path: Path, storage: str | None
) -> None:
    trials = 30
    log = tmp_path / "log"

    def slowly(claims: Sequence[Claim]) -> list[BaseException | None]:
        (claim,) = claims
        time.sleep(0.02)
        with log.open("a") as file:
            file.write(f"{claim.number} {' '.join(claim.overrides)}\n")
        good(claims)
        time.sleep(0.02)
        return [None]

    def worker() -> None:
        work(open_study(trials=trials, storage=storage, attempts=1000), slowly, wait=False)
        os._exit(0)

    from imgcls.sweeps.storage import open_storage

    open_storage.cache_clear()  # children must not share a parent's connection
    dice = random.Random(3)
    running = [_forked(worker) for _ in range(3)]
    kills = 0
    deadline = time.monotonic() + 200
    while running and time.monotonic() < deadline:
        time.sleep(dice.uniform(0.05, 0.4))
        for child in list(running):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                running.remove(child)
                assert os.waitstatus_to_exitcode(status) == 0
            elif kills < 12 and dice.random() < 0.4:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                running[running.index(child)] = _forked(worker)
    assert not running
    study = open_study(trials=trials, storage=storage)
    work(study, slowly)
    assert kills >= 3
    assert len(study.optuna.get_trials(deepcopy=False)) == trials
    assert states(study) == ["COMPLETE"] * trials
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert {int(number) for number, _ in lines} == set(range(trials))
    assert len(lines) <= trials + kills, "only killed trials are started again"
    for trial in study.trials:
        tried = {overrides for number, overrides in lines if int(number) == trial.number}
        assert tried == {" ".join(SPACE.overrides(trial.params))}, "with the values that it had"
        assert trial.values == [value_of(SPACE.overrides(trial.params))]


def test_a_database_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a table and its index, Optuna would leave a database that accepts a study twice."""
    import optuna

    from imgcls.sweeps.storage import open_storage

    file = tmp_path / "study.db"
    open_storage.cache_clear()

    def dying(self: Any, *args: Any, **options: Any) -> None:
        os._exit(9)

    def create() -> None:
        monkeypatch.setattr(optuna.storages._rdb.models.VersionInfoModel, "find", dying)
        open_storage(f"sqlite:///{file}")

    _, status = os.waitpid(_forked(create), 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert not file.exists()
    open_storage(f"sqlite:///{file}")
    assert file.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".study.db.lock", "study.db"]
