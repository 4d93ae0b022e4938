"""The compiled engine: the answers of the plain one for batches of any size, few sizes that are compiled, one error."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.errors import UserError
from imgcls.models.backbones import create_network
from imgcls.models.network import Network
from imgcls.portable.compiled import Compiled
from imgcls.portable.engines import TorchEngine
from imgcls.portable.novelty import Novelty

SIDE = 32
IMAGES = np.random.default_rng(0).normal(size=(5, 3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is traced as it is for compilation, which itself takes long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def network(**options: object) -> Network:
    torch.manual_seed(0)
    return create_network("test_resnet", 3, image_size=SIDE, **options).eval()  # type: ignore[arg-type]


compiled: Any = partial(TorchEngine, compiled=True)


def known() -> Novelty:
    return Novelty(np.eye(3, network().num_features, dtype=np.float32), 2.0, 0.1, 0.95, 100)


@pytest.mark.parametrize("columns", [3, 4], ids=["scores", "scores and novelty"])
def test_batches_are_filled_up_to_a_power_of_two(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    novelty = known() if columns == 4 else None
    plain, engine = TorchEngine(network(), 2.0, novelty), compiled(network(), 2.0, novelty)
    sizes = []
    prepare = Compiled._prepare

    def watch(self: Compiled, batch: torch.Tensor) -> object:
        sizes.append(len(batch))
        return prepare(self, batch)

    monkeypatch.setattr(Compiled, "_prepare", watch)
    for count in (1, 2, 3, 4, 5, 3, 1):
        outputs = engine.outputs(IMAGES[:count])
        assert outputs.shape == (count, columns)
        assert np.allclose(outputs, plain.outputs(IMAGES[:count]), atol=1e-5)
    assert sizes == [1, 2, 4, 8], "each is prepared once"
    assert engine.name == "torch on cpu, compiled"


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model\.views=where_unsure .* Use engine=torch\."):
        compiled(network(views="where_unsure"))

    def no_compiler(*_: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(no_compiler, RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    with pytest.raises(UserError, match=r"engine=torch-compiled: .*no C\+\+ compiler.* Use engine=torch\."):
        compiled(network()).outputs(IMAGES)


def test_sizes_of_all_models_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_sizes = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled_sizes.append(
            next(len(value) for value in inputs if value.ndim == 4 and value.shape[2:] == (SIDE, SIDE))
        )
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    engines = [compiled(create_network("test_resnet", classes, image_size=SIDE)) for classes in (3, 4, 5)]
    for engine in engines:
        for count in (1, 2, 4, 8):
            engine.outputs(np.repeat(IMAGES[:1], count, axis=0))
    assert sorted(compiled_sizes) == sorted([1, 2, 4, 8] * 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, and IMGCLS_TEST_GPU=1")
def test_graphs_answer_as_the_network_does() -> None:
    plain, engine = TorchEngine(network().cuda(), 2.0, known()), compiled(network().cuda(), 2.0, known())
    for count in (5, 1, 5, 3):
        assert np.allclose(engine.outputs(IMAGES[:count]), plain.outputs(IMAGES[:count]), atol=1e-3)
