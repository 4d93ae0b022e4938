"""Where a run is computed: on this machine, or as `launch=…` selects.

May be imported by `sweeps`, `deploy` and the commands; imports `training`, `aws` and the layers below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.runs.run import Run


def launch(cfg: DictConfig, overrides: list[str] | None = None) -> Run:
    """Train as `cfg` describes, where `cfg.launch` selects, and return the finished run.

    Args:
        cfg: a composed configuration, see `imgcls.compose`.
        overrides: the overrides it was composed from, kept in the run folder.
    """
    from hydra.utils import instantiate

    if cfg.resume == "last":
        from imgcls.runs.resuming import resume_last

        cfg = resume_last(cfg)
    run: Run = instantiate(cfg.launch, _convert_="all")(cfg, overrides)
    return run
