"""What runs in the container of a trial, started by AWS's older toolkit as `python train.py --key value …`.

The toolkit starts it on every host, once, and reads its requirements.txt only in the folder of `train.py`: so the rest
of the bundle is in a folder below, and `container.py` goes on as in any other job.
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
# The content of the script, which needs nothing but Python.
SCRIPT_TEXT = '''\
"""Hands over to imgcls, which is in the folder `source` beside this file."""
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
# The first process of AWS's images is `bash start_with_right_hostname.sh train`. Bash, as first process, hears no
# SIGTERM, and neither does the toolkit that it starts (its issues 125 and 173). But it reads the file BASH_ENV first.
SIGNALS_TEXT = f"""\
# Read by the first process of the container, bash, before it starts `train`: passes SIGTERM on to the training.
unset BASH_ENV
if [ "$$" = 1 ]; then
    train() {{
        command train "$@" &
        local child=$! status=0
        trap 'kill -TERM "$(cat {PROCESS} 2>/dev/null || echo "$child")" 2>/dev/null' TERM
        while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done
        return "$status"
    }}
fi
"""


def main(arguments: Sequence[str]) -> int:
    """Train the trial that `arguments` (`--key value …`) describe; the exit code."""
    PROCESS.write_text(str(os.getpid()))
    os.environ.setdefault("SM_MASTER_ADDR", os.environ.get("MASTER_ADDR", "algo-1"))
    kept = container.CHECKPOINTS / os.environ["TRAINING_JOB_NAME"]  # trials may have one place in S3 between them
    texts = {key.lstrip("-"): value for key, value in zip(arguments[::2], arguments[1::2], strict=True)}
    return container.run(lambda job: chosen(job, texts), kept, _say_the_kept_epoch)


def chosen(job: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The configuration and the words of the trial whose hyperparameters are `texts`."""
    from imgcls.sweeps.sagemaker.ranges import Ranges

    return configuration(job, Ranges(space_of(job)).values(texts))


def read_configuration(job: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration and the overrides of a job of SageMaker that may be a trial, from its file and description."""
    if "configs" in job:
        return chosen(job, description["HyperParameters"])
    return job_configuration(job, description)


def space_of(job: Mapping[str, Any]) -> Any:
    """The space of the content of a tuning job's file."""
    from imgcls.sweeps.space import parse_space

    return parse_space([f"{name}={text}" for name, text in job["space"].items()])[0]


def configuration(
    job: Mapping[str, Any], values: Mapping[str, Any], run_dir: str = "."
) -> tuple[dict[str, Any], list[str]]:
    """The configuration and the words of a trial.

    Args:
        job: the content of the tuning job's file.
        values: of what is searched over, by option.
        run_dir: of the trial.
    """
    from omegaconf import OmegaConf

    from imgcls.config.composition import plain
    from imgcls.sweeps.trials import put_in

    space = space_of(job)
    words = dict(zip(space.names, space.words(values), strict=True))
    cfg: Any = OmegaConf.create(job["configs"][group_key([words[name] for name in job["groups"]])])
    put_in(cfg, [word for name, word in words.items() if name not in job["groups"]])
    cfg.run_dir = run_dir
    return plain(cfg), [*job["overrides"], *words.values()]


def group_key(words: Sequence[str]) -> str:
    """The key of the configuration that was composed with the groups of `words`."""
    return json.dumps(list(words))


def _say_the_kept_epoch(folder: Path) -> None:
    """Repeat the metrics of the epoch whose weights are kept: a tuning job compares what was printed last."""
    from imgcls.runs.reading import read_metrics
    from imgcls.runs.tables import metric_line

    metrics = read_metrics(folder)
    shown = {name: value for name, value in metrics.items() if name.startswith("val/")}
    print(metric_line({"epoch": metrics["best_epoch"], **shown}), flush=True)
