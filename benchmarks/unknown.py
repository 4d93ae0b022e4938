"""Scores of unknown images: how well each tells images of other classes from those of the model's own.

    python benchmarks/unknown.py --caltech DIR --dogs DIR --cifar DIR --weights FILE [--model tf_efficientnet_lite0]
        [--size 96] [--seeds 0 1 2] [--cifar-images 3000] [--epochs 0] [--known NAME …] [--cache DIR]

--caltech contains a folder per class; --dogs and --cifar folders train and test of these. Known and unknown images are
CIFAR-10 against dogs, ten classes of Caltech against dogs, and five of these against the other five. With --epochs 0
the backbone is frozen and its head solved on the features, which are computed once into --cache; otherwise each network
is fine-tuned with imgcls for so many epochs.

Prints what the score adds to the time of an image; then the area under the ROC curve of each score, and for that of
imgcls the share of known test images above the bound for 5 %: with a frozen backbone, the mean of ten splits per seed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import imgcls
from imgcls.images.decoding import open_picture
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.logistic import solve
from imgcls.portable.exported import Exported
from imgcls.portable.novelty import Novelty, fit_novelty
from imgcls.training.build import build_data
from imgcls.training.devices import choose_devices

OURS = "cosine to the nearest class mean (imgcls)"
BATCH = 32
SPLITS = 10  # for each seed, that false alarms are averaged over: a test image more or less is 0.4 %
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes features (N, F) and logits (N, C) of images; higher is more unknown."""


class Case(NamedTuple):
    """Features and labels of the known images by split, features of unknown ones, the head, whether it is all that has
    been trained, and the share of known test images above the bound for 5 %.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    unknown: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    frozen: bool
    alarms: float


def files_in(folder: Path, count: int | None = None) -> list[Path]:
    """The images in the folders of classes, or `count` of them, spread evenly."""
    found = sorted(file for place in sorted(folder.iterdir()) if place.is_dir() for file in place.iterdir())
    return found if count is None else [found[index] for index in np.linspace(0, len(found) - 1, count).astype(int)]


def read(files: list[Path], preprocessing: Preprocessing) -> Iterator[torch.Tensor]:
    """The images as the network sees them, in batches."""
    for start in range(0, len(files), BATCH):
        pixels = [preprocessing.pixels(open_picture(file)) for file in files[start : start + BATCH]]
        yield torch.from_numpy(preprocessing.normalise(np.stack(pixels)))


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def logsumexp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))


def scores(case: Case) -> dict[str, Score]:
    """The scores, fitted on the training images of the case."""
    features, labels = case.train[0].astype(np.float64), case.train[1]
    logits = features @ case.weight.T + case.bias
    directions, classes = unit(features), np.unique(labels)
    count, width = features.shape

    means = np.stack([features[labels == label].mean(axis=0) for label in classes])
    within = features - means[np.searchsorted(classes, labels)]
    covariance = 0.9 * within.T @ within / count + 0.1 * (within**2).sum() / count / width * np.eye(width)
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))

    origin = np.linalg.lstsq(case.weight, -case.bias, rcond=None)[0]
    shifted = features - origin
    principal = np.linalg.eigh(shifted.T @ shifted / count)[1][:, -min(256, width // 2, count // 2) :]

    def residual(values: np.ndarray) -> np.ndarray:
        rest = values - origin
        return np.sqrt(np.maximum((rest**2).sum(axis=1) - ((rest @ principal) ** 2).sum(axis=1), 0))

    scale = logits.max(axis=1).mean() / residual(features).mean()
    novelty = ours(case, share=0.95)
    templates = np.stack([softmax(logits[logits.argmax(axis=1) == label]).mean(axis=0) for label in classes])

    def mahalanobis(values: np.ndarray, _: np.ndarray) -> np.ndarray:
        left, right = values @ whiten, means @ whiten
        return ((left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T).min(axis=1)

    def matching(_: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = softmax(z)
        return ((p * np.log(p + 1e-12)).sum(axis=1)[:, None] - p @ np.log(templates + 1e-12).T).min(axis=1)

    return {
        "maximum softmax probability": lambda _, z: -softmax(z).max(axis=1),
        "maximum logit": lambda _, z: -z.max(axis=1),
        "energy (Liu et al. 2020)": lambda _, z: -logsumexp(z),
        "KL matching (Hendrycks et al. 2022)": matching,
        "5 nearest neighbours (Sun et al. 2022)": lambda x, _: -np.partition(unit(x) @ directions.T, -5, axis=1)[:, -5],
        "Mahalanobis (Lee et al. 2018)": mahalanobis,
        "ViM (Wang et al. 2022)": lambda x, z: scale * residual(x) - logsumexp(z),
        "cosine and energy, both": lambda x, z: both(case, novelty, x, z),
        OURS: lambda x, _: novelty.of(x),
    }


def both(case: Case, novelty: Novelty, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The sum of the cosine's and the energy's scores, each by its standard deviation over validation images."""
    held_out = case.val[0].astype(np.float64)
    pairs = (
        (novelty.of(features), novelty.of(held_out)),
        (-logsumexp(logits), -logsumexp(held_out @ case.weight.T + case.bias)),
    )
    total: np.ndarray = sum(value / usual.std() for value, usual in pairs)  # type: ignore[assignment]
    return total


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - logsumexp(logits)[:, None])


