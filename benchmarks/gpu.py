"""imgcls on one GPU: training, CIFAR-10 to 94 and 96 %, memory, inference, features, search, server; each beside its
alternative.

    python benchmarks/gpu.py [--cifar10 DIR] [--airbench DIR] [--parts 1,2,3,4,6,7,8,5] [--minutes 9.5]
                             [--out gpu-benchmark] [--json FILE]
    python benchmarks/gpu.py --device cpu --small     # the same code in small, as a check

Installs first the packages that are missing, with pip, and replaces none: where ONNX Runtime for CPUs is installed, its
row with CUDA is not measured. Otherwise it needs no network and no files: images are
random, or CIFAR-10 in DIR (the original batches, or train/<class> and test/<class>), without which part 2 gives times
but no accuracy. Each measurement is written to `results.json` in `--out` when it is finished; the same command resumes
after the last one, `--fresh` starts over. No measurement starts later than `--minutes`. Prints a table and one line of
JSON, with means and standard deviations over repeats.

1. Training, bf16 and channels_last, eager and compiled: images per second through `imgcls.fit`, without augmentation
   and with the default one, against a plain PyTorch loop over normalised batches that are already on the device; the
   share of time that the device was idle, and how often a step waited for it (from torch.profiler); and the usual
   ImageFolder in a DataLoader with all cores, against imgcls on the same files.
2. CIFAR-10 from scratch with `experiment=cifar10_fast` and `cifar10_accurate`: test accuracy, and seconds from the
   first step to the end of the training, including everything in between. With `--airbench`, a checkout of
   KellerJordan/cifar10-airbench, its scripts first, as often; see race.py, which lets them run five times each.
3. A batch that does not fit into a device with little memory: how it is split after real out-of-memory errors.
4. Inference, images per second: eager, compiled, ONNX Runtime with CUDA and with TensorRT, if they are installed.
5. Two processes on two GPUs against one, each with the same share of the batch.
6. The features of a frozen backbone of 50,000 images, against its forward pass alone.
7. A search of four trials on a frozen backbone against the usual loop, of which one epoch is measured.
8. The server with 64 clients that send JPEG files, against its engine alone in batches of 64.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import command_line, report

if TYPE_CHECKING:
    from gpu_notebook import Scale

Values = dict[str, Any]

TITLES = {
    "1": "training, images/s",
    "2": "CIFAR-10 from scratch",
    "3": "too little memory",
    "4": "inference, images/s",
    "6": "features of a frozen backbone, images/s",
    "7": "search of four trials, seconds",
    "8": "server, images/s",
    "5": "two processes, images/s",
}
IMGCLS = f"-e{Path(__file__).resolve().parents[1]}"
REQUIREMENTS = {
    **dict.fromkeys(("torch", "torchvision", "lightning", "torchmetrics", "timm", "hydra"), IMGCLS),
    "optuna": f"{IMGCLS}[search]",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime-gpu",
}
"""What provides each package that the benchmark imports."""


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, without torch, which may be missing."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def install_missing() -> None:
    """Install packages that are missing; one that is there is never replaced."""
    missing = {REQUIREMENTS[name] for name in REQUIREMENTS if importlib.util.find_spec(name) is None}
    if missing:
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *sorted(missing)], check=False)
        if done.returncode:
            print(f"pip could not install {', '.join(sorted(missing))}.", file=sys.stderr)
        importlib.invalidate_caches()


def machine(scale: Scale) -> Values:
    """Device and versions."""
    import torch

    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    on_gpu = scale.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        **versions,
    }


def table(values: dict[str, Values]) -> Iterator[str]:
    """One line per measurement, under the title of its part."""
    for part, title in TITLES.items():
        rows = [(name[2:], found) for name, found in values.items() if name.startswith(f"{part} ")]
        if rows:
            yield f"\n{part}. {title}"
        yield from (f"  {name:44} {describe(found)}" for name, found in rows)
        yield from ratios(part, values)


def describe(found: Values) -> str:
    """One measurement as a line of text."""
    if "error" in found or "skipped" in found:
        return found.get("error") or f"not measured: {found['skipped']}"
    parts = []
    if rates := found.get("images_per_second"):
        parts.append(f"{rates['mean']:>10,.0f} ± {rates['std']:,.0f}")
    if "idle_share" in found:
        parts.append(f"idle {found['idle_share']:.1%}, waits {sum(found['waits'].values())} in 3 steps")
    if found.get("peak_memory_gb"):
        parts.append(f"{found['peak_memory_gb']} GB")
    if "micro_batch" in found:
        parts.append(f"{found['batch']} cut to {found['micro_batch']}")
    if "total_seconds" in found:
        parts.append(f"{found['total_seconds']:>10,.1f} for {found['epochs']} epochs")
    if "accuracy_std" in found:
        parts.append(f"{found['accuracy']:.2%} ± {found['accuracy_std']:.2%}")
        parts.append(f"{found['seconds']:.2f} ± {found['seconds_std']:.2f} s")
    elif "seconds" in found:
        accuracy = f"{found['accuracy']:.2%}" if found["accuracy"] is not None else "random images"
        parts.append(f"{accuracy} in {found['seconds']:.2f} s, {found['epochs']} epochs")
    return ", ".join(parts)


def ratios(part: str, values: dict[str, Values]) -> Iterator[str]:
    """The results of a part: imgcls relative to the alternative, or the mean over seeds."""
    rates = {name: one["images_per_second"]["mean"] for name, one in values.items() if "images_per_second" in one}
    for ours, other in pairs(part):
        for name in rates:
            beside = name.replace(ours, other)
            if name.endswith(ours) and beside in rates:
                yield f"  {name[2:] + ' / ' + other:44} {rates[name] / rates[beside]:>10.3f}"
    if part == "2":
        for recipe in sorted({name.split()[1] for name in values if name.startswith("2 ")}):
            runs = [one for name, one in values.items() if name.startswith(f"2 {recipe} ") and "seconds" in one]
            for what in ("accuracy", "seconds"):
                known = [one[what] for one in runs if one[what] is not None]
                if known:
                    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
                    mean = f"{statistics.mean(known):.4f} ± {deviation:.4f} over {len(known)} seeds"
                    yield f"  {recipe + ', mean ' + what:44} {mean}"
        yield from race_ratios(values)
    if part == "7" and all("total_seconds" in values.get(f"7 search {name}", {}) for name in ("usual loop", "imgcls")):
        usual, ours = (values[f"7 search {name}"]["total_seconds"] for name in ("usual loop", "imgcls"))
        yield f"  {'usual loop / imgcls':44} {usual / ours:>10.1f}"


def race_ratios(values: dict[str, Values]) -> Iterator[str]:
    """The seconds of imgcls's recipes relative to those of the published scripts."""
    for script, recipe in (("airbench94_muon.py", "cifar10_fast"), ("airbench96_faster.py", "cifar10_accurate")):
        ours = [found["seconds"] for name, found in values.items() if f"2 {recipe} " in name and "seconds" in found]
        if ours and "seconds" in values.get(f"2 {script}", {}):
            yield f"  {recipe + ' / ' + script:44} {statistics.mean(ours) / values[f'2 {script}']['seconds']:>10.2f}"


