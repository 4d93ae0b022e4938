"""The map shows the test images by their features: as many as were tested, with the errors of the predictions."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from imgcls.callbacks import feature_sample
from imgcls.callbacks.feature_sample import principal_components
from imgcls.report.run_data import RunData
from imgcls.report.sections import feature_map
from tests.trainings import Fit


def text_of(folder: Path) -> str:
    figure, text = feature_map.SECTION.make(RunData(folder))
    assert figure.png.startswith(b"\x89PNG")  # type: ignore[attr-defined]
    return str(text.text)  # type: ignore[attr-defined]


def test_a_run_maps_what_its_head_saw(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit("trainer.max_epochs=1", "debug=off", "model.views=flip")
    with np.load(run.folder / "report_data" / "test_features.npz") as stored:
        files, components, share = stored["files"].tolist(), stored["components"], stored["share"]
    assert files == [row["file"] for row in run.predictions]
    root = Path(str(run.config.data.root))
    features = torch.from_numpy(run.model.embed([root / name for name in files]))
    # what principal components keep: distances between images
    np.testing.assert_allclose(torch.cdist(torch.from_numpy(components), torch.from_numpy(components)),
                               torch.cdist(features, features), atol=2e-3)  # fmt: skip
    assert share.sum() == pytest.approx(1, abs=0.01)
    wrong = sum(row["correct"] != "1" for row in run.predictions)
    assert f"24 test images, along the two directions with {share[:2].sum():.0%}" in text_of(run.folder)
    assert ("the cross is the error" if wrong == 1 else f"crosses are the {wrong} errors") in text_of(run.folder)

    umap, calls = ModuleType("umap"), []
    umap.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    umap.UMAP = (
        lambda **options: SimpleNamespace(  # type: ignore[attr-defined]
            fit_transform=lambda values: (calls.append((options, values.shape)), values[:, :2])[1]
        )
    )
    monkeypatch.setitem(sys.modules, "umap", umap)
    assert "in a map of UMAP" in text_of(run.folder)
    assert calls == [({"random_state": 0, "n_neighbors": 15}, components.shape)]


def test_of_many_images_some_are_kept(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sample, "MAX_IMAGES", 10)
    run = fit("trainer.max_epochs=1", "debug=off")
    with np.load(run.folder / "report_data" / "test_features.npz") as stored:
        assert stored["files"].tolist() == [row["file"] for row in run.predictions][::3]
    feature_map.MIN_IMAGES, before = 8, feature_map.MIN_IMAGES
    try:
        assert "features of 8 test images" in text_of(run.folder)
    finally:
        feature_map.MIN_IMAGES = before


def test_each_class_is_seen_on_a_light_and_on_a_dark_page() -> None:
    axes, names = Figure().add_subplot(), [f"{number}, whose name is far too long" for number in range(12)]
    feature_map._draw(axes, np.zeros((12, 2)), np.arange(12), np.zeros(12, bool), names)
    colours = [dots.get_facecolor()[0, :3] for dots in axes.collections if len(dots.get_offsets())]
    assert len(colours) == 12
    assert all(0.07 < colour @ [0.2126, 0.7152, 0.0722] < 0.9 for colour in colours)
    assert all(len(text.get_text()) == 22 for text in axes.get_legend().get_texts())


def test_principal_components_find_the_widest_direction() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 12) @ torch.diag(torch.tensor([9.0, 4.0] + 10 * [0.1]))
    components, share = principal_components(features + 5, count=2)
    state = torch.random.get_rng_state()
    again, _ = principal_components(features + 5, count=2)
    assert torch.equal(components, again)
    assert torch.equal(state, torch.random.get_rng_state())
    exact = torch.linalg.svd(features - features.mean(dim=0)).U[:, :2]
    correlation = torch.nn.functional.normalize(components, dim=0).T @ exact
    torch.testing.assert_close(correlation.diagonal().abs(), torch.ones(2), atol=1e-3, rtol=0)
    assert share[0] > share[1] > 0
    assert share.sum() > 0.99