def ours(case: Case, share: float) -> Novelty:
    found = fit_novelty(*case.train, case.val[0], share, frozen=case.frozen)
    if found is None:
        raise SystemExit(f"{case.name}: too few validation images")
    return found


def area(known: np.ndarray, unknown: np.ndarray) -> float:
    """The area under the ROC curve: how often an unknown image has the higher score."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, "left") + np.searchsorted(ordered, unknown, "right")
    return float(below.mean() / 2 / len(known))


def frozen_case(name: str, seed: int, known: tuple[np.ndarray, np.ndarray], unknown: np.ndarray) -> Case:
    """A random split of the known images, and the head solved on it."""
    values, names = known
    labels = np.searchsorted(np.unique(names), names)

    def split(number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        order = np.random.default_rng(number).permutation(len(labels))
        cuts = [int(share * len(order)) for share in (0.65, 0.8)]
        return [(values[part], labels[part]) for part in np.split(order, cuts)]

    alarms = []
    for number in range(SPLITS * seed, SPLITS * (seed + 1)):
        train, val, test = split(number)
        bound = fit_novelty(*train, val[0], 0.95, frozen=True)
        assert bound is not None
        alarms.append(float((bound.of(test[0]) > 1).mean()))
    train, val, test = split(seed)
    pairs = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in (train, val)]
    head = solve(*pairs[0], int(labels.max()) + 1, held_out=pairs[1], seed=seed)
    weight, bias = head.weight.double().numpy(), head.bias.double().numpy()
    return Case(name, train, val, test, unknown, weight, bias, True, statistics.mean(alarms))


def frozen_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Of each seed the three cases, on the features of the pretrained backbone."""
    network = create_network(arguments.model, 2, weights=arguments.weights).eval()
    everything = {
        "caltech": files_in(arguments.caltech),
        "dogs": files_in(arguments.dogs / "test"),
        "cifar": files_in(arguments.cifar / "test", arguments.cifar_images),
    }
    sets = {}
    for name, files in everything.items():
        stored = arguments.cache / f"{name}-{arguments.model}-{arguments.size}-{len(files)}.npz"
        if not stored.is_file():
            began = time.monotonic()
            resize = arguments.size if name == "cifar" else round(arguments.size * 256 / 224)
            preprocessing = Preprocessing(arguments.size, resize, mean=(0.5,) * 3, std=(0.5,) * 3)
            with torch.inference_mode():
                values = np.concatenate([network.features(batch).numpy() for batch in read(files, preprocessing)])
            np.savez(stored, x=values, y=np.array([file.parent.name for file in files]))
            print(f"features of {len(files)} images of {name}: {time.monotonic() - began:.0f} s", flush=True)
        with np.load(stored) as found:
            sets[name] = found["x"], found["y"]
    classes = np.unique(sets["caltech"][1])
    for seed in arguments.seeds:
        own = np.isin(sets["caltech"][1], np.random.default_rng(seed).permutation(classes)[:5])
        for name, known, unknown in (
            ("CIFAR-10 / dogs", sets["cifar"], sets["dogs"][0]),
            ("Caltech / dogs", sets["caltech"], sets["dogs"][0]),
            ("Caltech 5 / 5", tuple(part[own] for part in sets["caltech"]), sets["caltech"][0][~own]),
        ):
            if name in arguments.known or not arguments.known:
                yield frozen_case(name, seed, known, unknown)  # type: ignore[arg-type]


