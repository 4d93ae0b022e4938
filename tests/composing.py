"""Configurations for tests: composed as always, but the files of each choice of groups are merged only once.

Composing takes a quarter of a second, most of which Hydra spends on reading and merging the files of `conf/`, and half
of the tests compose. `tests/config/test_composition.py` does without this.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from imgcls.config.explain import compose_unchecked
from imgcls.config.groups import config_dir


def compose_quickly(overrides: list[str], config_name: str) -> DictConfig:
    """As `compose_unchecked`: what is wrong is left to it."""
    own = Path.cwd() / "conf"
    files = (
        tuple((file, file.stat().st_mtime_ns) for file in sorted(own.rglob("*.yaml"))) if own != config_dir() else ()
    )
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        values = [override for override in parsed if _sets_a_value(override)]
        groups = tuple(str(override.input_line) for override in parsed if not _sets_a_value(override))
        cfg = copy.deepcopy(_composed(groups, config_name, files))
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg
    except Exception:
        return compose_unchecked(overrides, config_name)


def _sets_a_value(override: Override) -> bool:
    name = override.key_or_group
    is_group = "/" in name or name.partition(".")[0] == "hydra" or (config_dir() / name).is_dir()
    is_group = is_group or (Path.cwd() / "conf" / name).is_dir()
    return not is_group and not override.is_sweep_override() and override.package is None


@cache
def _composed(groups: tuple[str, ...], config_name: str, files: tuple[tuple[Path, int], ...]) -> DictConfig:
    return compose_unchecked(list(groups), config_name)
