"""From overrides to one checked configuration, without importing torch, lightning or timm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imgcls.config.explain import explain, unknown_option
from imgcls.config.groups import VERSION_BASE, config_dir, unknown_options
from imgcls.config.options import check_options
from imgcls.config.overrides import expand


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Compose and check the configuration that `python -m imgcls.train` would run with these `overrides`.

    >>> cfg = compose(["model=resnet50", "optim.lr=1e-3"])
    >>> cfg.model.name, cfg.optim.lr
    ('resnet50', 0.001)

    A file of overrides (a run's `overrides.yaml`, a search's `best.yaml`) stands for its words.

    Raises UserError for an unknown group, option or value, with the nearest valid names.
    """
    register_resolvers()
    overrides = expand(overrides)
    cfg = _compose(overrides, config_name)
    check_composed(cfg, overrides, config_name)
    return cfg


def check_composed(cfg: DictConfig, overrides: list[str], config_name: str = "train") -> None:
    """Raise UserError for the first option of `cfg` that does not exist, or whose value cannot be right."""
    check(cfg)
    for name in unknown_options(plain(cfg)):
        raise unknown_option(name, overrides, config_name)


def check(cfg: DictConfig) -> None:
    """Raise UserError for the first value of `cfg` that cannot be right."""
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error, [], "") from error
    check_options(values)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries, lists and values."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def register_resolvers() -> None:
    """Make the resolvers of `conf/` known.

    `${by_start:frozen,finetuned,scratch}` is a default that depends on where the weights start; `${own_conf:}` is the
    folder `conf` where a command runs, if there is one; `${on_disk:ADDRESS}` is where a run_dir in S3 is kept here.
    """
    OmegaConf.register_new_resolver("by_start", _by_start, replace=True)
    OmegaConf.register_new_resolver("own_conf", _own_conf, replace=True)
    OmegaConf.register_new_resolver("on_disk", _on_disk, replace=True)


def _on_disk(address: str) -> str:
    if not address.startswith("s3://"):
        return address
    from imgcls.aws.mirror import local_folder

    return str(local_folder(address))


def _own_conf() -> list[str]:
    """Hydra's search path for the user's own groups: the folder `conf` of the folder that a command runs in."""
    own = Path.cwd() / "conf"
    return [f"file://{own}"] if own.is_dir() and own != config_dir() else []


def _by_start(frozen: Any, finetuned: Any, scratch: Any, *, _root_: DictConfig) -> Any:
    model = _root_.model
    if model.freeze == "backbone":
        return frozen
    return finetuned if model.pretrained or model.weights is not None else scratch


def _compose(overrides: list[str], config_name: str) -> DictConfig:
    import hydra

    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
            return hydra.compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides, config_name) from error


register_resolvers()  # also where Hydra's launchers compose in a process of their own
