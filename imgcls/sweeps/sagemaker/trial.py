"""What runs in the container of a trial, started by AWS's older toolkit as `python train.py --key value …`.

The toolkit starts it once on every host, and would install a requirements.txt in the folder of `train.py`: so the rest
of the bundle is in a folder below, where `container.py` continues as in any other job.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls.launch.sagemaker import container
from imgcls.launch.sagemaker.results import job_configuration

SCRIPT = "train.py"
# The content of the script, which needs only Python.
SCRIPT_TEXT = '''\
"""Runs imgcls, which is in the folder `source` beside this file."""
import os
import sys

source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "source")
os.chdir(source)
sys.path.insert(0, source)
os.environ["PYTHONPATH"] = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])

from imgcls.sweeps.sagemaker.trial import main

sys.exit(main(sys.argv[1:]))
'''
PROCESS = container.ML / "imgcls.pid"
SIGNALS = "signals.sh"
# The first process of AWS's images is `bash start_with_right_hostname.sh train`. As the first process, bash
# ignores SIGTERM, and so does the toolkit that it starts (its issues 125 and 173). But it reads the file BASH_ENV.
SIGNALS_TEXT = f"""\
# Read by the first process of the container, bash, before it starts `train`: passes SIGTERM on to the training.
unset BASH_ENV
if [ "$$" = 1 ]; then
    train() {{
        local child= status=0 last
        trap 'kill -TERM "$(cat {PROCESS} 2>/dev/null || echo "$child")" 2>/dev/null' TERM
        command train "$@" &
        child=$!
        while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done
        # A signal ends a wait with its own number, also if the training has ended by then.
        wait "$child" 2>/dev/null
        last=$?
        [ "$last" = 127 ] || status=$last
        return "$status"
    }}
fi
"""


def main(arguments: Sequence[str]) -> int:
    """Train the trial that `arguments` (`--key value …`) describe; return the exit code."""
    PROCESS.write_text(str(os.getpid()))
    os.environ.setdefault("SM_MASTER_ADDR", os.environ.get("MASTER_ADDR", "algo-1"))
    checkpoints = container.CHECKPOINTS / os.environ["TRAINING_JOB_NAME"]  # trials may share one place in S3
    texts = {key.lstrip("-"): value for key, value in zip(arguments[::2], arguments[1::2], strict=True)}
    return container.run(lambda job: trial_configuration(job, texts), checkpoints, _print_best_epoch)


def read_configuration(job: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration and the overrides of a job of SageMaker, a trial or not, from its file and description."""
    if "configs" in job:
        return trial_configuration(job, description["HyperParameters"])
    return job_configuration(job, description)


def space_of(job: Mapping[str, Any]) -> Any:
    """The space that is searched over, from a tuning job's file."""
    from imgcls.sweeps.space import parse_space

    return parse_space([f"{name}={text}" for name, text in job["space"].items()])[0]


def trial_configuration(job: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The configuration and the overrides of a trial, from the tuning job's file and the hyperparameters by key."""
    from omegaconf import OmegaConf

    from imgcls.config.composition import plain
    from imgcls.sweeps.sagemaker.ranges import Ranges
    from imgcls.sweeps.trials import apply_overrides

    space = space_of(job)
    overrides = dict(zip(space.names, space.overrides(Ranges(space).values(texts)), strict=True))
    cfg: Any = OmegaConf.create(job["configs"][group_key([overrides[name] for name in job["groups"]])])
    apply_overrides(cfg, [override for name, override in overrides.items() if name not in job["groups"]])
    cfg.run_dir = "."
    return plain(cfg), [*job["overrides"], *overrides.values()]


def group_key(overrides: Sequence[str]) -> str:
    """The key of the configuration that was composed with the groups of `overrides`."""
    return json.dumps(list(overrides))


def _print_best_epoch(folder: Path) -> None:
    """Repeat the metrics of the epoch whose weights are kept: a tuning job compares the last line."""
    from imgcls.callbacks.history import metric_line
    from imgcls.runs.reading import read_metrics

    metrics = read_metrics(folder)
    validation = {name: value for name, value in metrics.items() if name.startswith("val/")}
    print(metric_line({"epoch": metrics.get("best_epoch", 1), **validation}), flush=True)
