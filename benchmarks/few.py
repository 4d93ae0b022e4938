"""Few images per class: prototypes and nearest neighbours against a solved linear head, on the same features.

    python -m imgcls.embed run=RUN output=train.npy PHOTOS/train
    python -m imgcls.embed run=RUN output=test.npy PHOTOS/test
    python benchmarks/few.py --train train.npy --test test.npy [--images 1 2 5 20 100] [--seeds 0 1 2] [--json FILE]

RUN is any run, or a portable model, with the backbone in question; the folder of an image is its class. Each seed draws
other training images. The penalty of the linear head is chosen on parts of them. Prints a table and one line of JSON.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from results import command_line, report
from torch import Tensor

from imgcls.models.heads import Knn, Prototype
from imgcls.models.logistic import solve
from imgcls.models.memory import Memory
from imgcls.system.tables import cell_text

Scores = Callable[[Tensor], Tensor]


def read(file: Path) -> tuple[Tensor, list[str]]:
    """The features in `file`, and the class of each."""
    with file.with_suffix(".csv").open(encoding="utf-8", newline="") as table:
        names = [cell_text(row["file"]) for row in csv.DictReader(table)]
    return torch.from_numpy(np.load(file)), [Path(name).parent.name for name in names]


def linear(features: Tensor, labels: Tensor, classes: int) -> Scores:
    found = solve(features, labels, classes)
    return lambda test: test @ found.weight.T + found.bias


def memory(head: Prototype | Knn) -> Callable[[Tensor, Tensor, int], Scores]:
    def fill(features: Tensor, labels: Tensor, classes: int) -> Scores:
        layers = head(features.shape[1], classes)
        assert isinstance(layers, Memory)
        layers.store(features, labels)
        return layers

    return fill


SYSTEMS = {
    "linear head, solved": linear,
    "prototypes": memory(Prototype()),
    "5 nearest neighbours": memory(Knn(k=5)),
    "nearest neighbour": memory(Knn(k=1)),
}


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 5, 20, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    (features, classes), (test, test_classes) = read(arguments.train), read(arguments.test)
    names = sorted(set(classes))
    labels, true = (torch.tensor([names.index(name) for name in each]) for each in (classes, test_classes))
    rows: dict[str, dict[int, list[float]]] = {system: {} for system in SYSTEMS}
    seconds: dict[str, float] = {}
    for images in arguments.images:
        for seed in arguments.seeds:
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
            kept = torch.cat([order[labels[order] == label][:images] for label in range(len(names))])
            for system, make in SYSTEMS.items():
                began = time.monotonic()
                with torch.no_grad():
                    right = make(features[kept], labels[kept], len(names))(test).argmax(dim=1) == true
                seconds[system] = time.monotonic() - began
                rows[system].setdefault(images, []).append(100 * float(right.float().mean()))
    print(f"| {len(names)} classes, images of each | " + " | ".join(map(str, arguments.images)) + " |")
    print("|---|" + "---|" * len(arguments.images))
    for system, found in rows.items():
        cells = [f"{statistics.mean(each):.1f} ± {statistics.pstdev(each):.1f}" for each in found.values()]
        print(f"| {system} | {' | '.join(cells)} |")
    report({"accuracy": rows, "seconds": seconds}, arguments.json)


if __name__ == "__main__":
    main()
