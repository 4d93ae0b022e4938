"""One of several training processes; started by `processes.py` as `python -m imgcls.training.worker JOB`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from imgcls.errors import UserError, describe_users_error
from imgcls.system.interrupts import Interrupted


def main() -> int:
    """Train this process's share; the first process that fails writes the reason to `.outcome.json`."""
    job = json.loads(Path(sys.argv[1]).read_text())
    _die_with_parent(job["parent"])
    folder = Path(job["folder"])
    from omegaconf import OmegaConf

    from imgcls.system.logs import log_to_file
    from imgcls.training.devices import OutOfMemory
    from imgcls.training.fit import train_here

    cfg: Any = OmegaConf.create(job["config"])
    first = os.environ["RANK"] == "0"
    try:
        with log_to_file(folder / "log.txt", terminal=not cfg.quiet) if first else contextlib.nullcontext():
            train_here(cfg, folder, job["micro_batch_size"])
    except UserError as error:
        return _write_outcome(folder, {"kind": "user", "message": str(error)}, error.exit_code)
    except Interrupted as error:
        return error.exit_code
    except OutOfMemory as error:
        return _write_outcome(folder, {"kind": "memory", "message": str(error), "size": error.size}, 1)
    except Exception as error:
        if own := describe_users_error(error):
            print(own[0], file=sys.stderr, end="")
            return _write_outcome(folder, {"kind": "user", "message": own[1]}, UserError.exit_code)
        traceback.print_exc()
        return _write_outcome(folder, {"kind": "crash", "message": f"{type(error).__name__}: {error}"}, 1)
    return 0


def _write_outcome(folder: Path, outcome: dict[str, Any], code: int) -> int:
    with contextlib.suppress(FileExistsError), (folder / ".outcome.json").open("x") as file:
        json.dump(outcome, file)
    return code


def _die_with_parent(parent: int) -> None:
    """Be killed when the parent is, if the kernel supports it (Linux), so that no process is left behind."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the clean-up of a process group with a dead member would hang
