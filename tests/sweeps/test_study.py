"""A study that several workers share, some of which die: each trial is done once, by somebody."""

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
from imgcls.sweeps.options import SearchOptions
from imgcls.sweeps.optuna_internals import id_of
from imgcls.sweeps.space import parse_space
from imgcls.sweeps.study import Claim, Study
from imgcls.sweeps.worker import work
from imgcls.system.interrupts import Interrupted
from tests.clock import Clock

SPACE = parse_space(["optim.lr=tag(log,interval(1e-3,1))", "data.batch_size=32,64"])[0]
Open = Callable[..., Study]


@pytest.fixture
def study(tmp_path: Path) -> Open:
    def opened(name: str = "one", space: Any = SPACE, **options: Any) -> Study:
        given = {"objectives": {"val/accuracy": "max"}, "trials": 6, "storage": "journal", **options}
        return Study(name, SearchOptions(**given), space, tmp_path / name)

    return opened


def write_run(folder: Path, state: str = "finished", **metrics: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": state, "reason": None}))
    (folder / "metrics.json").write_text(json.dumps({"epochs": 2, **metrics}))


def value_of(words: Sequence[str]) -> float:
    values = dict(word.split("=") for word in words)
    return 1 - abs(float(values["optim.lr"]) - 0.03) - (values["data.batch_size"] == "64") * 0.1


def good(claims: Sequence[Claim]) -> list[BaseException | None]:
    for claim in claims:
        write_run(claim.folder, **{"val/accuracy": value_of(claim.words)})
    return [None] * len(claims)


def states(one: Study) -> list[str]:
    return [trial.state.name for trial in one.trials]


@pytest.mark.parametrize("storage", [None, "journal"])
def test_a_study_ends_with_all_its_trials(study: Open, storage: str | None, tmp_path: Path) -> None:
    one = study(storage=storage)
    work(one, good)
    assert states(one) == ["COMPLETE"] * 6
    best = outcome.best_trials(one)[0]
    assert best.values[0] == max(trial.values[0] for trial in one.trials)
    assert best.values[0] == value_of(SPACE.words(best.params))
    again = study(storage=storage, trials=8)
    work(again, good)
    assert states(again) == ["COMPLETE"] * 8, "more trials go on with the study"
    assert [trial.params for trial in again.trials[:6]] == [trial.params for trial in one.trials]
    assert (tmp_path / "one" / ("study.journal" if storage else "study.db")).is_file()


def test_the_seed_decides_what_is_tried(study: Open) -> None:
    tried = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        one = study(name, seed=seed, trials=4)
        work(one, good)
        tried.append([trial.params for trial in one.trials])
    assert tried[0] == tried[1] != tried[2]


def test_known_good_values_come_first(study: Open) -> None:
    one = study(first=[{"optim.lr": 0.03, "data.batch_size": 32}, {"optim.lr": 0.5}], trials=3)
    work(one, good)
    first, second, third = (trial.params for trial in one.trials)
    assert first == {"optim.lr": 0.03, "data.batch_size": 32}
    assert second["optim.lr"] == 0.5
    assert third["optim.lr"] not in (0.03, 0.5)
    with pytest.raises(UserError, match=r"search\.first: optim\.momentum is not searched over"):
        study("other", first=[{"optim.momentum": 0.9}])


def test_a_grid_tries_every_combination(study: Open) -> None:
    space = parse_space(["optim.lr=0.1,0.2,0.3", "data.batch_size=32,64"])[0]
    one = study(space=space, sampler={"_target_": "grid"})
    work(one, good)
    assert [tuple(trial.params.values()) for trial in one.trials] == [
        (lr, batch) for lr in (0.1, 0.2, 0.3) for batch in (32, 64)
    ]


@pytest.mark.parametrize(
    "sampler", ["RandomSampler", "TPESampler", "GPSampler", "CmaEsSampler", "NSGAIISampler", "QMCSampler"]
)
def test_all_samplers_find_their_way(study: Open, sampler: str) -> None:
    config = {"_target_": f"optuna.samplers.{sampler}"}
    if sampler in ("TPESampler", "GPSampler"):
        config["n_startup_trials"] = 3  # type: ignore[assignment]
    one = study(sampler=config, trials=6)
    work(one, good)
    assert states(one) == ["COMPLETE"] * 6
    assert len({trial.params["optim.lr"] for trial in one.trials}) == 6


def test_several_objectives_have_several_best(study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[None]:
        value = value_of(claims[0].words)
        write_run(claims[0].folder, **{"val/accuracy": value, "seconds": 10 * (value > 0.9)})
        return [None]

    one = study(
        objectives={"val/accuracy": "max", "seconds": "min"},
        trials=8,
        sampler={"_target_": "optuna.samplers.NSGAIISampler"},
    )
    work(one, run)
    best = outcome.best_trials(one)
    assert 1 <= len(best) <= 2
    assert {trial.number for trial in best} <= {trial.number for trial in one.optuna.best_trials}
    assert best[0].values[0] == max(trial.values[0] for trial in one.trials)


def test_a_failing_trial_is_recorded_and_the_search_goes_on(study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[BaseException | None]:
        if claims[0].number == 1:
            return [RuntimeError("the sky fell\nand more")]
        if claims[0].number == 2:
            write_run(claims[0].folder, **{"val/accuracy": float("nan")})
            return [None]
        return good(claims)

    one = study()
    work(one, run)
    assert states(one) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    reasons = [trial.user_attrs.get("reason") for trial in one.trials[1:3]]
    assert reasons == ["RuntimeError: the sky fell", "val/accuracy is nan"]
    assert "the sky fell" in (one.folder / "1" / "error.txt").read_text()
    row = outcome.rows(one)[1]
    assert (row["state"], row["reason"], row["val/accuracy"]) == ("failed", "RuntimeError: the sky fell", "")


def test_too_many_failures_stop_the_search(study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[BaseException | None]:
        return [UserError("no pictures here")]

    one = study(max_failures=2)
    with pytest.raises(UserError, match=r"2 trials failed.*no pictures here"):
        work(one, run)
    assert states(one).count("FAIL") == 2
    mended = study(max_failures=3)
    work(mended, good)
    assert states(mended) == ["FAIL", "FAIL", *["COMPLETE"] * 4]


def test_an_interrupted_trial_is_given_back(study: Open) -> None:
    def run(claims: Sequence[Claim]) -> list[BaseException | None]:
        return [Interrupted(signal.SIGTERM)] if claims[0].number == 2 else good(claims)

    one = study()
    with pytest.raises(Interrupted):
        work(one, run)
    assert states(one) == ["COMPLETE", "COMPLETE", *["WAITING"] * 4]
    tried = dict(one.trials[2].params)
    work(one, good)
    assert one.trials[2].params == tried, "the same values, which its run folder belongs to"


def test_another_space_is_another_study(study: Open) -> None:
    study()
    with pytest.raises(UserError, match="begun with another space"):
        study(space=parse_space(["optim.lr=0.1,0.2"])[0])
    with pytest.raises(UserError, match=r"begun with another objectives|Cannot overwrite|direction"):
        study(objectives={"val/loss": "min"})


def test_a_storage_that_cannot_be_opened_is_explained_without_its_password(study: Open) -> None:
    for address in ("nodatabase://me:secret@host/db", "just_a_name"):
        with pytest.raises(UserError, match=r"search\.storage=") as caught:
            study(storage=address)
        assert "secret" not in str(caught.value)


def test_the_driver_that_a_database_needs_is_named(study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    def engine(*_: Any, **__: Any) -> None:
        import driver_of_nobody  # type: ignore[import-not-found] # noqa: F401

    monkeypatch.setattr(sqlalchemy.engine, "create_engine", engine)
    with pytest.raises(UserError, match="not installed, the module driver_of_nobody"):
        study(storage="postgresql://me@host/db")


@pytest.mark.parametrize("failures", [1, 3, 99])
def test_two_machines_may_begin_on_an_empty_database(
    study: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """As PostgreSQL 15 answers the second of two that make the same tables at the same time."""
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
            study(storage="postgresql://host/db")
    else:
        study(storage="postgresql://host/db")
        assert len(opened) == failures + 1
    assert waited == [0.2, 0.4, 0.8, 1.6, 3.2][:failures]


def test_a_worker_that_dies_at_the_same_point_fails_the_trial(study: Open) -> None:
    one = study(attempts=2, trials=2)
    for _ in range(2):
        dead = _forked(lambda: (one.claim(), os._exit(9)))
        os.waitpid(dead, 0)
    assert one.claim().number == 1, "the first trial is not begun a third time"
    assert states(one)[0] == "FAIL"
    assert "its worker died 2 times" in one.trials[0].user_attrs["reason"]


def test_a_command_that_is_begun_again_does_not_count_deaths(study: Open) -> None:
    for _ in range(4):
        os.waitpid(_forked(lambda: (study(attempts=2).claim(), os._exit(9))), 0)
    one = study(attempts=2)
    work(one, good)
    assert states(one) == ["COMPLETE"] * 6


def test_a_trial_of_a_living_worker_is_left_alone(study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = study(), study()
    claim = one.claim()
    other.requeue()
    assert states(other)[0] == "RUNNING"
    assert other.claim().number == 1
    one.close()  # as far as others can tell, its worker is gone
    other.requeue()
    assert states(other)[0] == "WAITING"
    assert claim is not None


def test_a_worker_elsewhere_is_given_time(study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("imgcls.sweeps.liveness.time", clock)
    one = study(dead_after=300)
    claim = one.claim()
    trial_id = id_of(one.trials[0])
    one.note(claim, worker={"host": "elsewhere", "pid": 1, "born": 1.0, "token": "x", "beat": 1})
    one._mine.discard(trial_id)
    for clock.ahead in (0, 200):
        one.requeue()
        assert states(one)[0] == "RUNNING"
    clock.ahead = 400
    one.requeue()
    assert states(one)[0] == "WAITING", "no sign of life for longer than dead_after"


def test_optuna_dashboard_opens_the_storage(study: Open) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    one = study(storage=None, trials=2)
    work(one, good)
    told: list[str] = []
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "wsgi.input": io.BytesIO()}
    answer = dashboard.wsgi(one.address)(environment, lambda status, *_: told.append(status))
    assert told == ["200 OK"]
    assert one.name in b"".join(answer).decode()


def test_only_one_worker_wins(study: Open) -> None:
    one, other = study(), study()
    assert one.win("refit")
    assert not other.win("refit")
    one.close()
    assert other.win("refit"), "after its death another one does it"


def _forked(act: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("storage", [None, "journal"])
def test_workers_that_are_killed_at_random_lose_repeat_and_double_nothing(
    study: Open, tmp_path: Path, storage: str | None
) -> None:
    trials = 30
    log = tmp_path / "log"

    def slowly(claims: Sequence[Claim]) -> list[BaseException | None]:
        (claim,) = claims
        time.sleep(0.02)
        with log.open("a") as file:
            file.write(f"{claim.number} {' '.join(claim.words)}\n")
        good(claims)
        time.sleep(0.02)
        return [None]

    def worker() -> None:
        work(study(trials=trials, storage=storage, attempts=1000), slowly, wait=False)
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
    one = study(trials=trials, storage=storage)
    work(one, slowly)
    assert kills >= 3
    assert len(one.optuna.get_trials(deepcopy=False)) == trials
    assert states(one) == ["COMPLETE"] * trials
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert {int(number) for number, _ in lines} == set(range(trials))
    assert len(lines) <= trials + kills, "only what was killed is begun again"
    for trial in one.trials:
        tried = {words for number, words in lines if int(number) == trial.number}
        assert tried == {" ".join(SPACE.words(trial.params))}, "with the values that it had"
        assert trial.values == [value_of(SPACE.words(trial.params))]


def test_a_database_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a table and its index, Optuna's own way would leave a database that takes a study twice."""
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