def tuned_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Of each seed the three cases, each with a network that is fine-tuned on the known images."""
    dogs, classes = files_in(arguments.dogs / "test", 360), sorted(arguments.caltech.iterdir())
    for seed in arguments.seeds:
        own = np.random.default_rng(seed).permutation(len(classes))[:5].tolist()
        others = [file for number, place in enumerate(classes) if number not in own for file in sorted(place.iterdir())]
        for name, root, unknown in (
            ("CIFAR-10 / dogs", arguments.cifar, dogs),
            ("Caltech / dogs", arguments.caltech, dogs),
            ("Caltech 5 / 5", None, others),
        ):
            if name in arguments.known or not arguments.known:
                with tempfile.TemporaryDirectory() as work:
                    folder = root
                    if folder is None:
                        folder = Path(work) / "known"
                        folder.mkdir()
                        for number in own:
                            (folder / classes[number].name).symlink_to(classes[number].resolve())
                    yield tuned_case(name, seed, folder, unknown, Path(work), arguments)


def tuned_case(
    name: str, seed: int, root: Path, unknown: list[Path], work: Path, arguments: argparse.Namespace
) -> Case:
    """Fine-tune on the images in `root`, and compute the features by the exported model."""
    overrides = [
        *(f"data=imagefolder data.root={root} data.image_size={arguments.size} model.name={arguments.model}".split()),
        *(f"model.weights={arguments.weights} trainer.max_epochs={arguments.epochs} seed={seed}".split()),
        *(f"report=false export.onnx=false debug=off run_dir={work / 'run'}".split()),
    ]
    run = imgcls.fit(imgcls.compose(overrides))
    parts = {split: (run.model.embed(files), labels) for split, (files, labels) in splits_of(run).items()}
    head = [layer for layer in run.model.network.head.modules() if isinstance(layer, torch.nn.Linear)][-1]
    weight, bias = (value.detach().double().numpy() for value in (head.weight, head.bias))
    bound = fit_novelty(*parts["train"], parts["val"][0], 0.95)
    if bound is None:
        raise SystemExit(f"{name}: too few validation images")
    alarms = float((bound.of(parts["test"][0]) > 1).mean())
    return Case(
        name, parts["train"], parts["val"], parts["test"], run.model.embed(unknown), weight, bias, False, alarms
    )


def splits_of(run: imgcls.Run) -> dict[str, tuple[list[Path], np.ndarray]]:
    """The files and labels of each split of the run, at most 1,500 of a split."""
    data = build_data(run.config, replace(choose_devices("cpu", "auto"), indices=1))
    data.setup(None)
    found = {}
    for name, split in data.source.splits().items():
        chosen = np.unique(np.linspace(0, len(split) - 1, min(1500, len(split))).astype(int))
        found[name] = [split.files[index] for index in chosen], split.labels[chosen]
    return found


def measure(cases: Iterator[Case]) -> None:
    """Print a line per score with its areas, a column per case, in the mean of the seeds."""
    areas: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    alarms, right = defaultdict(list), defaultdict(list)
    for case in cases:
        test, unknown = case.test[0].astype(np.float64), case.unknown.astype(np.float64)
        outputs = [(values, values @ case.weight.T + case.bias) for values in (test, unknown)]
        for name, score in scores(case).items():
            areas[name][case.name].append(area(score(*outputs[0]), score(*outputs[1])))
        alarms[case.name].append(case.alarms)
        right[case.name].append(float((outputs[0][1].argmax(axis=1) == case.test[1]).mean()))
        print(f"{case.name}: {len(case.val[0])} validation images", flush=True)
    names = list(alarms)
    print("| score | " + " | ".join(names) + " | mean |\n|---|" + "---|" * (len(names) + 1))
    for score_name, found in areas.items():
        means = [100 * statistics.mean(found[name]) for name in names]
        cells = [f"{mean:.1f}" for mean in (*means, statistics.mean(means))]
        print(f"| {score_name} | " + " | ".join(cells) + " |")
    for title, values in (("known test images above the bound", alarms), ("accuracy", right)):
        means = [100 * statistics.mean(values[name]) for name in names]
        print(f"| {title} | " + " | ".join(f"{mean:.1f} %" for mean in (*means, statistics.mean(means))) + " |")


def measure_latency(arguments: argparse.Namespace, rounds: int = 100) -> None:
    """Print what the novelty adds to the processor time of an image, of 10 classes; both sides alternate."""
    network = create_network(arguments.model, 10, weights=arguments.weights).eval()
    means = np.eye(10, network.num_features, dtype=np.float32)
    sides = Exported(network, 0.9), Exported(network, 0.9, Novelty(means, 1.0, 0.0, 0.95, 100))
    image, seconds = torch.zeros(1, 3, 224, 224), ([], [])  # type: ignore[var-annotated]
    with torch.inference_mode():
        for number in range(2 * rounds + 6):
            began = time.process_time()
            sides[number % 2](image)
            if number >= 6:
                seconds[number % 2].append(time.process_time() - began)
    plain, scored = (statistics.median(values) for values in seconds)
    print(
        f"one image of 224 px: {1000 * plain:.2f} ms, with novelty {1000 * scored:.2f} ms ({scored / plain - 1:+.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("caltech", "dogs", "cifar", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cifar-images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--known", nargs="*", default=[])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure_latency(arguments)
    measure(tuned_cases(arguments) if arguments.epochs else frozen_cases(arguments))


if __name__ == "__main__":
    main()
