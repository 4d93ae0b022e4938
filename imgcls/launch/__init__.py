"""Where a run is computed: on this machine, or as `launch=…` selects.

May be imported by `sweeps`, `deploy` and the commands; imports `training`, `aws` and the layers below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgcls.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.config.overrides import Options
    from imgcls.runs.run import Run


def launch(cfg: DictConfig | Options = (), overrides: list[str] | None = None, **options: Any) -> Run:
    """Train as `cfg` describes, where `cfg.launch` selects, and return the finished run.

    Args:
        cfg: a composed configuration, or what `imgcls.compose` makes one of: a list of overrides, one text, or a
            dictionary of options.
        overrides: the overrides that a configuration was composed from, kept in the run folder.
        **options: further options by name, where `cfg` is not composed.

    Raises:
        UserError: an option that does not exist, or what the user can fix in the training.
    """
    from omegaconf import DictConfig

    if not isinstance(cfg, DictConfig):
        from imgcls.config.composition import compose
        from imgcls.config.overrides import as_overrides

        overrides = as_overrides(cfg, options)
        cfg = compose(overrides)
    elif options:
        raise UserError(f"{next(iter(options))}=…: this configuration is composed. Give options to imgcls.compose.")
    from hydra.utils import instantiate

    if cfg.resume == "last":
        from imgcls.runs.resuming import resume_last

        cfg = resume_last(cfg)
    run: Run = instantiate(cfg.launch, _convert_="all")(cfg, overrides)
    return run