def pairs(part: str) -> list[tuple[str, str]]:
    """Suffixes of measurement names: imgcls, and what it is compared with."""
    if part == "1":
        return [("imgcls", "plain loop"), ("imgcls, augmenting", "plain loop"), ("files imgcls", "files usual")]
    return {
        "4": [("compiled", "eager"), ("ONNX Runtime", "eager"), ("TensorRT", "eager")],
        "5": [("2 processes", "1 process")],
        "6": [("features", "bare forward pass")],
        "8": [("server, 64 clients", "bare engine")],
    }.get(part, [])


def main(arguments: list[str] | None = None) -> None:
    """Run the missing measurements and print all."""
    parser = command_line(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--airbench", type=Path)
    parser.add_argument("--parts", default=",".join(TITLES))
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"))
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts.split(",")) - set(TITLES):
        parser.error(f"--parts takes 1 to 8, not {', '.join(sorted(unknown))}.")
    began = time.monotonic()
    if options.device == "cuda":
        if not has_gpu():
            parser.error("there is no CUDA device. --device cpu --small runs the same code.")
        install_missing()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device. --device cpu --small runs the same code.")
    from gpu_notebook import SMALL, Notebook, Scale
    from gpu_recipes import cifar10, inference, memory
    from gpu_training import processes, training
    from gpu_use import features, search, server

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    scale = Scale(device=options.device, **(SMALL if options.small else {}))  # type: ignore[arg-type]
    if options.fresh:
        shutil.rmtree(options.out, ignore_errors=True)
    notes = Notebook(options.out, options.minutes - (time.monotonic() - began) / 60)
    notes.expect({"machine": machine(scale), "small": options.small, "cifar10": str(options.cifar10)})
    work = {
        "1": lambda: training(scale, notes),
        "2": lambda: cifar10(scale, notes, options.cifar10, options.airbench),
        "3": lambda: memory(scale, notes),
        "4": lambda: inference(scale, notes),
        "5": lambda: processes(scale, notes),
        "6": lambda: features(scale, notes),
        "7": lambda: search(scale, notes),
        "8": lambda: server(scale, notes),
    }
    for part in options.parts.split(","):
        work[part]()
    notes.tidy()
    print(f"{' '.join(str(value) for value in machine(scale).values())}")
    print("\n".join(table(notes.values)))
    if notes.left:
        print(f"\nNot measured in {options.minutes:g} minutes: {', '.join(notes.left)}. Run the same command again.")
    report({"benchmark": "gpu", **notes.facts, "results": notes.values}, options.json)
    if any("error" in found for found in notes.values.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
