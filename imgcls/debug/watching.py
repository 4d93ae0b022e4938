"""From the options `debug.*` to the callbacks that watch a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L

from imgcls.debug.profiler import KernelProfiler, Profiler
from imgcls.debug.recorder import Recorder
from imgcls.debug.rules import Rule
from imgcls.debug.smdebug_callback import COLLECTIONS, SMDebug


def watch(
    folder: Path,
    *,
    every: int = 50,
    rules: Mapping[str, Rule] | None = None,
    warn: bool = True,
    stop_on: Sequence[str] = (),
    profile: bool | str = True,
    sample_seconds: float = 0.5,
    profile_rules: Mapping[str, Rule] | None = None,
    smdebug: bool = False,
    smdebug_collections: Sequence[str] = COLLECTIONS,
    class_counts: Sequence[int] = (),
) -> list[L.Callback]:
    """The callbacks, in order.

    Args:
        folder: `debug` in the run folder.
        every, rules, warn, stop_on, class_counts: see Recorder.
        profile: True for a Profiler, 'kernels' to add the operators of a few steps, False for neither.
        sample_seconds, profile_rules: see Profiler.
        smdebug: also write an smdebug trial of each `every`-th step to `debug/smdebug`, with `smdebug_collections`.
    """
    callbacks: list[L.Callback] = [
        Recorder(folder, every=every, rules=rules, warn=warn, stop_on=stop_on, class_counts=class_counts)
    ]
    if profile is not False:
        callbacks.append(Profiler(folder / "profile", rules=profile_rules, sample_seconds=sample_seconds))
    if profile == "kernels":
        callbacks.append(KernelProfiler(folder / "profile" / "kernels"))
    if smdebug:
        callbacks.append(SMDebug(folder / "smdebug", every=every, collections=tuple(smdebug_collections)))
    return callbacks
