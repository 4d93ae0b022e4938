"""The loop of a worker: claim a trial, run it, report its end to the study, until none is left."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence

from imgcls.errors import UserError
from imgcls.runs.reading import read_metrics, read_status
from imgcls.sweeps.options import PRUNED
from imgcls.sweeps.study import Claim, Study
from imgcls.system.files import atomic_write_text
from imgcls.system.interrupts import Interrupted

Launch = Callable[[Sequence[Claim]], Sequence[BaseException | None]]
POLL_SECONDS = 0.5  # between two looks at what other workers do


def work(
    study: Study, launch: Launch, *, together: int = 1, wait: bool = True, announce: Callable[[], None] | None = None
) -> None:
    """Run trials of `study` until it is finished.

    Args:
        launch: runs trials in their folders and returns the error, or None, of each.
        together: how many trials `launch` is given at a time.
        wait: whether to stay while other workers run the last trials, to take over from those that die.
        announce: called after each trial.

    Raises:
        UserError: too many trials have failed.
        Interrupted: by a signal; the running trials are released.
    """
    with study.alive():
        while True:
            if announce is not None:
                announce()
            raise_if_stopped(study)
            claims = [claim for _ in range(together) if (claim := study.claim()) is not None]
            if claims:
                _run(study, launch, claims)
            elif study.finished or not wait:
                return
            else:
                time.sleep(POLL_SECONDS)


def raise_if_stopped(study: Study) -> None:
    """Raise UserError where too many trials have failed."""
    if (why := study.stopped()) is not None:
        raise UserError(f"The search {study.name} stops: {why}. Fix it, then raise search.max_failures.")


def _run(study: Study, launch: Launch, claims: list[Claim]) -> None:
    left = list(claims)
    try:
        errors = launch(claims)
        for claim, error in zip(claims, errors, strict=True):
            if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
                raise error
            conclude(study, claim, error)
            left.remove(claim)
    except BaseException:
        for claim in left:
            study.release(claim)
        raise


def conclude(study: Study, claim: Claim, error: BaseException | None) -> None:
    """Report the trial to `study` as its run folder records it, with `error` where that has no result."""
    status, metrics = read_status(claim.folder), read_metrics(claim.folder)
    facts = {name: metrics[name] for name in ("epochs", "best_epoch", "seconds") if name in metrics}
    study.note(claim, folder=str(claim.folder), **facts)
    if status.get("state") == "finished" and status.get("stopped_by") == PRUNED:
        study.prune(claim, str(status["reason"]))
    elif status.get("state") == "finished" and metrics:
        values = [float(metrics.get(name, math.nan)) for name in study.options.objectives]
        unknown = [name for name, value in zip(study.options.objectives, values, strict=True) if math.isnan(value)]
        if unknown:
            study.fail(claim, f"the run has no {unknown[0]}" if unknown[0] not in metrics else f"{unknown[0]} is nan")
        else:
            study.complete(claim, values)
    else:
        reason = _first_line(error) or status.get("reason") or "its process ended without recording a reason"
        if error is not None and not isinstance(error, UserError):
            atomic_write_text(claim.folder / "error.txt", "".join(traceback.format_exception(error)))
        study.fail(claim, str(reason))


def _first_line(error: BaseException | None) -> str | None:
    if error is None:
        return None
    first = str(error).strip().splitlines()[:1]
    return first[0] if isinstance(error, UserError) and first else ": ".join([type(error).__name__, *first])
