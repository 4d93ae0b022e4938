"""`python -m imgcls.train`: train what the configuration describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from imgcls.cli import hydra_command

if TYPE_CHECKING:
    from imgcls.runs import Run


def train(cfg: DictConfig) -> float | None:
    """Run `cfg` where `cfg.launch` says; return the validation metric that a sweep compares."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from imgcls.launch import launch

    overrides = words_of(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _keep_data()
    run = launch(cfg, overrides)
    if not cfg.quiet:
        print_summary(run)
    value: Any = run.metrics.get(cfg.checkpoint.monitor)
    return value


def words_of(cfg: DictConfig) -> list[str]:
    """The overrides of the run that Hydra has begun; a run of a sweep gets the folder that Hydra made for it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN and not any(text.startswith("run_dir=") for text in overrides):
        cfg.run_dir = hydra.runtime.output_dir
    return overrides


def _keep_data() -> None:
    """Let the next job in this process find the pictures open."""
    from imgcls.data.sharing import keep_data

    keep_data()


def print_summary(run: Run) -> None:
    """The few lines that a finished run ends with."""
    metrics = run.metrics
    if not metrics:  # a job that goes on elsewhere
        print(f"run folder  {run.folder}")
        return
    shown = [
        ("test accuracy", "test/accuracy", "{:.2%}"),
        ("top-5", "test/accuracy_top5", "{:.2%}"),
        ("macro F1", "test/macro_f1", "{:.4f}"),
        ("validation accuracy", "val/accuracy", "{:.2%}"),
    ]
    parts = [f"{label} {pattern.format(metrics[name])}" for label, name, pattern in shown if name in metrics]
    minutes, seconds = divmod(round(metrics.get("seconds", 0)), 60)
    print(f"\n{', '.join(parts)}")
    print(
        f"{metrics.get('epochs', 0)} epochs in {minutes} min {seconds} s, {metrics['images_per_second']:.0f} images/s"
    )
    print(f"run folder  {run.folder}")
    if run.report_file.is_file():
        print(f"report      {run.report_file}")


def main() -> None:
    """The command line."""
    hydra_command(train)


if __name__ == "__main__":
    main()
