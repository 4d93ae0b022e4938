"""The neighbours of a misclassified image are the training images with the most similar features."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from imgcls.data.feature_module import FeatureDataModule
from imgcls.images.channels import RGB, Depth
from imgcls.system.tables import as_csv
from imgcls.training.neighbours import NEIGHBOURS, try_neighbours


def test_the_most_similar_training_images_are_stored_with_their_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    labels = np.arange(40) % 4
    rows = [
        {"file": f"{n}.jpg", "label": "a", "predicted": "b", "correct": int(n > 1), "confidence": 0.5, "loss": n}
        for n in range(6)
    ]
    (tmp_path / "predictions.csv").write_text(as_csv(rows))

    def preview(row: int, depth: Depth) -> Image.Image:
        return Image.new("RGB", (32, 32), (row, row, row))

    source = SimpleNamespace(
        train=SimpleNamespace(labels=labels, preview=preview),
        test=SimpleNamespace(names=[f"{n}.jpg" for n in range(6)]),
    )
    images = SimpleNamespace(source=source, multilabel=False, class_names=["a", "b", "c", "d"], depth=RGB)
    data = FeatureDataModule.__new__(FeatureDataModule)
    features = {"train": train, "test": test}
    data.__dict__["features"] = {name: SimpleNamespace(features=part[None]) for name, part in features.items()}
    try_neighbours(tmp_path, images, data)  # type: ignore[arg-type]
    found = json.loads((tmp_path / "report_data" / "neighbours.json").read_text())["pictures"]
    assert list(found) == ["1.jpg", "0.jpg"], "misclassified, the largest loss first"
    for file, near in found.items():
        cosine = train @ test[int(file[0])] / np.linalg.norm(train, axis=1)
        assert [row["label"] for row in near] == ["abcd"[labels[place]] for place in np.argsort(-cosine)[:NEIGHBOURS]]
