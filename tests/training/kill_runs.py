"""Kill a run at random moments, resume it, and compare its result with that of an undisturbed run.

usage: python tests/training/kill_runs.py FOLDER PICTURES [KILLS] [OVERRIDES…]

The libraries are imported once and each attempt is a forked child, so twenty kills take one minute instead of ten.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import imgcls.training.pipeline  # noqa: F401 - imported before the first fork
from imgcls import compose, fit

TIMES = ("seconds", "images_per_second", "training_seconds", "wall_seconds", "data_wait_fraction")


def start(overrides: list[str]) -> int:
    """Start a run in a forked child; return its process ID."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fit(compose(overrides))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def numbers(folder: Path) -> dict[str, float]:
    """The final metrics that do not measure time."""
    return {
        name: value for name, value in json.loads((folder / "metrics.json").read_text()).items() if name not in TIMES
    }


def main() -> None:
    """Print one JSON line with the result."""
    folder, pictures, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    overrides = ["data=imagefolder", f"data.root={pictures}", *sys.argv[4:]]
    began = time.monotonic()
    _, status = os.waitpid(start([*overrides, f"run_dir={folder / 'whole'}"]), 0)
    assert status == 0, "the undisturbed run failed"
    length = time.monotonic() - began

    dice = random.Random(0)
    killed, runs, equal = 0, 0, True
    while killed < kills:
        runs += 1
        killed_folder = folder / f"killed{runs}"
        fresh, patience = True, 1.0
        while True:
            child = start([*overrides, f"run_dir={killed_folder}"])
            began = time.monotonic()
            deadline = began + dice.uniform(0.1, 0.8) * length * patience
            status = -1
            while time.monotonic() < deadline:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                time.sleep(0.01)
            else:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                killed += 1
                fresh, patience = False, 1.1 * patience  # on a machine that has become slow, a run ends all the same
                continue
            assert status == 0, f"a resumed run failed in {killed_folder}"
            if fresh:  # the machine is quicker than it was: without this, few of the next runs would be hit
                length = min(length, time.monotonic() - began)
            break
        same = [
            numbers(folder / "whole") == numbers(killed_folder),
            (folder / "whole/predictions.csv").read_bytes() == (killed_folder / "predictions.csv").read_bytes(),
            (folder / "whole/model/model.safetensors").read_bytes()
            == (killed_folder / "model/model.safetensors").read_bytes(),
        ]
        equal = equal and all(same)
        left = [path.name for path in killed_folder.rglob("*.tmp")]
        print(f"run {runs}: equal {same}, {killed} kills so far, left behind {left}", file=sys.stderr)
    print(json.dumps({"kills": killed, "runs": runs, "equal": equal, "seconds_of_one_run": round(length, 2)}))


if __name__ == "__main__":
    main()
