"""What imgcls needs of Hydra 1.3 and OmegaConf 2.3 that they do not promise to keep: the one place to look after an
upgrade."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of Hydra's parser of command lines, such as `--multirun`."""
    return [flag for flag in parser._option_string_actions if flag.startswith("--")]


def node_of(cfg: DictConfig, key: Any) -> Any:
    """The node of `key`, with its interpolations unresolved."""
    return cfg._get_node(key)


def result_of(job: JobReturn) -> Any:
    """What a job returned, or the error that ended it, which the property would print and raise."""
    return job._return_value


def silence_basic_launcher() -> None:
    """Keep Hydra's own launcher from announcing each job."""
    logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
