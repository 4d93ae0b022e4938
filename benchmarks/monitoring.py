"""How well `imgcls.monitor` estimates the accuracy on worse images, and how soon it notices them.

    python benchmarks/monitoring.py --cifar DIR --weights FILE [--model tf_efficientnet_lite0] [--size 96]
        [--train 5000] [--val 2000] [--test 1500] [--seeds 0 1 2] [--cache FOLDER] [--streams 20] [--months 0]

--cifar contains folders `train` and `test` of a folder per class. The head of a frozen backbone is solved on training
images, the reference fitted on other ones; the test images are corrupted as in CIFAR-10-C (Hendrycks and Dietterich
2019), mostly in other ways than those that the reference learns from. What is computed is kept in the cache.

Prints for each corruption the accuracy, and what it is estimated at: by the mean confidence, by the threshold of
Garg et al. 2022 (ATC), by imgcls, and by imgcls if the reference lacks the perturbation most like the corruption; then
after how many images a stream of which a tenth is darkened or blurred is noticed, and the false alarms in simulated
months of 100,000 images a day that are like those of validation (--months; each takes minutes and 7 GB).
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from imgcls import portable
from imgcls.images.decoding import open_picture
from imgcls.images.preprocessing import Preprocessing
from imgcls.models.backbones import create_network
from imgcls.models.logistic import solve
from imgcls.monitoring.detection import estimate_accuracy, watch
from imgcls.monitoring.evidence import MONTH
from imgcls.monitoring.measures import Measures, measure
from imgcls.monitoring.perturbations import PERTURBATIONS
from imgcls.monitoring.reference import Reference, Versions, fit, measure_versions
from imgcls.portable.calibration import calibrate
from imgcls.portable.novelty import fit_novelty

BATCH = 128
Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def jpeg(quality: int) -> Corruption:
    def apply(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return apply


def pixelate(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(pixels.astype(np.uint8))
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX))


def impulse(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    hit = dice.random(pixels.shape[:2])
    return np.where((hit < 0.05)[..., None], 0, np.where((hit > 0.95)[..., None], 255, pixels))


def shot(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    return dice.poisson(pixels / 255 * 40) / 40 * 255


def motion(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    return np.mean([np.roll(pixels, shift, axis=1) for shift in range(-2, 3)], axis=0)


def saturate(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    grey = pixels.mean(axis=2, keepdims=True)
    return grey + (pixels - grey) * 3


def fog(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    small = Image.fromarray(dice.integers(0, 256, (4, 4), dtype=np.uint8))
    veil = np.asarray(small.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC), dtype=np.float64)
    return 0.45 * pixels + 0.55 * (120 + veil / 2)[..., None]


def gaussian(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    return pixels + dice.normal(0, 20, pixels.shape)


def defocus(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.BoxBlur(1.5)))


def dark(pixels: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    return pixels * 0.35


CORRUPTIONS: dict[str, Corruption] = {
    "none": lambda pixels, dice: pixels,
    "JPEG, quality 30": jpeg(30),
    "JPEG, quality 10": jpeg(10),
    "pixelate": pixelate,
    "impulse noise": impulse,
    "shot noise": shot,
    "motion blur": motion,
    "saturate": saturate,
    "fog": fog,
    "Gaussian noise": gaussian,
    "defocus": defocus,
    "dark": dark,
}
RELATIVES = {
    "JPEG, quality 30": "compressed",
    "JPEG, quality 10": "compressed",
    "pixelate": "shrunk",
    "impulse noise": "noisy",
    "shot noise": "noisy",
    "motion blur": "shaken",
    "saturate": "discoloured",
    "fog": "faded",
    "Gaussian noise": "noisy",
    "defocus": "blurred",
    "dark": "darkened",
}
"""The perturbation that a corruption resembles."""


def files_of(folder: Path, count: int, seed: int) -> list[tuple[Path, int]]:
    """`count` random images of the folders of classes, each with its class."""
    classes = sorted(place for place in folder.iterdir() if place.is_dir())
    found = [(file, label) for label, place in enumerate(classes) for file in sorted(place.iterdir())]
    return [found[index] for index in np.random.default_rng(seed).permutation(len(found))[:count]]


def prepare(arguments: argparse.Namespace, seed: int) -> tuple[portable.PortableModel, Path]:
    """The portable model with its reference, and the folder that it is kept in."""
    folder = arguments.cache / f"{arguments.model}-{arguments.size}-{seed}"
    chosen = files_of(arguments.cifar / "train", arguments.train + arguments.val, seed)
    train, val = chosen[: arguments.train], chosen[arguments.train :]
    if not (folder / portable.DESCRIPTION).is_file():
        network = create_network(arguments.model, 10, weights=arguments.weights).eval()
        preprocessing = Preprocessing(arguments.size, arguments.size, mean=(0.5,) * 3, std=(0.5,) * 3)
        sets = []
        for part in (train, val):
            parts = []
            for start in range(0, len(part), BATCH):
                pixels = [preprocessing.pixels(open_picture(file)) for file, _ in part[start : start + BATCH]]
                with torch.inference_mode():
                    parts.append(network.features(torch.from_numpy(preprocessing.normalise(np.stack(pixels)))))
            sets.append((torch.cat(parts), torch.tensor([label for _, label in part])))
        head = solve(*sets[0], 10, held_out=sets[1], seed=seed)
        layer = next(layer for layer in network.head.modules() if isinstance(layer, torch.nn.Linear))
        with torch.no_grad():
            layer.weight.copy_(head.weight)
            layer.bias.copy_(head.bias)
            logits = network.head(sets[1][0]).numpy()
        portable.export(
            network,
            preprocessing=preprocessing,
            class_names=[str(number) for number in range(10)],
            metrics={},
            folder=folder,
            onnx=False,
            calibration=calibrate(logits, sets[1][1].numpy()),
            novelty=fit_novelty(*(part.numpy() for part in sets[0]), sets[1][0].numpy(), 0.95, frozen=True),
        )
    model = portable.load(folder)
    model.network.to(memory_format=torch.channels_last)  # twice as fast
    return model, folder


def versions_of(model: portable.PortableModel, folder: Path, arguments: argparse.Namespace, seed: int) -> Versions:
    """What is measured for the reference of the model; kept in the folder."""
    stored = folder / "versions.npz"
    if not stored.is_file():
        val = files_of(arguments.cifar / "train", arguments.train + arguments.val, seed)[arguments.train :]
        found = measure_versions(model, ((open_picture(file), label) for file, label in val))
        save(stored, found.images, correct=found.correct, numbers=found.numbers, kinds=found.kinds)
    with np.load(stored) as read:
        return Versions(load_measures(stored), *(read[name] for name in ("correct", "numbers", "kinds")))


def without(versions: Versions, kind: str) -> Versions:
    """Those of all kinds but one."""
    kept = versions.kinds != list(PERTURBATIONS).index(kind)
    return Versions(versions.images[kept], versions.correct[kept], versions.numbers[kept], versions.kinds[kept])


def save(file: Path, images: Measures, **more: np.ndarray) -> None:
    np.savez(file, **{field: getattr(images, field) for field in Measures.__dataclass_fields__}, **more)


def load_measures(file: Path) -> Measures:
    with np.load(file) as found:
        return Measures(**{field: found[field] for field in Measures.__dataclass_fields__})


def measured(
    model: portable.PortableModel, folder: Path, files: list[tuple[Path, int]], name: str, corrupt: Corruption
) -> tuple[Measures, np.ndarray]:
    """What is measured of the corrupted images, and which are classified correctly."""
    stored = folder / f"{name.replace(' ', '-')}-{len(files)}.npz"
    if not stored.is_file():
        dice, parts = np.random.default_rng(0), []
        for start in range(0, len(files), BATCH):
            pixels = []
            for file, _ in files[start : start + BATCH]:
                values = corrupt(np.asarray(open_picture(file)).astype(np.float64), dice)
                image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
                pixels.append(model.preprocessing.pixels(image))
            parts.append(measure(model, model.preprocessing.normalise(np.stack(pixels))))
        save(stored, Measures.concatenate(parts))
    images = load_measures(stored)
    return images, images.predicted == np.array([label for _, label in files])


def estimates(reference: Reference, blind: Reference, images: Measures) -> tuple[float, float, float, float]:
    """The accuracy by the mean confidence, by ATC, and by imgcls with all that it knows and with the `blind` reference.

    The `images` have all of their features.
    """
    bound = np.quantile(reference.images.confidence, 1 - reference.correct.mean())
    by_threshold = float((images.confidence > bound).mean())
    ours = [estimate_accuracy(knowing, knowing.project(images)).value for knowing in (reference, blind)]
    return float(images.confidence.mean()), by_threshold, ours[0], ours[1]


def delays(reference: Reference, usual: Measures, changed: Measures, streams: int, share: float = 0.1) -> list[int]:
    """Of each stream, all images in random order, of which this share is changed: after how many there is an alarm.

    Without an alarm, one more than there are images.
    """
    found, both = [], Measures.concatenate([usual, changed])
    for seed in range(streams):
        dice = np.random.default_rng(seed)
        hit = dice.random(len(usual)) < share
        stream = both[dice.permutation(len(usual)) + len(usual) * hit]
        alarms = [watched.alarm for watched in watch(reference, stream) if watched.alarm is not None]
        found.append(min(alarms, default=len(usual) + 1))
    return found


def month(reference: Reference, seed: int) -> str:
    """What raises a false alarm in a month of images like the reference: both drawn from a smoothed copy of it."""
    dice, images = np.random.default_rng(seed), reference.images
    drawn = replace(reference, images=smoothed(images, len(images), dice))
    watched = watch(drawn, smoothed(images, MONTH, dice))
    alarms = [one.name for one in watched if one.alarm is not None]
    nearest = max(watched, key=lambda one: one.evidence.max())
    most = f"the strongest evidence is 10^{nearest.evidence.max():.1f} of what an alarm takes ({nearest.name})"
    return f"false alarms in a month: {', '.join(alarms) or 'none'}; {most}"


def smoothed(images: Measures, count: int, dice: np.random.Generator) -> Measures:
    """`count` images drawn from these, with a little noise on each number."""
    chosen, width = images[dice.integers(0, len(images), count)], len(images) ** -0.2
    noisy = {}
    for name in ("confidence", "margin", "entropy", "novelty", *("brightness", "contrast", "sharpness", "detail")):
        values = getattr(chosen, name)
        noisy[name] = values + np.float32(width * values.std()) * dice.normal(size=count).astype(np.float32)
    spread = (width * images.features.std(axis=0)).astype(np.float32)
    features = chosen.features + spread * dice.standard_normal(chosen.features.shape, dtype=np.float32)
    return replace(chosen, features=features, **noisy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar", "weights", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    for name, default in (("size", 96), ("train", 5000), ("val", 2000), ("test", 1500), ("streams", 20), ("months", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    errors = []
    for seed in arguments.seeds:
        model, folder = prepare(arguments, seed)
        versions = versions_of(model, folder, arguments, seed)
        reference = fit(versions)
        blind = {kind: fit(without(versions, kind)) for kind in sorted(set(RELATIVES.values()))}
        files = files_of(arguments.cifar / "test", arguments.test, seed)
        print(f"seed {seed}: accuracy on {len(reference.images)} validation images {reference.correct.mean():.4f}")
        print("| corruption | accuracy | mean confidence | ATC | imgcls | without its relative |")
        print("|---|---|---|---|---|---|")
        seen = {}
        for name, corrupt in CORRUPTIONS.items():
            images, correct = measured(model, folder, files, name, corrupt)
            seen[name] = reference.project(images)
            found = estimates(reference, blind[RELATIVES[name]] if name in RELATIVES else reference, images)
            errors.append([100 * (value - correct.mean()) for value in found])
            print(f"| {name} | {correct.mean():.3f} | {' | '.join(f'{value:.3f}' for value in found)} |", flush=True)
        for name in ("none", "dark", "defocus", "motion blur", "Gaussian noise"):
            found = delays(reference, seen["none"], seen[name], arguments.streams)
            soon, ever = (sum(delay <= most for delay in found) for most in (500, len(files)))
            median = statistics.median(found)
            print(f"a tenth {name}: {soon} of {len(found)} streams within 500 images, {ever} ever, median {median:g}")
        for number in range(arguments.months):
            print(month(reference, number), flush=True)
    names = ("mean confidence", "ATC", "imgcls", "imgcls without the relative")
    for name, values in zip(names, np.abs(np.array(errors)).T, strict=True):
        within = (values <= 2).mean()
        print(
            f"{name}: mean error {values.mean():.1f} points, largest {values.max():.1f}, {within:.0%} within 2 points"
        )


if __name__ == "__main__":
    main()
