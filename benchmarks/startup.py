"""What a short run spends before its first step and after its last one, against importing the libraries.

    python benchmarks/startup.py [--repeats 3] [--command OVERRIDE ...] [--json FILE]

`python -m imgcls.train` on digits in a process of its own, as often as asked, alternately with a process that only
imports torch, lightning and timm. The first run fills the caches and is not counted. Prints a table (medians; seconds
of the clock, and of the processors) and a line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import command_line, report

IMPORTS = "import torch, lightning, timm"
RUN = """
import atexit, json, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
steps = []
register_optimizer_step_post_hook(lambda *ignored: steps.append((time.time(), time.process_time())))
file = sys.argv.pop(1)

@atexit.register
def write():
    with open(file, "w") as opened:
        json.dump([steps[0], steps[-1]], opened)

sys.orig_argv = [sys.executable, "-m", "imgcls.train"]  # it ends as the command does
runpy.run_module("imgcls.train", run_name="__main__")
"""


def timed(code: str, *words: str) -> tuple[float, float, float]:
    """When a process began and ended, and the seconds of the processors that it and its children used."""
    began = time.time()
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(said.decode())
    return began, time.time(), usage.ru_utime + usage.ru_stime


def run(command: list[str]) -> dict[str, float]:
    """Seconds of one run before its first step and after its last one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.json"
        began, ended, worked = timed(RUN, str(file), *command, f"run_dir={folder}/run")
        (first, first_worked), (last, last_worked) = json.loads(file.read_text())
    return {
        "to the first step": first - began,
        "to the first step, processors": first_worked,
        "from the last step": ended - last,
        "from the last step, processors": worked - last_worked,
    }


def main() -> None:
    """Measure, and print the figures."""
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--command", nargs="+", default=["data=digits", "trainer.max_epochs=1"])
    asked = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the first run compiles what it imports
    run(asked.command)
    rows: list[dict[str, float]] = []
    for _ in range(asked.repeats):
        began, ended, worked = timed(IMPORTS)
        rows.append({"imports": ended - began, "imports, processors": worked, **run(asked.command)})
    result = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    result["first step / imports"] = statistics.median(row["to the first step"] / row["imports"] for row in rows)
    for name, value in result.items():
        print(f"{name:32}{value:8.2f}")
    report(result, asked.json)


if __name__ == "__main__":
    main()
