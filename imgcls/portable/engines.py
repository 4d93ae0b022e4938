"""What computes the logits of a portable model: ONNX Runtime, the fastest on a CPU, or torch."""

from __future__ import annotations

import importlib.util
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgcls.errors import UserError, first_line
from imgcls.models.architecture import Architecture
from imgcls.portable.description import DESCRIPTION, NOVELTY, ONNX, WEIGHTS, temperature_of
from imgcls.portable.formats import Engine, open_export
from imgcls.portable.graph_preprocessing import PIXELS, denormalise
from imgcls.system.checks import check_value, choice
from imgcls.system.extras import check_installed
from imgcls.system.machine import gpu_count, own_cores

if TYPE_CHECKING:
    from torch import Tensor

    from imgcls.models.network import Network
    from imgcls.portable.novelty import Novelty

PROVIDERS = {
    "onnx": "CPUExecutionProvider",
    "onnx-cuda": "CUDAExecutionProvider",
    "onnx-tensorrt": "TensorrtExecutionProvider",
    "onnx-openvino": "OpenVINOExecutionProvider",
    "onnx-coreml": "CoreMLExecutionProvider",
}
"""The execution providers of ONNX Runtime, each of which is in a build of it of its own."""
ON_GPUS = ("onnx-cuda", "onnx-tensorrt")
ENGINES = ("auto", *PROVIDERS, "torch", "torch-compiled")


class GraphEngine(ABC):
    """The engine of a graph that takes normalised images or, with its preprocessing in it, decoded ones.

    Args:
        metadata: of the graph, which says whether it has its preprocessing.
        outputs: the names of what it computes.
    """

    def __init__(self, metadata: Mapping[str, str], outputs: Iterable[str]) -> None:
        self._to_pixels = denormalise(metadata)
        self._names = ["scores", *({"novelty"} & set(outputs))]

    def outputs(self, images: np.ndarray) -> np.ndarray:
        if self._to_pixels is not None:  # of the size of the input, which the graph does not resample
            return self.image_outputs(self._to_pixels(images))
        return np.column_stack(self._run("images", images))

    def image_outputs(self, pixels: np.ndarray) -> np.ndarray:
        """The same for decoded images, uint8 (N, H, W, C), of a graph with its preprocessing."""
        return np.column_stack(self._run(PIXELS, pixels))

    @abstractmethod
    def _run(self, name: str, values: np.ndarray) -> list[np.ndarray]:
        """The outputs `_names` of the graph for `values` of its input `name`."""


class OnnxEngine(GraphEngine):
    """ONNX Runtime, for the input and output of `exporter.export_onnx`, or a graph with its preprocessing.

    `threads` defaults to all cores that this process may use; `name` is one of PROVIDERS, and `device`, such as cuda:1,
    the GPU of one for GPUs. Raises UserError where the installed ONNX Runtime or this machine does not have it.
    """

    def __init__(self, file: Path, threads: int | None = None, name: str = "onnx", device: str | None = None) -> None:
        import onnxruntime

        provider, available = PROVIDERS[name], onnxruntime.get_available_providers()
        if provider not in available:
            raise UserError(
                f"engine={name}: the installed ONNX Runtime has {', '.join(available)}, not {provider}. Install a "
                "build with it, such as onnxruntime-gpu or onnxruntime-openvino, in place of onnxruntime."
            )

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or own_cores()
        # Threads that spin while they wait take cores from the threads that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            gpu = {"device_id": str(_gpu_number(device))} if name in ON_GPUS else {}
            self._session = onnxruntime.InferenceSession(str(file), options, providers=[(provider, gpu)])
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise UserError(f"{file} cannot be read: {first_line(error)}") from error
        if (used := self._session.get_providers()[0]) != provider:  # it falls back, and says so only in its log
            raise UserError(f"engine={name}: {provider} cannot be used on this machine, only {used}.")
        metadata = self._session.get_modelmeta().custom_metadata_map
        super().__init__(metadata, [output.name for output in self._session.get_outputs()])
        self.device = f"cuda:{gpu['device_id']}" if gpu else "cpu"
        where = f"on {options.intra_op_num_threads} threads" if name == "onnx" else f"with {provider}"
        self.name = f"ONNX Runtime {where}{f' on {self.device}' if gpu else ''}"

    def _run(self, name: str, values: np.ndarray) -> list[np.ndarray]:
        return list(self._session.run(self._names, {name: values}))


