"""Wrong labels found by the audit against the library cleanlab, on the same out-of-fold probabilities.

    python benchmarks/audit.py --weights FILE [--caltech DIR] [--cifar DIR] [--size 224] [--limit N] [--flipped 0.05]
                               [--seeds 0 1 2] [--cleanlab PYTHON] [--features DIR] [--large] [--json FILE]

Labels are flipped at random, and the audit looks for them with the features of a frozen EfficientNet-Lite0. AUROC says
how well the images are ranked; precision and recall, how well those are chosen that are called wrong. `--cleanlab` is
the Python of an environment that has cleanlab: its three scores, and what its find_label_issues chooses. `--features`
keeps the features. `--large` also takes the time of 50,000 images with features of noise. Prints a table and a line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import report
from sklearn.metrics import roc_auc_score

import imgcls
from imgcls.audit.labels import find_wrong_labels
from imgcls.audit.out_of_fold import out_of_fold
from imgcls.data.module import ImageDataModule
from imgcls.models.depths import at_depths
from imgcls.training.build import build_data, build_network
from imgcls.training.devices import choose_devices
from imgcls.training.frozen_backbone import compute_features

CLEANLAB = """
import sys, json, numpy as np
from sklearn.metrics import roc_auc_score
from cleanlab.rank import get_label_quality_scores
from cleanlab.filter import find_label_issues
content = np.load(sys.argv[1])
labels, probabilities, wrong = content["labels"], content["probabilities"], content["wrong"]
scores = {
    method: roc_auc_score(wrong, -get_label_quality_scores(labels, probabilities, method=method))
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
}
chosen = find_label_issues(labels, probabilities)
hits = (chosen & wrong).sum()
scores["auroc"] = max(scores.values())
scores["precision"], scores["recall"] = hits / max(1, chosen.sum()), hits / wrong.sum()
print(json.dumps(scores))
"""
LARGE = {"10 classes": (50_000, 1280, 10), "100 classes": (50_000, 1280, 100)}


def features_of(name: str, overrides: list[str], asked: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and labels (N,) of all images of a data set."""
    file = Path(asked.features or tempfile.mkdtemp()) / f"{name}.npz"
    if not file.is_file():
        model = ["model.name=tf_efficientnet_lite0", f"model.weights={asked.weights}", "trainer.accelerator=cpu"]
        size = [f"data.image_size={asked.size}"]
        size += [f"data.resize={asked.size}"] if name == "cifar" else []
        cfg = imgcls.compose([*overrides, *model, *size, "data.val_fraction=0"])
        devices = choose_devices("cpu", 1)
        images: ImageDataModule = build_data(cfg, devices, plain=True)
        images.setup()
        stores = compute_features(images, at_depths(build_network(cfg, images)), device=torch.device("cpu"))
        splits = images.source.splits()
        np.savez(
            file,
            features=np.concatenate([stores[split].features[0] for split in splits]),
            labels=np.concatenate([splits[split].labels for split in splits]),
        )
    content = np.load(file)
    features, labels = content["features"], content["labels"]
    chosen = np.random.default_rng(0).permutation(len(labels))[: asked.limit]
    return features[chosen], labels[chosen]


def measure(features: np.ndarray, true: np.ndarray, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """What the audit, and cleanlab, find of the labels that are flipped with this seed."""
    classes, random = int(true.max()) + 1, np.random.default_rng(seed)
    wrong = random.random(len(true)) < asked.flipped
    given = np.where(wrong, (true + random.integers(1, classes, len(true))) % classes, true)
    began = time.perf_counter()
    probabilities = out_of_fold(torch.from_numpy(features), given, classes).probabilities
    found = find_wrong_labels(probabilities, given)
    seconds = time.perf_counter() - began
    hits = int((found.wrong & wrong).sum())
    row: dict[str, Any] = {
        "images": len(true),
        "flipped": int(wrong.sum()),
        "accuracy": float((probabilities.argmax(axis=1) == true).mean()),
        "auroc": float(roc_auc_score(wrong, found.scores)),
        "precision": hits / max(1, int(found.wrong.sum())),
        "recall": hits / int(wrong.sum()),
        "suggestion right": float((found.suggested == true)[found.wrong & wrong].mean()),
        "seconds": seconds,
    }
    if asked.cleanlab:
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, labels=given, probabilities=probabilities, wrong=wrong)
            file.flush()
            done = subprocess.run(
                [asked.cleanlab, "-c", CLEANLAB, file.name], capture_output=True, text=True, check=True
            )
        row["cleanlab"] = json.loads(done.stdout.splitlines()[-1])
    return row


def time_large(images: int, width: int, classes: int) -> tuple[float, float]:
    """Seconds, and processor seconds, for the wrong labels among this many images with features of noise."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    features = random.normal(size=(images, width)).astype(np.float32)
    features += 0.12 * random.normal(size=(classes, width)).astype(np.float32)[labels]
    began, worked = time.perf_counter(), time.process_time()
    find_wrong_labels(out_of_fold(torch.from_numpy(features), labels, classes).probabilities, labels)
    return time.perf_counter() - began, time.process_time() - worked


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "caltech", "cifar", "cleanlab", "features", "json"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--flipped", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--large", action="store_true")
    asked = parser.parse_args()
    sets = {
        "caltech": ["data=caltech256", f"data.root={asked.caltech}"] if asked.caltech else None,
        "cifar": ["data=imagefolder", f"data.root={asked.cifar}"] if asked.cifar else None,
    }
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for name, overrides in sets.items():
        if overrides is None:
            continue
        features, labels = features_of(name, overrides, asked)
        rows = [measure(features, labels, seed, asked) for seed in asked.seeds]
        result[name] = rows
        print(f"\n{name}: {len(labels):,} images, {asked.flipped:.0%} of the labels flipped, mean of {len(rows)} seeds")
        print(f"{'':12}{'AUROC':>8}{'precision':>11}{'recall':>8}")
        for who, found in (("imgcls", rows), ("cleanlab", [row.get("cleanlab", {}) for row in rows])):
            if found[0]:
                values = [float(np.mean([row[key] for row in found])) for key in ("auroc", "precision", "recall")]
                print(f"{who:12}{values[0]:8.4f}{values[1]:11.3f}{values[2]:8.3f}")
    if asked.large:
        result["large"] = {name: time_large(*size) for name, size in LARGE.items()}
        for name, (seconds, worked) in result["large"].items():
            print(f"50,000 images of 1280 features, {name}: {seconds:.1f} s, {worked:.1f} processor seconds")
    report(result, asked.json)


if __name__ == "__main__":
    main()
