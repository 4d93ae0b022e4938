"""The graph of a network, as torch's exporter writes it, kept in the cache without its weights.

The exporter takes seconds for any network, and gives the same graph for networks that differ in their weights only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import imgcls
from imgcls.errors import UserError, first_line
from imgcls.models.architecture import Architecture
from imgcls.system.cache import cache_folder
from imgcls.system.files import atomic_path

log = logging.getLogger(__name__)

PACKAGES = ("imgcls", "timm", "torch", "torchvision")
"""Whose layers are known by the version, or by their code; a graph with other ones is not kept."""
VERSIONS = ("torch", "timm", "torchvision", "onnx", "onnxscript", "onnx_ir")
SOURCES = ("models/*.py", "portable/exported.py", "portable/graphs.py", "portable/views_onnx.py")
"""The code of imgcls that a graph depends on."""


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    sizes: Sequence[Any],
    architecture: Architecture,
    change: Callable[[Any], None] | None = None,
) -> Any:
    """The optimised ONNX graph (`onnx.ModelProto`) of `module`, in evaluation mode on the CPU, with its weights.

    What differs between two modules with the same architecture must be a parameter or a buffer.

    Args:
        module: takes `inputs` and returns a tensor for each of `outputs`.
        inputs: names and examples.
        outputs: names.
        sizes: `torch.export.Dim` of the first axis of each input, which varies.
        architecture: of the network in `module`.
        change: what is done to the graph (`onnxscript.ir`) in the end; the same for the same kind of `module`.
    """
    tensors: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    tensors.update(module.named_parameters(remove_duplicate=False))
    file = _file(module, tensors, inputs, outputs, architecture)
    model = _read(file) if file is not None else None
    if model is None:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: size} for size in sizes),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            _take_weights(program.model, tensors)
            program.optimize()
            if change is not None:
                change(program.model.graph)
        model = program.model_proto
        if file is not None:
            _keep(model, file)
    _put_weights(model, tensors)
    return model


def _file(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    architecture: Architecture,
) -> Path | None:
    """Where the graph is kept, by all that it depends on; None where that is not known."""
    if any(type(part).__module__.split(".")[0] not in PACKAGES for part in module.modules()):
        return None
    own = [file for pattern in SOURCES for file in sorted(Path(imgcls.__file__).parent.glob(pattern))]
    identity = {
        "architecture": architecture.as_dict(),
        "layers": str(module),
        "settings": {name: _settings(part) for name, part in module.named_modules()},
        "tensors": {name: [str(value.dtype), *value.shape] for name, value in tensors.items()},
        "inputs": {name: [str(value.dtype), *value.shape] for name, value in inputs.items()},
        "outputs": list(outputs),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "sources": [hashlib.sha256(file.read_bytes()).hexdigest() for file in own],
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_folder() / "graphs" / f"{name}.onnx"


def _settings(part: nn.Module) -> dict[str, Any]:
    """The numbers and words that a layer was made with."""
    kinds = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in sorted(vars(part).items()) if isinstance(value, kinds) and name[0] != "_"}


def _take_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Make inputs of the initializers of `model` (`onnxscript.ir`) that are weights, and drop what else is not needed.

    That is the exporter's trace of each layer, with the paths of files on this machine.
    """
    graph = model.graph
    for name in [name for name in graph.initializers if name in tensors]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    for node in graph.all_nodes():
        node.metadata_props.clear()


def _put_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give `model` (`onnx.ModelProto`) the weights that `_take_weights` took."""
    from onnx import numpy_helper

    graph = model.graph
    inputs = list(graph.input)
    del graph.input[:]
    graph.input.extend(value for value in inputs if value.name not in tensors)
    used = {name for node in graph.node for name in node.input}
    names = [value.name for value in inputs if value.name in tensors and value.name in used]
    graph.initializer.extend(numpy_helper.from_array(tensors[name].detach().numpy(), name) for name in names)


def _read(file: Path) -> Any:
    """The graph without weights (`onnx.ModelProto`); None if it is missing or damaged."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file)
    except (OSError, DecodeError):
        return None
    return model if model.graph.output else None


def _keep(model: Any, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
    except (OSError, UserError) as error:
        log.debug("%s is not kept: %s", file, first_line(error))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines and warnings of the exporter, which are about its own work."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
