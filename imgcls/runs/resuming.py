"""Finding an unfinished run again: the command that resumes it, and `resume=last`."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.config.overrides import in_grammar
from imgcls.errors import UserError
from imgcls.runs.earlier import EARLIER
from imgcls.runs.provenance import differences, hide_secrets, read_configuration, read_overrides, redact
from imgcls.runs.reading import read_status
from imgcls.runs.recording import MOVABLE
from imgcls.system.files import take_lock

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def resume_command(arguments: Sequence[str], option: str, folder: str, program: str = "python -m imgcls.train") -> str:
    """The command that resumes the run, or the sweep, of the command line `arguments`, to be pasted into a shell.

    Args:
        arguments: of the command that was stopped.
        option: the option that names the folder: `run_dir`, or `hydra.sweep.dir`.
        folder: its value.
        program: what runs the command.

    >>> resume_command(["data.root=my photos", "resume=last"], "run_dir", "runs/a")
    "python -m imgcls.train 'data.root=my photos' run_dir=runs/a"
    """
    kept = [text for text in arguments if not text.startswith((f"{option}=", "resume="))]
    place = f"{option}={in_grammar(folder)}"
    return " ".join([program, *(shlex.quote(hide_secrets(text)) for text in (*kept, place))])


def as_begun(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """`cfg` with the defaults of the version that began the run in `folder`, if it was begun by the same overrides.

    A run goes to its end with the defaults that it began with. An option that did not exist then is None.
    """
    from omegaconf import OmegaConf

    from imgcls.config.composition import plain

    if not (folder / "overrides.yaml").is_file() or not (folder / "config.yaml").is_file():
        return cfg
    given = [redact(text) for text in overrides]
    before, now = (
        [text for text in words if not text.startswith(MOVABLE)] for words in (read_overrides(folder), given)
    )
    stored = read_configuration(folder)
    changes = [
        (name, value)
        for name, value, _ in differences(redact(stored), redact(plain(cfg)))
        if not name.startswith(MOVABLE)
    ]
    earlier = {name: EARLIER[name].values if name in EARLIER else () for name, _ in changes}
    if before != now or not all(value is None or value in earlier[name] for name, value in changes):
        return cfg
    cfg = cfg.copy()
    for name, value in changes:
        log.info("%s keeps the default that it began with: %s=%s.", folder, name, value)
        section, _, option = name.rpartition(".")
        if value is None and section == "data" and option not in stored["data"]:
            OmegaConf.set_struct(cfg.data, False)
            del cfg.data[option]  # an argument of the data module, which has a default of its own
        else:
            OmegaConf.update(cfg, name, value, force_add=True)
    return cfg


def resume_last(cfg: DictConfig) -> DictConfig:
    """`cfg` with the folder of the newest unfinished run of the same configuration, which a line names.

    Where there is none, another line says so, and `cfg` begins a run of its own. Raises UserError where the folder is
    given: then nothing is left to be found.
    """
    from omegaconf import OmegaConf

    from imgcls.config.composition import plain
    from imgcls.system.logs import log_to_terminal

    unresolved = str(OmegaConf.to_container(cfg, resolve=False)["run_dir"])  # type: ignore[index,call-overload]
    fixed, variable, tail = unresolved.partition("${")
    if not variable or "://" in fixed:
        raise UserError(
            f"resume=last looks for the run folder itself. Leave out run_dir={cfg.run_dir}, or resume=last."
        )
    root = Path(fixed.rpartition("/")[0] or ".").expanduser()
    depth = len(re.sub(r"\$\{[^}]*\}", "x", variable + tail).split("/"))
    folder = _newest_unfinished(root, depth, plain(cfg))
    cfg = cfg.copy()
    cfg.resume = "auto"
    with log_to_terminal():
        if folder is None:
            log.info("resume=last: %s has no unfinished run of this configuration; a new one begins.", root)
        else:
            status = read_status(folder)
            log.info("resume=last: resuming %s (%s, %s).", folder, status["state"], status.get("updated", "no date"))
            cfg.run_dir = str(folder)
    return cfg


def keep_split(cfg: DictConfig, folder: Path) -> DictConfig:
    """`cfg` with the split of the unfinished run in `folder`, if it began when `seed` also decided the split."""
    if not (folder / "config.yaml").is_file():
        return cfg
    stored = read_configuration(folder)
    data, seed = stored.get("data") or {}, stored.get("seed")
    if cfg.data.get("seed") != 0 or not data.get("seed") == data.get("order_seed") == seed == cfg.seed:
        return cfg
    cfg = cfg.copy()
    cfg.data.seed = seed
    return cfg


def _newest_unfinished(root: Path, depth: int, config: dict[str, Any]) -> Path | None:
    files = sorted(root.glob("/".join(["*"] * depth + ["status.json"])), key=lambda file: -file.stat().st_mtime_ns)
    return next((file.parent for file in files if _can_resume(file.parent, config)), None)


def _can_resume(folder: Path, config: dict[str, Any]) -> bool:
    """Whether `folder` holds a run of `config` that has not finished and that no process writes to."""
    movable = tuple(name for name in MOVABLE if name != "data.root")
    try:
        if read_status(folder).get("state") == "finished":
            return False
        changes = differences(redact(read_configuration(folder)), redact(config))
        with (folder / ".lock").open("a") as lock:
            return all(name.startswith(movable) for name, _, _ in changes) and take_lock(lock, wait=False)
    except (OSError, UserError):
        return False
