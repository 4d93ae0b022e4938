"""From overrides to one checked configuration, without importing torch, lightning or timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imgcls.config import starts
from imgcls.config.explain import compose_unchecked, explain, unknown_option
from imgcls.config.groups import config_dir, unknown_options
from imgcls.config.options import check_options
from imgcls.config.overrides import Options, as_overrides, expand


def compose(overrides: Options = (), config_name: str = "train", **options: Any) -> DictConfig:
    """Compose and check the configuration that `python -m imgcls.train` would run with these `overrides`.

    >>> cfg = compose(["model=resnet50", "optim.lr=1e-3"])
    >>> cfg.model.name, cfg.optim.lr
    ('resnet50', 0.001)
    >>> cfg == compose("model=resnet50 optim.lr=1e-3") == compose(model="resnet50", optim={"lr": 1e-3})
    True

    Args:
        overrides: a list of overrides, one text, or a dictionary of options. A file of overrides (a run's
            `overrides.yaml`, a search's `best.yaml`) in a list is replaced by its content.
        config_name: the file in `conf/` to start from.
        **options: further options by name.

    Raises:
        UserError: an unknown group, option or value, with the nearest valid names.
    """
    register_resolvers()
    overrides = expand(as_overrides(overrides, options))
    try:
        cfg = compose_unchecked(overrides, config_name)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides, config_name) from error
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
    """Register the resolvers of `conf/`.

    `${by_start:frozen,finetuned,scratch}`, `${default_lr:then,otherwise}`, `${if_default:option,then,otherwise}` and
    `${solves_head:}` are defaults that depend on other options; `${own_conf:}` is the folder `conf` where a command
    runs, if it exists; `${on_disk:ADDRESS}` is the local folder of a run_dir in S3.
    """
    OmegaConf.register_new_resolver("by_start", starts.by_start, replace=True)
    OmegaConf.register_new_resolver("default_lr", starts.default_lr, replace=True)
    OmegaConf.register_new_resolver("if_default", starts.if_default, replace=True)
    OmegaConf.register_new_resolver("by_task", starts.by_task, replace=True)
    OmegaConf.register_new_resolver("solves_head", starts.solves_head, replace=True)
    OmegaConf.register_new_resolver("own_conf", _own_conf, replace=True)
    OmegaConf.register_new_resolver("on_disk", _on_disk, replace=True)


def _on_disk(address: Any) -> str:
    if not isinstance(address, str):
        return "."  # until the check of run_dir refuses it
    if not address.startswith("s3://"):
        return address
    from imgcls.aws.mirror import local_folder

    return str(local_folder(address))


def _own_conf() -> list[str]:
    """Hydra's search path for the user's groups: the folder `conf` in the working directory."""
    own = Path.cwd() / "conf"
    return [f"file://{own}"] if own.is_dir() and own != config_dir() else []


register_resolvers()  # also where Hydra's launchers compose in another process
