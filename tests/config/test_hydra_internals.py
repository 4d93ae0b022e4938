"""The private doors of Hydra and OmegaConf are still there, and lead to what their names say."""

from __future__ import annotations

import logging

from hydra._internal.core_plugins import basic_launcher
from hydra.core.utils import JobReturn, JobStatus
from hydra.main import get_args_parser
from omegaconf import DictConfig, OmegaConf

from imgcls.config.hydra_internals import flags_of, node_of, result_of, silence_basic_launcher


def test_flags_are_those_of_the_command_line() -> None:
    assert {"--multirun", "--cfg", "--help"} <= set(flags_of(get_args_parser()))


def test_a_node_is_looked_at_without_what_it_refers_to() -> None:
    cfg = OmegaConf.create({"lr": "${nowhere}", "optim": {"lr": 1}})
    assert not isinstance(node_of(cfg, "lr"), DictConfig)
    assert isinstance(node_of(cfg, "optim"), DictConfig)


def test_the_error_of_a_job_is_returned() -> None:
    job, error = JobReturn(), ValueError("x")
    job.return_value, job.status = error, JobStatus.FAILED
    assert result_of(job) is error


def test_the_launcher_is_silent() -> None:
    basic_launcher.log.setLevel(logging.NOTSET)
    silence_basic_launcher()
    assert not basic_launcher.log.isEnabledFor(logging.INFO)