class TorchEngine:
    """A network in evaluation mode, on its current device; its logits are divided by `temperature`.

    With `compiled`, it is `compiled.Compiled`.
    """

    def __init__(
        self, network: Network, temperature: float = 1.0, novelty: Novelty | None = None, compiled: bool = False
    ) -> None:
        from imgcls.portable.exported import Exported

        self.network, self._compiled = network.eval(), compiled
        exported = Exported(network, temperature, novelty).eval().to(next(network.parameters()).device)
        self._compute: Callable[[Tensor], Tensor | tuple[Tensor, ...]] = exported
        if compiled:
            from imgcls.portable.compiled import Compiled

            self._compute = Compiled(exported)

    @property
    def device(self) -> str:
        return str(next(self.network.parameters()).device)

    @property
    def name(self) -> str:
        return f"torch on {self.device}{', compiled' * self._compiled}"

    def outputs(self, images: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return as_columns(self._compute(torch.from_numpy(images).to(self.device)))


def as_columns(outputs: Tensor | tuple[Tensor, ...]) -> np.ndarray:
    """The outputs of an engine from those of `Exported`."""
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return np.column_stack([part.float().cpu().numpy() for part in parts])


def read_novelty(folder: Path, description: Mapping[str, Any]) -> Novelty | None:
    """What knows unknown images, of the portable model in `folder` with the content of its `model.json`; None: nothing.

    Raises UserError if it cannot be read.
    """
    if not description.get("novelty"):
        return None
    from imgcls.portable.novelty import MEANS, Novelty
    from imgcls.portable.weights import read_weights

    means = read_weights(folder / NOVELTY).get(MEANS)
    if means is None or means.ndim != 2:
        raise UserError(f"{folder / NOVELTY} does not fit {DESCRIPTION}: it holds no {MEANS}")
    return Novelty.from_dict(description["novelty"], means.float().numpy())


def create_engine(
    folder: Path,
    architecture: Architecture,
    name: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    description: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine `name` for the portable model in `folder`; of an exported one, that of its format.

    Args:
        folder: the model's folder.
        architecture: from its description.
        name: one of ENGINES; 'auto' is ONNX Runtime if it and `model.onnx` exist and there is no GPU, else torch.
        device: for torch: 'cpu', 'cuda', 'cuda:1'; None: a GPU if there is one. With any but 'cpu', 'auto' means torch.
            For ONNX Runtime on a GPU which one it is; what computes on the processor alone takes 'cpu' or None.
        threads: for ONNX Runtime.
        description: the content of `model.json`, of which torch needs temperature and novelty; `model.onnx` has them.

    Raises:
        UserError: the engine is not installed or not for this device, the weights cannot be read, or the device does
            not exist.
    """
    check_value("engine", name, choice(*ENGINES))
    if description is not None and (export := description.get("export")):
        if export["format"] == "onnx" and name in PROVIDERS and name != "onnx":
            return OnnxEngine(folder / ONNX, threads, name, device)
        if name not in ("auto", export["format"]):
            raise UserError(f"engine={name}: {folder} holds format={export['format']} alone. Use engine=auto.")
        _check_processor(f"format={export['format']}", device)
        return open_export(folder, description, threads)
    if name == "auto":
        wants_gpu = device != "cpu" if device else gpu_count() and importlib.util.find_spec("torch")
        has_onnx = (folder / ONNX).is_file() and importlib.util.find_spec("onnxruntime")
        name = "onnx" if has_onnx and not wants_gpu else "torch"
    if name in PROVIDERS:
        if not (folder / ONNX).is_file():
            raise UserError(f"engine={name}: {folder} has no {ONNX}. Export it: python -m imgcls.export run=DIR")
        check_installed(["onnxruntime"], "serve", f"engine={name}")
        if name not in ON_GPUS:
            _check_processor(f"engine={name}", device)
        return OnnxEngine(folder / ONNX, threads, name, device)
    network = read_network(folder, architecture, device)
    compiled = name == "torch-compiled"
    if description is None:
        return TorchEngine(network, compiled=compiled)
    novelty = read_novelty(folder, description)
    return TorchEngine(network, temperature_of(dict(description)), novelty, compiled=compiled)


def read_network(folder: Path, architecture: Architecture, device: str | None = "cpu") -> Network:
    """The network of the portable model in `folder`, in evaluation mode. Raises UserError if it cannot be read."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "timm")):
        raise UserError(f"{folder}: install onnxruntime and export {ONNX}, or install torch and timm.")
    import torch

    from imgcls.models.backbones import network_with_weights
    from imgcls.portable.weights import read_weights

    own = int(os.environ.get("LOCAL_RANK", "0"))  # under torchrun each process has a GPU
    device = device or (f"cuda:{own % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    try:
        real = torch.device(device).type != "meta"
    except RuntimeError:
        real = False
    if not real:
        raise UserError(f"device={device}: there is no such device. Write cpu, cuda, or cuda:1 for the second GPU.")
    state = read_weights(folder / WEIGHTS)
    try:
        _check_sizes(architecture, state)
        network = network_with_weights(architecture, state)
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {first_line(error)}") from error
    try:
        return network.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {first_line(error)}") from error


def _check_sizes(architecture: Architecture, state: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError if the network has other sizes than its weights, before memory for it is taken."""
    import torch

    from imgcls.models.backbones import network_from_architecture

    try:
        with torch.device("meta"):
            sizes = {name: value.shape for name, value in network_from_architecture(architecture).state_dict().items()}
    except (NotImplementedError, RuntimeError):  # some of timm's networks compute with their first weights
        return
    for name, size in sizes.items():
        if name not in state:
            raise RuntimeError(f"{name} is missing")
        if state[name].shape != size:
            raise RuntimeError(f"{name} has {tuple(state[name].shape)}, not {tuple(size)}")


def further_gpus(engine: Engine) -> list[str]:
    """The other GPUs of this machine if `engine` computes on the first one, or else none."""
    if getattr(engine, "device", "cpu") not in ("cuda", "cuda:0"):
        return []
    count = gpu_count()
    if isinstance(engine, TorchEngine):
        import torch

        count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(1, count)]


def _check_processor(what: str, device: str | None) -> None:
    """Raise UserError for a `device` that is asked for and that the engine `what` would not use."""
    if device not in (None, "cpu"):
        raise UserError(f"device={device}: {what} takes no device. Leave it out, or use engine=torch on the run.")


def _gpu_number(device: str | None) -> int:
    kind, _, number = (device or "cuda").partition(":")
    if kind not in ("cpu", "cuda") or not re.fullmatch(r"\d{0,3}", number):
        raise UserError(f"device={device} is none. Write device=cuda:1 for the second GPU.")
    return int(number or 0)
