"""A network compiled for answering: fewer and larger kernels, on a GPU replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imgcls.errors import UserError, first_line
from imgcls.portable.exported import Exported

Outputs = Tensor | tuple[Tensor, ...]
MAX_COMPILED = 256  # sizes of batches of all models of a server; torch computes those above 8 without compilation
RUNS_BEFORE_CAPTURE = 3  # which compile and choose kernels and take memory; as torch's documentation advises


class Compiled:
    """`exported`, in evaluation mode, through `torch.compile`, for batches that are filled up to a power of two.

    On a GPU each of these sizes is captured once as a CUDA graph, whose kernels are then started by one call. The first
    batch of a size takes seconds to minutes. Computes the outputs of (N, 3, H, W) images on the device of the network.

    Raises:
        UserError: the network chooses images by their values, or (at the first batch) it cannot be compiled here.
    """

    def __init__(self, exported: Exported) -> None:
        if exported.network.architecture.views == "where_unsure":
            raise UserError(
                "engine=torch-compiled: model.views=where_unsure computes other images each time. Use engine=torch."
            )
        self._compute = torch.compile(exported, dynamic=False)
        self._by_size: dict[int, Callable[[Tensor], Outputs]] = {}

    def __call__(self, images: Tensor) -> Outputs:
        size = 1 << (len(images) - 1).bit_length()
        batch = torch.cat([images, images.new_zeros(size - len(images), *images.shape[1:])])
        if size not in self._by_size:
            self._by_size[size] = self._prepare(batch)
        outputs, count = self._by_size[size](batch), len(images)
        return tuple(part[:count] for part in outputs) if isinstance(outputs, tuple) else outputs[:count]

    def _prepare(self, batch: Tensor) -> Callable[[Tensor], Outputs]:
        """What computes the outputs of batches as large as `batch`."""
        try:
            with torch._dynamo.config.patch(recompile_limit=MAX_COMPILED):
                if batch.is_cuda:
                    return _capture(self._compute, batch.clone())
                self._compute(batch)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            cause = getattr(error, "inner_exception", error)
            raise UserError(f"engine=torch-compiled: {first_line(cause)}. Use engine=torch.") from error
        return self._compute


def _capture(compute: Callable[[Tensor], Outputs], images: Tensor) -> Callable[[Tensor], Outputs]:
    """`compute` as a CUDA graph, which reads `images` and overwrites its outputs."""
    with torch.cuda.device(images.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(RUNS_BEFORE_CAPTURE):
                compute(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads serve other models meanwhile
            outputs = compute(images)

    def replay(batch: Tensor) -> Outputs:
        images.copy_(batch)
        graph.replay()
        return outputs

    return replay
