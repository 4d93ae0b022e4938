"""Writes an smdebug trial of a training, driven by Lightning's hooks and not by smdebug's own hooks on modules.

smdebug's hooks miss or misread torch.compile, 16 bits, accumulation and several processes; the values saved here are
the ones the optimiser uses.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch

from imgcls.errors import UserError
from imgcls.system.extras import check_smdebug
from imgcls.system.lightning_internals import is_within_step

CONFIGURATION = "/opt/ml/input/config/debughookconfig.json"  # where SageMaker puts it
COLLECTIONS = ("losses", "gradients", "weights", "biases")


class SMDebug(L.Callback):
    """Saves losses, gradients, weights and biases of every n-th step with smdebug, in the first process.

    A step is an optimiser step in training, however many parts its batch has, and a batch in validation. On SageMaker
    the collections, the intervals and the folder come from `debughookconfig.json`.

    Args:
        folder: where the trial is written; must not exist.
        every: save each n-th step.
        collections: a selection of COLLECTIONS.

    Raises:
        UserError: smdebug is missing or does not work here.
    """

    def __init__(self, folder: Path, *, every: int = 50, collections: tuple[str, ...] = COLLECTIONS) -> None:
        check_smdebug()
        self.folder, self.every, self.collections = folder, every, collections
        self._hook: Any = None
        self._losses: list[torch.Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        if str(trainer.precision) in ("bf16-true", "16-true"):
            raise UserError(f"debug.smdebug cannot save {trainer.precision} weights. Use bf16-mixed or 32-true.")
        self._hook = self._make_hook()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._hook is not None and not self._losses:
            self._begin("TRAIN", pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if self._hook is None or not self._hook._get_collections_to_save_for_step():
            return
        network = pl_module.network
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                self._hook._save_for_tensor(f"gradient/{network._get_name()}_{name}", parameter.grad)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if self._hook is None:
            return
        self._losses.append(pl_module.last_loss.detach())
        if not is_within_step(trainer):
            self._hook.record_tensor_value("Loss", torch.stack(self._losses).mean())
            self._losses = []

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._hook is not None:
            self._begin("EVAL", pl_module)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._hook is not None:
            self._hook.record_tensor_value("Loss", pl_module.last_loss)

    def teardown(self, *args: Any, **options: Any) -> None:
        if self._hook is not None:
            self._hook.close()
            self._hook = None

    on_exception = teardown

    def _make_hook(self) -> Any:
        from smdebug.pytorch import Hook, SaveConfig

        configuration = os.environ.get("SMDEBUG_CONFIG_FILE_PATH", CONFIGURATION)
        if Path(configuration).is_file():
            return Hook.create_from_json_file(configuration)
        folder, number = self.folder, 1
        while folder.exists():  # a resumed run needs a new trial: smdebug does not write into an existing one
            number += 1
            folder = self.folder.with_name(f"{self.folder.name}-{number}")
        return Hook(
            out_dir=str(folder),
            save_config=SaveConfig(save_interval=self.every),
            include_collections=list(self.collections),
        )

    def _begin(self, mode: str, pl_module: L.LightningModule) -> None:
        from smdebug import modes

        network: Any = getattr(pl_module.network, "_orig_mod", pl_module.network)
        self._hook._close_writers()
        self._hook.set_mode(getattr(modes, mode))
        network._module_name = network._get_name()
        self._hook.forward_pre_hook(network, ())
