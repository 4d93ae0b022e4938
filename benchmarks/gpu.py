"""imgcls on one GPU: training, CIFAR-10 to 94 and 96 %, memory, inference, two processes; each beside its alternative.

    python benchmarks/gpu.py [--cifar10 DIR] [--parts 1,2,3,4,5] [--minutes 9.5] [--out gpu-benchmark] [--json FILE]
    python benchmarks/gpu.py --device cpu --small     # the same code in small, to see that it works

Needs no network and no files: pictures are random, or CIFAR-10 in DIR (the original batches, or train/<class> and
test/<class>), without which part 2 gives times but no accuracy. Each measurement is written to `results.json` in
`--out` as soon as it is there; the same command goes on after the last one, `--fresh` begins anew. None is begun after
`--minutes`. Prints a table and one line of JSON, as means and standard deviations over repeats.

1. Training, bf16 and channels_last, eager and compiled: images per second through `imgcls.fit`, without augmentation
   and with the default one, against a plain PyTorch loop over normalised batches that are on the device already; the
   share of time for which the device was idle, and how often a step waited for it (from torch.profiler); and the usual
   ImageFolder in a DataLoader with all cores, against imgcls on the same files.
2. CIFAR-10 from scratch by `experiment=cifar10_fast` and `cifar10_accurate`: test accuracy, and seconds from the first
   step to the end of the training with everything in between.
3. A batch that a device with little memory cannot hold: how it was cut after real out-of-memory errors.
4. Inference, images per second: eager, compiled, ONNX Runtime with CUDA where it is installed.
5. Two processes on two GPUs against one, each with the same share of the batch.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_notebook import SMALL, Notebook, Scale, Values
from gpu_recipes import cifar10, inference, memory
from gpu_training import processes, training

TITLES = {
    "1": "training, images/s",
    "2": "CIFAR-10 from scratch",
    "3": "too little memory",
    "4": "inference, images/s",
    "5": "two processes, images/s",
}


def machine(scale: Scale) -> Values:
    """What was measured on."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    on_gpu = scale.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        **versions,
    }


def table(values: dict[str, Values]) -> Iterator[str]:
    """A line for each measurement, under the title of its part."""
    for part, title in TITLES.items():
        rows = [(name[2:], found) for name, found in values.items() if name.startswith(f"{part} ")]
        if rows:
            yield f"\n{part}. {title}"
        yield from (f"  {name:44} {told(found)}" for name, found in rows)
        yield from ratios(part, values)


def told(found: Values) -> str:
    """One measurement in words."""
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
    if "seconds" in found:
        accuracy = f"{found['accuracy']:.2%}" if found["accuracy"] is not None else "random pictures"
        parts.append(f"{accuracy} in {found['seconds']:.2f} s, {found['epochs']} epochs")
    return ", ".join(parts)


def ratios(part: str, values: dict[str, Values]) -> Iterator[str]:
    """What the part is about: imgcls beside the alternative, or the mean over seeds."""
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


def pairs(part: str) -> list[tuple[str, str]]:
    """Endings of names: ours, and what it is compared with."""
    if part == "1":
        return [("imgcls", "plain loop"), ("imgcls, augmenting", "plain loop"), ("files imgcls", "files usual")]
    return {"4": [("compiled", "eager"), ("ONNX Runtime", "eager")], "5": [("2 processes", "1 process")]}.get(part, [])


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not measured yet, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--parts", default="1,2,3,4,5")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"))
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device. --device cpu --small goes through the same code.")
    if unknown := set(asked.parts.split(",")) - set(TITLES):
        parser.error(f"--parts takes 1 to 5, not {', '.join(sorted(unknown))}.")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    scale = Scale(device=asked.device, **(SMALL if asked.small else {}))  # type: ignore[arg-type]
    if asked.fresh:
        shutil.rmtree(asked.out, ignore_errors=True)
    notes = Notebook(asked.out, asked.minutes)
    notes.expect({"machine": machine(scale), "small": asked.small, "cifar10": str(asked.cifar10)})
    work = {
        "1": lambda: training(scale, notes),
        "2": lambda: cifar10(scale, notes, asked.cifar10),
        "3": lambda: memory(scale, notes),
        "4": lambda: inference(scale, notes),
        "5": lambda: processes(scale, notes),
    }
    for part in asked.parts.split(","):
        work[part]()
    notes.tidy()
    print(f"{' '.join(str(value) for value in machine(scale).values())}")
    print("\n".join(table(notes.values)))
    if notes.left:
        print(f"\nNot measured in {asked.minutes:g} minutes: {', '.join(notes.left)}. Run the same command again.")
    line = json.dumps({"benchmark": "gpu", **notes.facts, "results": notes.values})
    print(line)
    if asked.json:
        asked.json.write_text(line + "\n")
    if any("error" in found for found in notes.values.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
