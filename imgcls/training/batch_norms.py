"""The statistics of batch norms, which averaged weights do not have."""

from __future__ import annotations

import torch
from torch import nn

from imgcls.data.batch import Batch
from imgcls.data.batched import BatchedData

STATISTICS_BATCHES = 50
"""The most training batches from which the statistics of batch norms are computed."""


@torch.no_grad()
def compute_statistics(network: nn.Module, data: BatchedData) -> None:
    """Replace the statistics of all batch norms by the mean over training batches, which averaged weights do not have.

    Args:
        network: changed in place, and put back into its mode.
        data: its training images are used as they are in the first epoch.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta, training = [module.momentum for module in norms], network.training
    device = next(network.parameters()).device
    network.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over all batches
        module.train()
    for number, raw in enumerate(data.in_order("train", data.batch_size, epoch=0)):
        batch = raw if isinstance(raw, Batch) else data.on_after_batch_transfer(raw, 0)
        if number == STATISTICS_BATCHES or (number and len(batch.images) < data.batch_size):
            break  # the last batch may be too short for a mean
        network(batch.images.to(device))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    network.train(training)
