"""A study's storage, and the Optuna objects that a configuration names."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.runs.provenance import hide_secrets
from imgcls.system.extras import check_installed, need
from imgcls.system.files import take_lock


def need_optuna() -> Any:
    """The module optuna, with its log silenced. Raises UserError where it is not installed."""
    optuna = need("optuna", "search", "A search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def without_experimental_warnings() -> Iterator[None]:
    """Silence the warnings about samplers and options that Optuna has called experimental for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", need_optuna().exceptions.ExperimentalWarning)
        yield


def build(config: Mapping[str, Any], **more: Any) -> Any:
    """An Optuna sampler or pruner from its configuration, with what its class takes of `more`. Raises UserError."""
    from hydra.errors import InstantiationException
    from hydra.utils import get_class, instantiate

    try:
        need_optuna()
        parameters = inspect.signature(get_class(config["_target_"])).parameters
        with without_experimental_warnings():
            return instantiate({**config, **{name: value for name, value in more.items() if name in parameters}})
    except (ImportError, ValueError, InstantiationException) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"{config['_target_']} cannot be used: {reason}") from error


def need_sampler(config: Mapping[str, Any]) -> None:
    """Raise UserError where a package is missing that the sampler imports only when it first samples."""
    if str(config["_target_"]).endswith(".CmaEsSampler"):
        check_installed(["cmaes"], "search", "search/sampler=cmaes")


def storage_address(storage: str | None, folder: Path) -> str:
    """The address of the storage that `search.storage` means."""
    if storage in (None, "sqlite"):
        return f"sqlite:///{folder.absolute() / 'study.db'}"
    if storage == "journal":
        return f"journal:///{folder.absolute() / 'study.journal'}"
    assert storage is not None
    if "://" not in storage:
        raise UserError(f"search.storage={storage}: must be sqlite, journal, or an address such as sqlite:///study.db")
    return storage


def storage_file(address: str) -> Path | None:
    """The file of the storage at `address`; None for a server."""
    match = re.fullmatch(r"(?:sqlite(?:\+\w+)?|journal):///([^?]+).*", address)
    return Path(match[1]).absolute() if match else None


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Let one process at a time work on the storage in `file`."""
    with file.with_name(f".{file.name}.lock").open("a") as lock:
        take_lock(lock, wait=True)
        yield


def _create_whole(file: Path) -> None:
    """Create an SQLite database with Optuna's tables, whole or not at all."""
    import optuna

    with alone(file):
        if file.exists():
            return
        new = file.with_name(f".{file.name}.new")
        new.unlink(missing_ok=True)
        optuna.storages.RDBStorage(f"sqlite:///{new}").engine.dispose()
        new.replace(file)


def _open_server(address: str) -> Any:
    """The storage of a database server, where another machine may be creating Optuna's tables at the same time."""
    import optuna

    connect = functools.partial(optuna.storages.RDBStorage, address, engine_kwargs={"pool_pre_ping": True})
    for seconds in (0.2, 0.4, 0.8, 1.6, 3.2):
        try:
            return connect()
        except Exception as error:
            if "already exists" not in str(error):  # each database has its own class of error
                raise
        time.sleep(seconds)
    return connect()


@functools.lru_cache(maxsize=8)
def open_storage(address: str) -> Any:
    """The storage at `address`; one object per process. Raises UserError where it cannot be opened."""
    optuna = need_optuna()
    file = storage_file(address)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        if file is not None and address.startswith("sqlite"):
            _create_whole(file)
        if address.startswith("journal:///"):
            from optuna.storages.journal import JournalFileBackend

            return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        if address.startswith("sqlite"):
            return optuna.storages.RDBStorage(address, engine_kwargs={"connect_args": {"timeout": 60}})
        return _open_server(address)
    except Exception as error:  # of SQLAlchemy and the drivers
        reason = hide_secrets(str(error).splitlines()[0])
        if isinstance(error.__cause__, ModuleNotFoundError):
            reason = f"the driver of this database is not installed, the module {error.__cause__.name}."
        raise UserError(f"search.storage={hide_secrets(address)}: cannot be opened: {reason}") from error
