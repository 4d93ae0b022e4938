"""How several devices share a training: DDP, or FSDP for models that do not fit on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed import fsdp

from imgcls.training.checkpoint_io import read_checkpoint


def choose_strategy(name: str, processes: int, *, find_unused_parameters: bool) -> str | Strategy:
    """Lightning's strategy for `trainer.strategy=name`; other names are passed to Lightning."""
    if name in ("auto", "ddp") and processes > 1:
        return DDPStrategy(find_unused_parameters=find_unused_parameters)
    return Sharded() if name == "fsdp" else name


def is_sharded(strategy: Strategy) -> bool:
    """Whether a process has only a share of the weights."""
    return isinstance(strategy, FSDPStrategy)


class Sharded(FSDPStrategy):
    """FSDP with complete checkpoints, like those of any other run, that load without unpickling.

    Each process holds a share of the weights, the gradients and the optimiser state; the weights are gathered only
    while a step uses them. It also works on the CPU, where it saves nothing but can be tested.
    """

    def __init__(self) -> None:
        super().__init__(state_dict_type="full")

    def _setup_model(self, model: nn.Module) -> nn.Module:
        if self.root_device.type != "cpu":
            return super()._setup_model(model)
        # Lightning passes the device's index, which a CPU does not have
        sharding: Any = self.sharding_strategy
        return fsdp.FullyShardedDataParallel(
            model, device_id=self.root_device, sharding_strategy=sharding, **self.kwargs
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = read_checkpoint(Path(self.broadcast(checkpoint_path)))
        model: Any = self.model
        weights = fsdp.FullStateDictConfig(rank0_only=False)
        optimiser = fsdp.FullOptimStateDictConfig(rank0_only=False)
        whole = fsdp.FullyShardedDataParallel
        with whole.state_dict_type(model, fsdp.StateDictType.FULL_STATE_DICT, weights, optimiser):
            model.load_state_dict(checkpoint.pop("state_dict"))
            if self.lightning_module is None or self.lightning_module.trainer.state.fn != TrainerFn.FITTING:
                return checkpoint
            for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=True):
                named = whole.rekey_optim_state_dict(state, fsdp.OptimStateKeyType.PARAM_NAME, model)
                optimizer.load_state_dict(whole.optim_state_dict_to_load(model, optimizer, named))
        return checkpoint
